"""Augmented views of an image, their crops, and the random numbers by which a method hides patches.

A data loading process crops (``crop``); color, blur and normalization run on whole batches (``augment``), on the
model's device. Every random choice is made from numbers that depend on (seed, epoch, image index) alone, so that
neither the number of workers nor a restart changes a run. Axes: B batch, H W source image, S = img_size, N patches.
"""

import math
from dataclasses import dataclass
from random import Random
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from evaluate.runtime.precision import full_float32
from pretrain.config import PretrainConfig
from pretrain.data.augment import COLOR_DRAWS, augment_images
from pretrain.geometry import RelativeGeometry, relative_geometry

CROP_TRIES = 10  # as torchvision's RandomResizedCrop
CROP_RATIO = (3 / 4, 4 / 3)
CROP_DRAWS = 4 * CROP_TRIES + 1  # random numbers a view: crop and flip
SMALL_FIRST = 1 << 20  # position of the first random number of the small views: beyond those of all else


class Crops(NamedTuple):
    """Crops of a batch: two views (B, 3, S, S) uint8, their boxes (B, 4) and flips (B,), image widths (B,), mask (B,
    N), indices (B,).

    With ``num_views`` 1 ``view2`` is None; its box and flip are view 1's. ``mask`` is None for a method whose config
    draws none, ``small`` (B, V, 3, s, s) uint8 for one that takes no small views, ``text`` (B, L) for one that reads no
    captions.
    """

    view1: Tensor
    view2: Tensor | None
    crop1: Tensor
    crop2: Tensor
    flipped1: Tensor
    flipped2: Tensor
    image_width: Tensor
    mask: Tensor | None
    index: Tensor  # type: ignore[assignment]  # hides a tuple's own method, which nothing here calls
    small: Tensor | None = None
    text: Tensor | None = None

    def to(self, device: torch.device | str) -> "Crops":
        """Pixels, mask and captions on a device; from the rest the CPU makes its choices, and need not wait."""
        there = {
            name: tensor.to(device, non_blocking=True)
            for name in ("view1", "view2", "mask", "small", "text")
            if (tensor := getattr(self, name)) is not None
        }
        return self._replace(**there)


@dataclass(frozen=True)
class Batch:
    """What a method trains on. B images of the given indices, views of S pixels a side, N patches a view."""

    view1: Tensor
    """(B, 3, S, S), normalized."""
    view2: Tensor | None
    """(B, 3, S, S), normalized; None for a method of one view."""
    mask: Tensor | None
    """(B, N) bool, True where view 1 is hidden; None for a method that does not choose it with the crops
    (``draw_mask``)."""
    geometry: RelativeGeometry | None
    """Where view 2 lies in view 1; None for a method that does not ask for it (``needs_geometry``)."""
    index: Tensor
    """(B,), which images they are."""
    noise: Tensor | None = None
    """(B, N) uniform numbers for a method that hides patches by them (``draw_noise``)."""
    small: Tensor | None = None
    """(B, V, 3, s, s), normalized, for a method that takes small views (``small_views``)."""
    text: Tensor | None = None
    """(B, L) ids of the images' captions, for a method that reads them (``needs_captions``)."""


def uniforms(seed: int, epoch: int, index: np.ndarray, count: int, first: int = 0) -> np.ndarray:
    """(B, count) numbers in [0, 1), the ones from position ``first`` on, by a counter-based hash (SplitMix64) of (seed,
    epoch, index, position)."""
    weyl = np.uint64(0x9E3779B97F4A7C15)
    with np.errstate(over="ignore"):
        state = _mix(np.asarray(np.uint64(seed) * weyl + np.uint64(epoch + 1)))
        state = _mix(state + np.asarray(index, dtype=np.uint64) * np.uint64(0xD1342543DE82EF95))
        state = _mix(state[:, None] + np.arange(first + 1, first + count + 1, dtype=np.uint64) * weyl)
    return (state >> np.uint64(11)).astype(np.float64) / 2**53


def _mix(value: np.ndarray) -> np.ndarray:
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


