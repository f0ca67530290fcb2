"""Two augmented views of an image, their crops, and the block mask of the online view.

A worker cuts the crops (``cut``); colour, blur and normalisation run on whole batches (``finish``), on the model's device. Every
random choice is made from numbers that depend on (seed, epoch, image index) alone, so that neither the number of workers nor a
restart changes a run. Axes: B batch, H W source image, S = img_size, N patches.
"""

import itertools
import math
from dataclasses import dataclass
from random import Random

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pretrain.config import PretrainConfig
from pretrain.geometry import RelativeGeometry, relative_geometry

CROP_TRIES = 10  # as torchvision's RandomResizedCrop
CROP_RATIO = (3 / 4, 4 / 3)
SOLARIZE_THRESHOLD = 128 / 255  # PIL's default
CUT_DRAWS = 4 * CROP_TRIES + 1  # random numbers a view: crop and flip
COLOUR_DRAWS = 13  # random numbers a view: everything in ``_colour``
JITTER_ORDERS = np.array(list(itertools.permutations(range(4))))


@dataclass(frozen=True)
class Cut:
    """Crops of a batch: two views (B, 3, S, S) uint8, their boxes (B, 4) and flips (B,), image widths (B,), mask (B, N), indices (B,)."""

    view1: Tensor
    view2: Tensor
    crop1: Tensor
    crop2: Tensor
    flipped1: Tensor
    flipped2: Tensor
    image_width: Tensor
    mask: Tensor
    index: Tensor


@dataclass(frozen=True)
class Batch:
    """What a method trains on: views (B, 3, S, S) normalised, mask (B, N) bool, geometry of view 2 in view 1, indices (B,).

    ``noise`` (B, N) are uniform numbers for methods that mask single patches at random.
    """

    view1: Tensor
    view2: Tensor
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
    """Images (3, H, W) uint8 of any sizes to the two resized crops of each. The whole image is flipped before it is cropped."""
    draws = uniforms(config.seed, epoch, index, 2 * CUT_DRAWS).reshape(len(images), 2, CUT_DRAWS)
    heights, widths = (np.array([image.shape[axis] for image in images]) for axis in (-2, -1))
    flipped = draws[:, :, -1] < config.flip_probability
    boxes = [crop_boxes(draws[:, view, :-1], heights, widths, config.crop_scale) for view in range(2)]
    views = [_resized_crops(images, boxes[view], flipped[:, view], config.img_size) for view in range(2)]
    generators = (Random(f"{config.seed} {epoch} {number}") for number in index)
    masks = [block_mask(config.grid_size, config.num_masked, config.min_block, generator) for generator in generators]
    return Cut(
        *views,
        *(torch.from_numpy(box) for box in boxes),
        torch.from_numpy(flipped[:, 0]),
        torch.from_numpy(flipped[:, 1]),
        torch.from_numpy(widths),
        torch.from_numpy(np.stack(masks)),
        torch.from_numpy(np.asarray(index)),
    )


def _resized_crops(images: list[Tensor], boxes: np.ndarray, flipped: np.ndarray, size: int) -> Tensor:
    """Crops of the flipped images (B, 3, S, S), cut from the unflipped ones: only the crop is turned over."""
    crops = []
    for image, (top, left, height, width), flip in zip(images, boxes.tolist(), flipped.tolist(), strict=True):
        if flip:
            left = image.shape[-1] - left - width
        crop = image[None, :, top : top + height, left : left + width]
        crop = F.interpolate(crop, (size, size), mode="bicubic", antialias=True)
        crops.append(crop.flip(-1) if flip else crop)
    return torch.cat(crops)


def finish(crops: Cut, epoch: int, config: PretrainConfig) -> Batch:
    """Colour, blur, solarisation and normalisation of both views, on the device where the crops lie."""
    device, batch = crops.view1.device, len(crops.view1)
    draws = uniforms(config.seed, epoch, crops.index.cpu().numpy(), 2 * (CUT_DRAWS + COLOUR_DRAWS) + config.num_patches)
    _, colour1, colour2, noise = np.split(draws, np.cumsum([2 * CUT_DRAWS, COLOUR_DRAWS, COLOUR_DRAWS]), axis=1)
    draws = np.concatenate([colour1, colour2])
    mean, std = (torch.tensor(values, device=device).view(3, 1, 1) for values in (config.mean, config.std))
    images = torch.cat([crops.view1, crops.view2]).float() / 255
    blur, solarize = (np.repeat(p, batch) for p in (config.blur_probability, config.solarize_probability))
    images = (_colour(images, draws, blur, solarize, config) - mean) / std
    geometry = relative_geometry(crops.crop1, crops.crop2, crops.flipped1, crops.flipped2, crops.image_width)
    return Batch(images[:batch], images[batch:], crops.mask, geometry, crops.index, torch.from_numpy(noise).to(device))


