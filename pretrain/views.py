"""Two augmented views of an image, their crops, and the block mask of the online view.

A worker cuts the crops (``cut``); colour, blur and normalisation run on whole batches (``finish``), on the model's device. Every
random choice is made from numbers that depend on (seed, epoch, image index) alone, so that neither the number of workers nor a
restart changes a run. Axes: B batch, H W source image, S = img_size, N patches.
"""

import functools
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pretrain.config import PretrainConfig
from pretrain.geometry import RelativeGeometry, relative_geometry

CROP_TRIES = 10  # as torchvision's RandomResizedCrop
CROP_RATIO = (3 / 4, 4 / 3)
LUMA = (0.299, 0.587, 0.114)  # ITU-R 601
CUT_DRAWS = 4 * CROP_TRIES + 1  # random numbers a view: crop and flip
COLOUR_DRAWS = 13  # random numbers a view: everything in ``_colour``
CPU_PIXELS = 224 * 224  # coloured at once on a CPU: they stay in its cache, and few images wait for another's operation
JITTER_ORDERS = np.array(list(itertools.permutations(range(4))))


class Cut(NamedTuple):
    """Crops of a batch: two views (B, 3, S, S) uint8, their boxes (B, 4) and flips (B,), image widths (B,), mask (B, N), indices (B,).

    With ``num_views`` 1 ``view2`` is None; its box and flip are view 1's.
    """

    view1: Tensor
    view2: Tensor | None
    crop1: Tensor
    crop2: Tensor
    flipped1: Tensor
    flipped2: Tensor
    image_width: Tensor
    mask: Tensor
    index: Tensor

    def to(self, device: torch.device | str) -> "Cut":
        """On a device, all but the indices: from them the CPU makes the random choices, and need not wait."""
        return Cut(*(tensor if tensor is None else tensor.to(device, non_blocking=True) for tensor in self[:-1]), self.index)


@dataclass(frozen=True)
class Batch:
    """What a method trains on: views (B, 3, S, S) normalised, mask (B, N) bool, geometry of view 2 in view 1, indices (B,).

    ``view2`` is None for a method of one view.

    ``noise`` (B, N) are uniform numbers for methods that mask single patches at random.
    """

    view1: Tensor
    view2: Tensor | None
    mask: Tensor
    geometry: RelativeGeometry
    index: Tensor
    noise: Tensor


def uniforms(seed: int, epoch: int, index: np.ndarray, count: int) -> np.ndarray:
    """(B, count) numbers in [0, 1) by a counter-based hash (SplitMix64) of (seed, epoch, index, position)."""
    weyl = np.uint64(0x9E3779B97F4A7C15)
    with np.errstate(over="ignore"):
        state = _mix(np.uint64(seed) * weyl + np.uint64(epoch + 1))
        state = _mix(state + np.asarray(index, dtype=np.uint64) * np.uint64(0xD1342543DE82EF95))
        state = _mix(state[:, None] + np.arange(1, count + 1, dtype=np.uint64) * weyl)
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
    # Where no try fitted: the largest centre crop within the allowed ratios.
    for row in np.flatnonzero(~fits.any(axis=1)):
        h, w = int(heights[row]), int(widths[row])
        height, width = min(h, round(w / CROP_RATIO[0])), min(w, round(h * CROP_RATIO[1]))
        boxes[row] = (h - height) // 2, (w - width) // 2, height, width
    return boxes


def block_mask(grid_size: int, num_masked: int, min_block: int, random: Random) -> np.ndarray:
    """BEiT's block-wise mask (N,) bool with exactly ``num_masked`` True: random rectangles, then single cells to fill up."""
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


def cut(images: list[Tensor], index: np.ndarray, epoch: int, config: PretrainConfig) -> Cut:
    """Images (3, H, W) uint8 of any sizes to the resized crops of each. The whole image is flipped before it is cropped."""
    draws = uniforms(config.seed, epoch, index, 2 * CUT_DRAWS).reshape(len(images), 2, CUT_DRAWS)
    heights, widths = (np.array([image.shape[axis] for image in images]) for axis in (-2, -1))
    flipped = draws[:, :, -1] < config.flip_probability
    taken = range(config.num_views)
    boxes = [crop_boxes(draws[:, view, :-1], heights, widths, config.crop_scale) for view in taken]
    views = [_resized_crops(images, boxes[view], flipped[:, view], config.img_size) for view in taken]
    generators = (Random(f"{config.seed} {epoch} {number}") for number in index)
    masks = [block_mask(config.grid_size, config.num_masked, config.min_block, generator) for generator in generators]
    return Cut(
        views[0],
        views[1] if config.num_views == 2 else None,
        torch.from_numpy(boxes[0]),
        torch.from_numpy(boxes[-1]),
        torch.from_numpy(flipped[:, 0]),
        torch.from_numpy(flipped[:, config.num_views - 1]),
        torch.from_numpy(widths),
        torch.from_numpy(np.stack(masks)),
        torch.from_numpy(np.asarray(index)),
    )


