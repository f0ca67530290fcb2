"""Colour, blur and solarisation of whole batches: tensors (B, 3, S, S) in and out, on the device where they lie.

All random choices and all small numbers are made on the CPU, so that no device has to wait, and each operation is asked
for once for all images that it concerns.
"""

import functools
import itertools
import math
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pretrain.config import PretrainConfig

LUMA = (0.299, 0.587, 0.114)  # ITU-R 601
GRAY = np.tile(LUMA, (3, 1))  # takes a color to its luma in each channel
COLOR_DRAWS = 13  # random numbers a view: everything in ``_augment``
CPU_PIXELS = 224 * 224  # coloured at once on a CPU: they stay in its cache, and few images wait for another's operation
CONTRAST, SATURATION, HUE = 1, 2, 3  # numbers of ColorJitter's operations; brightness is 0
PLACES = torch.tensor([0.0, 2.0, -2.0])  # of red, green and blue on the circle of six sectors
JITTER_ORDERS = np.array(list(itertools.permutations(range(4))))


def augment_images(pixels: Tensor, draws: np.ndarray, numbers: np.ndarray, config: PretrainConfig) -> Tensor:
    """Views (B, 3, S, S) uint8 to normalized, by draws (B, COLOR_DRAWS) in [0, 1); ``numbers`` (B,) tell which view of
    its image (0 or 1) each is."""
    if pixels.device.type != "cpu":
        return _augment(pixels, draws, numbers, config)
    rows = max(1, CPU_PIXELS // pixels.shape[-1] ** 2)
    views = torch.empty(pixels.shape)
    for first in range(0, len(pixels), rows):
        part = slice(first, first + rows)
        views[part] = _augment(pixels[part], draws[part], numbers[part], config)
    return views


def _augment(pixels: Tensor, draws: np.ndarray, numbers: np.ndarray, config: PretrainConfig) -> Tensor:
    """ColorJitter, grey, normalization, blur and solarisation, as ``augment_images``; the last two commute with
    normalization."""
    colored = (numbers == 1) | (not config.plain_view1)
    of_view = (np.array(pair)[numbers] for pair in (config.blur_probability, config.solarize_probability))
    probabilities = {
        0: config.jitter_probability,
        6: config.gray_probability,
        **dict(zip((7, 9), of_view, strict=True)),
    }
    chosen = [colored & (draws[:, place] < probability) for place, probability in probabilities.items()]
    jittered, grayed, blurred, solarized = chosen
    images = torch.empty(pixels.shape, device=pixels.device)  # colour by colour, as pixels need not be
    mean, std = np.array(config.mean)[:, None, None], np.array(config.std)[:, None, None]
    if not np.any(chosen):
        shift, scale = (_float(values, pixels.device) for values in (-mean / std, 1 / (255 * std)))
        return torch.addcmul(shift, pixels, scale, out=images)
    torch.div(pixels, 255, out=images)
    if config.gray_first:
        images = _at(np.flatnonzero(grayed), _gray, images)
    orders = JITTER_ORDERS[(draws[:, 5] * len(JITTER_ORDERS)).astype(int)]
    images = color_jitter(images, draws[:, 1:5], orders, config.jitter, jittered)
    images = normalize(images, grayed & (not config.gray_first), mean, std)
    low, high = config.blur_sigma
    sigma = torch.from_numpy(low + (high - low) * draws[blurred, 8]).float()
    blur = functools.partial(gaussian_blur, sigma=sigma, reach=math.ceil(4 * high))
    images = _at(np.flatnonzero(blurred), blur, images)
    return _at(np.flatnonzero(solarized), functools.partial(_solarize, mean=mean, std=std), images)


def _at(rows: np.ndarray, operation: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """The images (B, 3, S, S), which may be changed, those of ``rows`` after an operation that takes them in this
    order."""
    if not len(rows):
        return images
    if np.array_equal(rows, np.arange(len(images))):
        return operation(images)
    places = torch.from_numpy(rows).to(images.device, non_blocking=True)
    return images.index_copy_(0, places, operation(images.index_select(0, places)))


def _gray(images: Tensor) -> Tensor:
    red, green, blue = images.split(1, dim=1)
    return (LUMA[0] * red).add_(green, alpha=LUMA[1]).add_(blue, alpha=LUMA[2]).repeat(1, 3, 1, 1)


def normalize(images: Tensor, grayed: np.ndarray, mean: np.ndarray, std: np.ndarray) -> Tensor:
    """Images (B, 3, S, S) in [0, 1], which may be changed, the ``grayed`` (B,) as their luma, minus ``mean`` (3, 1, 1)
    and divided by ``std``: a single product, or by parts where none is gray, which is faster on a CPU."""
    if not grayed.any():
        return images.sub_(_float(mean, images.device)).div_(_float(std, images.device))
    colors = np.where(grayed[:, None, None], GRAY, np.eye(3)) / std[:, 0]
    shift, mix = (_float(values, images.device) for values in ((-mean / std)[:, 0], colors))
    return torch.baddbmm(shift, mix, images.flatten(2)).view_as(images)


def _solarize(images: Tensor, mean: np.ndarray, std: np.ndarray) -> Tensor:
    """The lesser of each value and its negative, of normalized images."""
    black_and_white = _float((1 - 2 * mean) / std, images.device)  # the sum of the two ends
    return torch.minimum(images, black_and_white - images)


def _float(values: np.ndarray, device: torch.device) -> Tensor:
    return torch.from_numpy(values).float().to(device, non_blocking=True)


def color_jitter(
    images: Tensor,
    draws: np.ndarray,
    orders: np.ndarray,
    strength: tuple[float, float, float, float],
    chosen: np.ndarray,
) -> Tensor:
    """torchvision's ColorJitter of the ``chosen`` (B,) of images (B, 3, S, S) in [0, 1], which are changed.

    Draws (B, 4) in [0, 1) and strength are of brightness, contrast, saturation and hue; ``orders`` (B, 4) are
    permutations of them.
    """
    rows = np.flatnonzero(chosen)
    rows = rows[_hue_positions(orders[rows]).argsort(kind="stable")]
    amounts = np.array(strength) * (2 * draws[rows] - 1)
    amounts[:, :HUE] = np.maximum(1 + amounts[:, :HUE], 0)
    return _at(rows, functools.partial(_jitter, amounts=amounts, orders=orders[rows]), images)


def _hue_positions(orders: np.ndarray) -> np.ndarray:
    """(B,) when the hue's turn comes, 0 to 3."""
    return (orders == HUE).argmax(axis=1)


def _jitter(images: Tensor, amounts: np.ndarray, orders: np.ndarray) -> Tensor:
    """ColorJitter of images in the order of their hue's positions, in place, by amounts and ``orders`` (B, 4).

    So images that wait for a turn of the hue lie side by side: the hue of all is turned once, after what comes before
    it and before what comes after it.
    """
    ends = np.searchsorted(_hue_positions(orders), np.arange(HUE), side="right")
    steps = orders[orders != HUE].reshape(-1, HUE)
    factors = np.take_along_axis(amounts, steps, axis=1)[..., None, None]
    rest, operation = (1 - factors) * GRAY, steps[..., None, None]
    of_pixel = factors * np.eye(3) + np.where(operation == SATURATION, rest, 0)
    of_mean = np.where(operation == CONTRAST, rest, 0)
    pixel, mean = _float(np.stack([of_pixel, of_mean]), images.device)  # each (B, 3, 3, 3): step by step

    def adjust(part: slice, step: int) -> None:
        if operations := set(steps[part, step].tolist()):
            _adjust(images[part].flatten(2), pixel[part, step], mean[part, step], operations)

    for step, end in enumerate(ends):
        adjust(slice(int(end), None), step)
    shift_hue(images, torch.from_numpy(amounts[:, HUE]).float())
    for step, end in enumerate(ends):
        adjust(slice(int(end)), step)
    return images


def _adjust(colors: Tensor, of_pixel: Tensor, of_mean: Tensor, operations: set[int]) -> None:
    """Makes of colors (B, 3, P), in place, the product with ``of_pixel`` plus that of their mean with ``of_mean`` (each
    (B, 3, 3)), within [0, 1]; ``operations`` are those of which the factors are.

    With f the amount and G the matrix that gives the luma, brightness has f I of the pixel, saturation f I + (1 - f) G,
    and contrast f I and (1 - f) G of the mean.
    """
    shift = torch.bmm(of_mean, colors.mean(2, keepdim=True)) if CONTRAST in operations else of_mean[:, :, :1]  # zeros
    if SATURATION in operations:
        torch.clamp(torch.baddbmm(shift, of_pixel, colors), 0, 1, out=colors)
    else:
        colors.mul_(of_pixel[:, :1, :1]).add_(shift).clamp_(0, 1)


def shift_hue(images: Tensor, turns: Tensor) -> Tensor:
    """Turns the hue of images (B, 3, S, S), in place, by ``turns`` (B,) of the circle, which lie on the CPU; as HSV
    does: saturation and value stay.

    On the circle of six sectors a channel is full within 1 of its own place and gone from 2 on. So a colour of channels
    scaled to [0, 1] lies 1 - red + green + blue from red, on the side of the greater of green and blue.
    """
    red, green, blue = images.unbind(1)
    low, chroma = images.amin(1), images.amax(1)
    chroma.sub_(low)
    sectors = (green + blue).sub_(red).sub_(low).div_(chroma.clamp(min=1e-12)).add_(1).copysign_(green - blue)
    places = (turns[:, None] - PLACES / 6).to(images.device, non_blocking=True)
    torch.add(places[:, :, None, None], sectors[:, None], alpha=1 / 6, out=images)
    images.sub_(images.round()).abs_().clamp_(1 / 6, 1 / 3)  # turns from each channel's place, by the shorter way
    full = low.add_(chroma, alpha=2)
    return images.mul_(chroma.mul_(-6)[:, None]).add_(full[:, None])


def gaussian_blur(images: Tensor, sigma: Tensor, reach: int) -> Tensor:
    """Blurs images (B, 3, S, S) with their own ``sigma`` (B,) pixels, which lie on the CPU, ``reach`` pixels each way;
    the border is repeated outwards.

    Each direction is a product with one banded (T, T + 2 reach) matrix for every stretch of T pixels: a matrix of the
    whole side would be nearly all zeros, and a convolution with a group an image is no faster than that.
    """
    batch, channels, size, _ = images.shape
    tile = next(t for t in range(min(size, 32), 0, -1) if size % t == 0)
    offsets = torch.arange(-reach, reach + 1)
    weights = torch.exp(-0.5 * (offsets / sigma[:, None]) ** 2)
    weights = F.threshold(weights, 1e-9, 0)  # numbers below float's normal range are slow
    weights = (weights / weights.sum(1, keepdim=True)).to(images.device, non_blocking=True)
    band = torch.zeros(batch, tile, tile + 2 * reach, device=images.device)
    band.as_strided((batch, tile, 2 * reach + 1), (band.stride(0), band.stride(1) + 1, 1)).copy_(weights[:, None])
    images = F.pad(images, (reach, reach, reach, reach), mode="replicate")
    stretches = images.unfold(2, tile + 2 * reach, tile).mT
    images = (band[:, None, None] @ stretches).reshape(batch, channels, size, size + 2 * reach)
    stretches = images.unfold(3, tile + 2 * reach, tile)
    return (stretches.reshape(batch, -1, tile + 2 * reach) @ band.mT).view(batch, channels, size, size)