def _colour(images: Tensor, draws: np.ndarray, blur: np.ndarray, solarize: np.ndarray, config: PretrainConfig) -> Tensor:
    """ColorJitter, grey, blur and solarisation of images (B, 3, S, S) in [0, 1] by draws (B, COLOUR_DRAWS) in [0, 1).

    ``blur`` and ``solarize`` (B,) are the probabilities of each image. The choices are made on the CPU, so no device has to wait.
    """
    device = images.device

    def rows(chosen: np.ndarray) -> Tensor:
        return torch.from_numpy(np.flatnonzero(chosen)).to(device)

    jittered = draws[:, 0] < config.jitter_probability
    images = images.index_copy(0, rows(jittered), color_jitter(images[rows(jittered)], draws[jittered, 1:6], config.jitter))
    gray = rows(draws[:, 6] < config.gray_probability)
    images[gray] = grayscale(images[gray]).expand(-1, 3, -1, -1)
    blurred = draws[:, 7] < blur
    low, high = config.blur_sigma
    sigma = torch.from_numpy(low + (high - low) * draws[blurred, 8]).float().to(device)
    images[rows(blurred)] = gaussian_blur(images[rows(blurred)], sigma, reach=math.ceil(4 * high))
    solarized = rows(draws[:, 9] < solarize)
    part = images[solarized]
    images[solarized] = torch.where(part >= SOLARIZE_THRESHOLD, 1 - part, part)
    return images


def color_jitter(images: Tensor, draws: np.ndarray, strength: tuple[float, float, float, float]) -> Tensor:
    """torchvision's ColorJitter of images (B, 3, S, S) in [0, 1], each with its own order and factors from draws (B, 5) in [0, 1).

    The first four draws are brightness, contrast, saturation and hue, the fifth the order.
    """
    orders = JITTER_ORDERS[(draws[:, 4] * len(JITTER_ORDERS)).astype(int)]
    factors = np.maximum(1 + np.array(strength[:3]) * (2 * draws[:, :3] - 1), 0)
    hue_shift = strength[3] * (2 * draws[:, 3] - 1)
    images = images.clone()
    for position in range(4):
        for operation in range(4):
            chosen = np.flatnonzero(orders[:, position] == operation)
            rows = torch.from_numpy(chosen).to(images.device)
            part = images[rows]
            if operation == 3:
                images[rows] = shift_hue(part, torch.from_numpy(hue_shift[chosen]).float().to(images.device))
                continue
            factor = torch.from_numpy(factors[chosen, operation]).float().to(images.device).view(-1, 1, 1, 1)
            if operation == 0:
                part = factor * part
            else:
                other = grayscale(part)
                other = other.mean((1, 2, 3), keepdim=True) if operation == 1 else other
                part = torch.lerp(other.expand_as(part), part, factor)
            images[rows] = part.clamp_(0, 1)
    return images


def grayscale(images: Tensor) -> Tensor:
    """(B, 3, S, S) to the luma (B, 1, S, S) of ITU-R 601."""
    return (images * torch.tensor([0.299, 0.587, 0.114], device=images.device).view(3, 1, 1)).sum(1, keepdim=True)


def shift_hue(images: Tensor, shift: Tensor) -> Tensor:
    """Turns the hue of images (B, 3, S, S) by ``shift`` (B,) turns, as HSV does: saturation and value stay."""
    high, low = images.amax(1, keepdim=True), images.amin(1, keepdim=True)
    chroma = high - low
    safe = torch.where(chroma == 0, torch.ones_like(chroma), chroma)
    red, green, blue = images.split(1, dim=1)
    hue = torch.where(
        high == red, ((green - blue) / safe) % 6, torch.where(high == green, (blue - red) / safe + 2, (red - green) / safe + 4)
    )
    hue = hue + 6 * shift.view(-1, 1, 1, 1)
    sectors = (torch.tensor([5.0, 3.0, 1.0], device=images.device).view(1, 3, 1, 1) + hue) % 6
    return high - chroma * torch.minimum(sectors, 4 - sectors).clamp(0, 1)


def gaussian_blur(images: Tensor, sigma: Tensor, reach: int) -> Tensor:
    """Blurs images (B, 3, S, S) with their own ``sigma`` (B,) pixels, ``reach`` pixels each way; the border is repeated outwards.

    Each direction is one product with a banded (S, S) matrix, so that a batch with many sigmas needs no loop.
    """
    size = images.shape[-1]
    offsets = torch.arange(-reach, reach + 1, device=images.device)
    weights = torch.exp(-0.5 * (offsets / sigma[:, None]) ** 2)
    weights = weights / weights.sum(1, keepdim=True)
    columns = (torch.arange(size, device=images.device)[:, None] + offsets).clamp(0, size - 1)
    kernel = torch.zeros(len(images), size, size, device=images.device)
    kernel.scatter_add_(2, columns.expand(len(images), -1, -1), weights[:, None].expand(-1, size, -1))
    kernel = kernel[:, None]
    return kernel @ images @ kernel.mT