def crop_boxes(draws: np.ndarray, heights: np.ndarray, widths: np.ndarray, scale: tuple[float, float]) -> np.ndarray:
    """(B, 4) boxes top, left, height, width as torchvision's RandomResizedCrop chooses them.

    ``draws`` is (B, 4 * CROP_TRIES) in [0, 1); heights and widths (B,) are those of the images.
    """
    area, shape, top, left = np.moveaxis(draws.reshape(len(draws), CROP_TRIES, 4), -1, 0)
    image_height, image_width = heights[:, None], widths[:, None]
    area = image_height * image_width * (scale[0] + (scale[1] - scale[0]) * area)
    low, high = math.log(CROP_RATIO[0]), math.log(CROP_RATIO[1])
    ratio = np.exp(low + (high - low) * shape)
    width, height = np.rint(np.sqrt(area * ratio)).astype(int), np.rint(np.sqrt(area / ratio)).astype(int)
    fits = (width > 0) & (width <= image_width) & (height > 0) & (height <= image_height)
    top, left = (top * (image_height - height + 1)).astype(int), (left * (image_width - width + 1)).astype(int)
    first = fits.argmax(axis=1)
    boxes = np.stack([top, left, height, width], axis=-1)[np.arange(len(draws)), first]
    # Where no try fitted: the largest center crop within the allowed ratios.
    for row in np.flatnonzero(~fits.any(axis=1)):
        h, w = int(heights[row]), int(widths[row])
        height, width = min(h, round(w / CROP_RATIO[0])), min(w, round(h * CROP_RATIO[1]))
        boxes[row] = (h - height) // 2, (w - width) // 2, height, width
    return boxes


def patch_noise(seed: int, epoch: int, index: np.ndarray, num_patches: int) -> np.ndarray:
    """(B, num_patches) uniform numbers in [0, 1), none of which an augmentation uses."""
    return uniforms(seed, epoch, index, num_patches, first=2 * (CROP_DRAWS + COLOR_DRAWS))


def random_masks(seed: int, epoch: int, index: np.ndarray, num_patches: int, num_masked: int) -> np.ndarray:
    """A mask of each image, (B, num_patches) bool, with exactly ``num_masked`` True, each patch by itself."""
    order = patch_noise(seed, epoch, index, num_patches).argsort(axis=1)
    mask = np.zeros(order.shape, dtype=bool)
    np.put_along_axis(mask, order[:, :num_masked], True, axis=1)
    return mask


def block_masks(
    seed: int, epoch: int, index: np.ndarray, grid_size: int, num_masked: int, min_block: int
) -> np.ndarray:
    """A block-wise mask of each image, (B, N) bool."""
    generators = (Random(f"{seed} {epoch} {number}") for number in index)
    return np.stack([block_mask(grid_size, num_masked, min_block, generator) for generator in generators])


def block_mask(grid_size: int, num_masked: int, min_block: int, random: Random) -> np.ndarray:
    """BEiT's block-wise mask (N,) bool with exactly ``num_masked`` True: random rectangles, then single cells to fill
    up."""
    mask = np.zeros((grid_size, grid_size), dtype=bool)
    aspect = math.log(1 / 0.3)
    count = 0
    while count < num_masked:
        room = num_masked - count
        for _ in range(10):
            area = random.uniform(min_block, room)
            ratio = math.exp(random.uniform(-aspect, aspect))
            height, width = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if not (0 < height < grid_size and 0 < width < grid_size):
                continue
            top, left = int(random.random() * (grid_size - height + 1)), int(random.random() * (grid_size - width + 1))
            block = mask[top : top + height, left : left + width]
            added = height * width - int(np.count_nonzero(block))
            if 0 < added <= room:
                block[:] = True
                count += added
                break
        else:
            break  # no block fits any more
    flat = mask.reshape(-1)
    flat[random.sample(np.flatnonzero(~flat).tolist(), num_masked - count)] = True
    return flat