def _resized_crops(images: list[Tensor], boxes: np.ndarray, flipped: np.ndarray, size: int) -> Tensor:
    """Crops of the flipped images (B, 3, S, S), cut from the unflipped ones: only the crop is turned over.

    They keep the colours of a pixel next to each other in memory, as the decoder leaves them: resizing is fastest so.
    """
    crops = []
    for image, (top, left, height, width), flip in zip(images, boxes.tolist(), flipped.tolist(), strict=True):
        if flip:
            left = image.shape[-1] - left - width
        pixels = np.ascontiguousarray(image.permute(1, 2, 0).numpy()[top : top + height, left : left + width])
        crop = torch.from_numpy(pixels)[None].permute(0, 3, 1, 2)
        crop = F.interpolate(crop, (size, size), mode="bicubic", antialias=True)
        crops.append(crop.flip(-1) if flip else crop)
    return torch.cat(crops)


def finish(crops: Cut, epoch: int, config: PretrainConfig) -> Batch:
    """Colour, blur, solarisation and normalisation of the views, on the device where the crops lie."""
    draws = uniforms(config.seed, epoch, crops.index.numpy(), 2 * (CUT_DRAWS + COLOUR_DRAWS) + config.num_patches)
    _, colour1, colour2, noise = np.split(draws, np.cumsum([2 * CUT_DRAWS, COLOUR_DRAWS, COLOUR_DRAWS]), axis=1)
    view1 = _finished(crops.view1, colour1, 0, config)
    view2 = None if crops.view2 is None else _finished(crops.view2, colour2, 1, config)
    geometry = relative_geometry(crops.crop1, crops.crop2, crops.flipped1, crops.flipped2, crops.image_width)
    return Batch(view1, view2, crops.mask, geometry, crops.index, torch.from_numpy(noise).to(view1.device))


