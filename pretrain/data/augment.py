"""Colour, blur and solarisation of whole batches: tensors (B, 3, S, S) in and out, on the device where they lie."""

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
COLOR_DRAWS = 13  # random numbers a view: everything in ``_color``
CPU_PIXELS = 224 * 224  # coloured at once on a CPU: they stay in its cache, and few images wait for another's operation
JITTER_ORDERS = np.array(list(itertools.permutations(range(4))))


def augment_view(pixels: Tensor, draws: np.ndarray, number: int, config: PretrainConfig) -> Tensor:
    """View ``number`` (0 or 1), (B, 3, S, S) uint8 to normalized, by draws (B, COLOR_DRAWS) in [0, 1)."""
    device, batch = pixels.device, len(pixels)
    mean, std = (
        torch.tensor(values).view(3, 1, 1).to(device, non_blocking=True) for values in (config.mean, config.std)
    )
    rows = max(1, CPU_PIXELS // pixels.shape[-1] ** 2) if device.type == "cpu" else batch
    view = torch.empty(pixels.shape, device=device)
    for first in range(0, batch, rows):
        part = slice(first, first + rows)
        images = view[part].copy_(pixels[part]).div_(255)  # from here on colour by colour
        if number == 1 or not config.plain_view1:
            images = _color(
                images, draws[part], config.blur_probability[number], config.solarize_probability[number], config
            )
        torch.sub(images, mean, out=view[part]).div_(std)
    return view


def _color(images: Tensor, draws: np.ndarray, blur: float, solarize: float, config: PretrainConfig) -> Tensor:
    """ColorJitter, grey, blur and solarisation of images (B, 3, S, S) in [0, 1] by draws (B, COLOR_DRAWS) in [0, 1).

    ``blur`` and ``solarize`` are probabilities. The choices are made on the CPU, so no device has to wait. ``images``
    are changed.
    """
    gray = functools.partial(_where, draws[:, 6] < config.gray_probability, _gray)
    if config.gray_first:
        images = gray(images)
    jitter = draws[:, 1:5], JITTER_ORDERS[(draws[:, 5] * len(JITTER_ORDERS)).astype(int)]
    jittered = draws[:, 0] < config.jitter_probability
    images = color_jitter(images, *jitter, config.jitter, jittered)
    if not config.gray_first:
        images = gray(images)
    low, high = config.blur_sigma
    sigma = torch.from_numpy(low + (high - low) * draws[:, 8]).float().to(images.device, non_blocking=True)
    blurred = functools.partial(gaussian_blur, reach=math.ceil(4 * high))
    images = _where(draws[:, 7] < blur, blurred, images, sigma)
    return _where(draws[:, 9] < solarize, lambda part: torch.minimum(part, 1 - part), images)


def _gray(images: Tensor) -> Tensor:
    return grayscale(images).repeat(1, 3, 1, 1)


def _where(chosen: np.ndarray, operation: Callable[..., Tensor], images: Tensor, *amounts: Tensor) -> Tensor:
    """The images (B, 3, S, S), those ``chosen`` (B,) after an operation by their amounts (B,), the others as they
    were."""
    if not chosen.any():
        return images
    if chosen.all():
        return operation(images, *amounts)
    rows = torch.from_numpy(np.flatnonzero(chosen)).to(images.device, non_blocking=True)
    return images.index_copy_(0, rows, operation(images.index_select(0, rows), *(amount[rows] for amount in amounts)))


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
    amounts = np.array(strength) * (2 * draws - 1)
    amounts[:, :3] = np.maximum(1 + amounts[:, :3], 0)
    amounts = torch.from_numpy(amounts).float().to(images.device, non_blocking=True)
    operations = (adjust_brightness, adjust_contrast, adjust_saturation, shift_hue)
    for position in range(4):
        for number in np.unique(orders[chosen, position]):
            images = _where(chosen & (orders[:, position] == number), operations[number], images, amounts[:, number])
    return images


def adjust_brightness(images: Tensor, factor: Tensor) -> Tensor:
    """Multiplies images (B, 3, S, S) in [0, 1], in place, by ``factor`` (B,)."""
    return images.mul_(factor.view(-1, 1, 1, 1)).clamp_(0, 1)


def adjust_contrast(images: Tensor, factor: Tensor) -> Tensor:
    """Moves images (B, 3, S, S) in [0, 1], in place, from their mean luma (``factor`` 0) to themselves (1) and on;
    ``factor`` is (B,)."""
    luma = (images.mean((2, 3)) * torch.tensor(LUMA).to(images.device, non_blocking=True)).sum(1)
    return images.mul_(factor.view(-1, 1, 1, 1)).add_(((1 - factor) * luma).view(-1, 1, 1, 1)).clamp_(0, 1)


def adjust_saturation(images: Tensor, factor: Tensor) -> Tensor:
    """Moves images (B, 3, S, S) in [0, 1], in place, from grey (``factor`` 0) to themselves (1) and on; ``factor`` is
    (B,)."""
    factor = factor.view(-1, 1, 1, 1)
    gray = grayscale(images).mul_(1 - factor)
    return images.mul_(factor).add_(gray).clamp_(0, 1)


def grayscale(images: Tensor) -> Tensor:
    """(B, 3, S, S) to the luma (B, 1, S, S) of ITU-R 601."""
    red, green, blue = images.split(1, dim=1)
    return (LUMA[0] * red).add_(green, alpha=LUMA[1]).add_(blue, alpha=LUMA[2])


def shift_hue(images: Tensor, turns: Tensor) -> Tensor:
    """Turns the hue of images (B, 3, S, S), in place, by ``turns`` (B,) of the circle, as HSV does: saturation and
    value stay.

    On the circle of six sectors with red at 0, green at 2 and blue at -2, a channel is full within 1 of its own place
    and gone from 2 on. So a colour of channels scaled to [0, 1] lies 1 - red + green + blue from red, on the side of
    the greater of green and blue.
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
    """Blurs images (B, 3, S, S) with their own ``sigma`` (B,) pixels, ``reach`` pixels each way; the border is repeated
    outwards.

    Each direction is a product with one banded (T, T + 2 reach) matrix for every stretch of T pixels: a matrix of the
    whole side would be nearly all zeros, and a convolution with a group an image is no faster than that.
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