def crop(images: list[Tensor], index: np.ndarray, epoch: int, config: PretrainConfig) -> Crops:
    """Images (3, H, W) uint8 of any sizes to the resized crops of each. An image is flipped as a whole and cropped
    then."""
    draws = uniforms(config.seed, epoch, index, 2 * CROP_DRAWS).reshape(len(images), 2, CROP_DRAWS)
    if config.one_crop:
        draws[:, 1] = draws[:, 0]
    heights, widths = (np.array([image.shape[axis] for image in images]) for axis in (-2, -1))
    flipped = draws[:, :, -1] < config.flip_probability
    taken = range(config.num_views)
    boxes = [crop_boxes(draws[:, view, :-1], heights, widths, config.crop_scale) for view in taken]
    views = [_resized_crops(images, boxes[view], flipped[:, view], config.img_size, config) for view in taken]
    mask = config.draw_mask(epoch, index)
    return Crops(
        views[0],
        views[1] if config.num_views == 2 else None,
        torch.from_numpy(boxes[0]),
        torch.from_numpy(boxes[-1]),
        torch.from_numpy(flipped[:, 0]),
        torch.from_numpy(flipped[:, config.num_views - 1]),
        torch.from_numpy(widths),
        None if mask is None else torch.from_numpy(mask),
        torch.from_numpy(np.asarray(index)),
        _small_crops(images, index, epoch, heights, widths, config) if config.small_views else None,
    )


def _small_crops(
    images: list[Tensor],
    index: np.ndarray,
    epoch: int,
    heights: np.ndarray,
    widths: np.ndarray,
    config: PretrainConfig,
) -> Tensor:
    """The small views (B, V, 3, s, s) of images of the given sizes, uint8."""
    draws = uniforms(config.seed, epoch, index, config.small_views * CROP_DRAWS, first=SMALL_FIRST)
    views = []
    for own in np.split(draws, config.small_views, axis=1):
        boxes = crop_boxes(own[:, :-1], heights, widths, config.small_scale)
        views.append(_resized_crops(images, boxes, own[:, -1] < config.flip_probability, config.small_size, config))
    return torch.stack(views, dim=1)


def _resized_crops(
    images: list[Tensor], boxes: np.ndarray, flipped: np.ndarray, size: int, config: PretrainConfig
) -> Tensor:
    """Crops of the flipped images (B, 3, S, S) of ``size`` S, cut from the unflipped ones: only the crop is turned.

    They keep the colours of a pixel next to each other in memory, as the decoder leaves them: resizing is fastest so.
    """
    crops = []
    for image, (top, left, height, width), flip in zip(images, boxes.tolist(), flipped.tolist(), strict=True):
        if flip:
            left = image.shape[-1] - left - width
        pixels = np.ascontiguousarray(image.permute(1, 2, 0).numpy()[top : top + height, left : left + width])
        crop = torch.from_numpy(pixels)[None].permute(0, 3, 1, 2)
        crop = F.interpolate(crop, (size,) * 2, mode=config.interpolation, antialias=True)
        crops.append(crop.flip(-1) if flip else crop)
    return torch.cat(crops)


@full_float32()  # precision tf32 is the encoder's: colors keep their digits
def augment(crops: Crops, epoch: int, config: PretrainConfig) -> Batch:
    """Color, blur, solarization, normalization and masking of the views, on the device where the crops lie."""
    index = crops.index.numpy()
    draws = uniforms(config.seed, epoch, index, 2 * COLOR_DRAWS, first=2 * CROP_DRAWS).reshape(len(index), 2, -1)
    large = [view for view in (crops.view1, crops.view2) if view is not None]
    numbers = np.arange(len(large)).repeat(len(index))
    pixels = augment_images(
        torch.cat(large), draws.swapaxes(0, 1)[: len(large)].reshape(-1, COLOR_DRAWS), numbers, config
    )
    finished = [config.finish_view(view, number, epoch, index) for number, view in enumerate(pixels.chunk(len(large)))]
    geometry = None
    if config.needs_geometry:
        geometry = relative_geometry(crops.crop1, crops.crop2, crops.flipped1, crops.flipped2, crops.image_width)
        geometry = geometry.to(pixels.device)
    noise = config.draw_noise(epoch, index)
    small = None
    if crops.small is not None:
        first = SMALL_FIRST + config.small_views * CROP_DRAWS
        colors = uniforms(config.seed, epoch, index, config.small_views * COLOR_DRAWS, first=first)
        colors = colors.reshape(-1, COLOR_DRAWS)
        small = augment_images(crops.small.flatten(0, 1), colors, np.ones(len(colors), dtype=int), config)
        small = small.view(crops.small.shape)
    return Batch(
        finished[0],
        finished[1] if len(large) == 2 else None,
        crops.mask,
        geometry,
        crops.index,
        None if noise is None else torch.from_numpy(noise).to(pixels.device, non_blocking=True),
        small,
        crops.text,
    )