def _finished(pixels: Tensor, draws: np.ndarray, number: int, config: PretrainConfig) -> Tensor:
    """View ``number`` (0 or 1), (B, 3, S, S) uint8 to normalised, by draws (B, COLOUR_DRAWS) in [0, 1)."""
    device, batch = pixels.device, len(pixels)
    mean, std = (torch.tensor(values, device=device).view(3, 1, 1) for values in (config.mean, config.std))
    rows = max(1, CPU_PIXELS // config.img_size**2) if device.type == "cpu" else batch
    view = torch.empty(pixels.shape, device=device)
    for first in range(0, batch, rows):
        part = slice(first, first + rows)
        images = view[part].copy_(pixels[part]).div_(255)  # from here on colour by colour
        images = _colour(images, draws[part], config.blur_probability[number], config.solarize_probability[number], config)
        torch.sub(images, mean, out=view[part]).div_(std)
    return view


def _colour(images: Tensor, draws: np.ndarray, blur: float, solarize: float, config: PretrainConfig) -> Tensor:
    """ColorJitter, grey, blur and solarisation of images (B, 3, S, S) in [0, 1] by draws (B, COLOUR_DRAWS) in [0, 1).

    ``blur`` and ``solarize`` are probabilities. The choices are made on the CPU, so no device has to wait. ``images`` are changed.
    """
    jitter = draws[:, 1:5], JITTER_ORDERS[(draws[:, 5] * len(JITTER_ORDERS)).astype(int)]
    jittered = draws[:, 0] < config.jitter_probability
    images = color_jitter(images, *jitter, config.jitter, jittered)
    images = _where(draws[:, 6] < config.gray_probability, lambda part: grayscale(part).expand(-1, 3, -1, -1), images)
    low, high = config.blur_sigma
    sigma = torch.from_numpy(low + (high - low) * draws[:, 8]).float().to(images.device)
    blurred = functools.partial(gaussian_blur, reach=math.ceil(4 * high))
    images = _where(draws[:, 7] < blur, blurred, images, sigma)
    return _where(draws[:, 9] < solarize, lambda part: torch.minimum(part, 1 - part), images)


def _where(chosen: np.ndarray, operation: Callable[..., Tensor], images: Tensor, *amounts: Tensor) -> Tensor:
    """The images (B, 3, S, S), those ``chosen`` (B,) after an operation by their amounts (B,), the others as they were."""
    if not chosen.any():
        return images
    if chosen.all():
        return operation(images, *amounts)
    rows = torch.from_numpy(np.flatnonzero(chosen)).to(images.device)
    return images.index_copy_(0, rows, operation(images.index_select(0, rows), *(amount[rows] for amount in amounts)))


def color_jitter(
    images: Tensor, draws: np.ndarray, orders: np.ndarray, strength: tuple[float, float, float, float], chosen: np.ndarray
) -> Tensor:
    """torchvision's ColorJitter of the ``chosen`` (B,) of images (B, 3, S, S) in [0, 1], which are changed.

    Draws (B, 4) in [0, 1) and strength are of brightness, contrast, saturation and hue; ``orders`` (B, 4) are permutations of them.
    """
    amounts = np.array(strength) * (2 * draws - 1)
    amounts[:, :3] = np.maximum(1 + amounts[:, :3], 0)
    amounts = torch.from_numpy(amounts).float().to(images.device)
    operations = (adjust_brightness, adjust_contrast, adjust_saturation, shift_hue)
    for position in range(4):
        for number in np.unique(orders[chosen, position]):
            images = _where(chosen & (orders[:, position] == number), operations[number], images, amounts[:, number])
    return images


def adjust_brightness(images: Tensor, factor: Tensor) -> Tensor:
    """Multiplies images (B, 3, S, S) in [0, 1], in place, by ``factor`` (B,)."""
    return images.mul_(factor.view(-1, 1, 1, 1)).clamp_(0, 1)


def adjust_contrast(images: Tensor, factor: Tensor) -> Tensor:
    """Moves images (B, 3, S, S) in [0, 1], in place, from their mean luma (``factor`` 0) to themselves (1) and on; ``factor`` is (B,)."""
    luma = (images.mean((2, 3)) * torch.tensor(LUMA, device=images.device)).sum(1)
    return images.mul_(factor.view(-1, 1, 1, 1)).add_(((1 - factor) * luma).view(-1, 1, 1, 1)).clamp_(0, 1)


def adjust_saturation(images: Tensor, factor: Tensor) -> Tensor:
    """Moves images (B, 3, S, S) in [0, 1], in place, from grey (``factor`` 0) to themselves (1) and on; ``factor`` is (B,)."""
    factor = factor.view(-1, 1, 1, 1)
    gray = grayscale(images).mul_(1 - factor)
    return images.mul_(factor).add_(gray).clamp_(0, 1)


def grayscale(images: Tensor) -> Tensor:
    """(B, 3, S, S) to the luma (B, 1, S, S) of ITU-R 601."""
    red, green, blue = images.split(1, dim=1)
    return (LUMA[0] * red).add_(green, alpha=LUMA[1]).add_(blue, alpha=LUMA[2])


def shift_hue(images: Tensor, turns: Tensor) -> Tensor:
    """Turns the hue of images (B, 3, S, S), in place, by ``turns`` (B,) of the circle, as HSV does: saturation and value stay.

    On the circle of six sectors with red at 0, green at 2 and blue at -2, a channel is full within 1 of its own place and gone from 2
    on. So a colour of channels scaled to [0, 1] lies 1 - red + green + blue from red, on the side of the greater of green and blue.
    """
    red, green, blue = images.unbind(1)
    high, low = torch.maximum(red, green), torch.minimum(red, green)
    low = torch.minimum(low, blue, out=low)
    chroma = torch.maximum(high, blue, out=high).sub_(low)
    from_red = (green + blue).sub_(red).sub_(low).div_(chroma.clamp(min=1e-12)).add_(1)
    circle = from_red.copysign_(green - blue).div_(6).add_(turns[:, None, None])
    sectors = circle.sub_(circle.round()).mul_(6)  # in [-3, 3]
    for channel, place in enumerate((0, 2, -2)):
        # 2 - the distance on the circle, of places at most 5 apart on the line
        share = (sectors - place).abs_().sub_(3).abs_().sub_(1).clamp_(0, 1)
        torch.addcmul(low, chroma, share, out=images[:, channel])
    return images


def gaussian_blur(images: Tensor, sigma: Tensor, reach: int) -> Tensor:
    """Blurs images (B, 3, S, S) with their own ``sigma`` (B,) pixels, ``reach`` pixels each way; the border is repeated outwards.

    Each direction is a product with one banded (T, T + 2 reach) matrix for every stretch of T pixels: a matrix of the whole side would
    be nearly all zeros, and a convolution with a group an image is no faster than that.
    """
    batch, channels, size, _ = images.shape
    tile = next(t for t in range(min(size, 32), 0, -1) if size % t == 0)
    offsets = torch.arange(-reach, reach + 1, device=images.device)
    weights = torch.exp(-0.5 * (offsets / sigma[:, None]) ** 2)
    weights = F.threshold(weights, 1e-9, 0)  # numbers below float's normal range are slow
    weights = weights / weights.sum(1, keepdim=True)
    band = torch.zeros(batch, tile, tile + 2 * reach, device=images.device)
    band.as_strided((batch, tile, 2 * reach + 1), (band.stride(0), band.stride(1) + 1, 1)).copy_(weights[:, None])
    images = F.pad(images, (reach, reach, reach, reach), mode="replicate")
    stretches = images.unfold(2, tile + 2 * reach, tile).mT
    images = (band[:, None, None] @ stretches).reshape(batch, channels, size, size + 2 * reach)
    stretches = images.unfold(3, tile + 2 * reach, tile)
    return (stretches.reshape(batch, -1, tile + 2 * reach) @ band.mT).view(batch, channels, size, size)
