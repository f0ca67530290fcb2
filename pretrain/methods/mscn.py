"""Masked Siamese ConvNets: SimCLR whose first view is masked (Jing, Zhu, LeCun, arXiv 2206.07700).

There is no public code and no public number of it. This is what its description allows, and sizes are ours:

    known       its abstract: masks augment the views of siamese convolutional networks, by several empirical designs,
                and the network around them may be any siamese one
    told        notes of a reader: a high-pass filter before the mask raises accuracy
    remembered  without any size: masks that differ by color channel; focal masks, which leave a window, beside random
                grids; noise in the masked places; a stronger mask on one of the views
    chosen      all sizes below; the filter is what a Gaussian blur takes away; a channel's mask is focal or a grid by a
                draw of its own; the noise is standard normal; view 2 is neither filtered nor masked, so that the
                encoder sees whole images too; all else is SimCLR's

So a number of it is no reproduction, and says nothing for or against the paper's. Axes: B batch, S = img_size, G =
mask_grid.
"""

import math
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from pydantic import NonNegativeFloat, PositiveInt
from torch import Tensor

from evaluate.runtime.settings import Probability
from pretrain.config import RESNET_DEMO, BelowOne
from pretrain.data.augment import gaussian_blur
from pretrain.data.views import uniforms
from pretrain.methods.simclr import SimCLR, SimCLRConfig
from pretrain.names import from_official as from_official
from pretrain.names import to_official as to_official

CHANNELS = 3
MASK_FIRST = 2 << 20  # position of the first random number of a view's mask: beyond those of all else
BITS = 23  # of a random number in a float32
WEYL, MIX1, MIX2 = -0x61C8864680B583EB, -0x40A7B892E31B1A47, -0x6B2FB644ECCEEE15  # SplitMix64's, as signed numbers


@dataclass(frozen=True)
class Config(SimCLRConfig):
    """SimCLR's run with masks; of the sizes of the masks no published value was found."""

    method: Literal["mscn"] = "mscn"
    """The file of pretrain/methods/. A preset chooses it."""
    remark: Literal["pretrained after the description in arXiv 2206.07700; sizes are ours"] = (
        "pretrained after the description in arXiv 2206.07700; sizes are ours"
    )
    """What every table says of an encoder of this method."""
    high_pass_sigma: NonNegativeFloat = 16.0
    """Standard deviation, in pixels of the view, of the blur that is subtracted from a masked view; 0: none. No
    published value was found."""
    mask_ratio: BelowOne = 0.25
    """Share of the pixels of each channel that are masked; 0: none. No published value was found."""
    mask_grid: PositiveInt = 7
    """Cells a side of a random mask. No published value was found."""
    focal_probability: Probability = 0.25
    """Probability that a channel's mask leaves one square window instead. No published value was found."""
    masked_views: Literal["first", "both"] = "first"
    """The views that are filtered and masked. No published value was found."""

    def finish_view(self, view: Tensor, number: int, epoch: int, index: np.ndarray) -> Tensor:
        """Filters and masks a normalized view (B, 3, S, S) by numbers that depend on (seed, epoch, index, number)
        alone."""
        if number > 0 and self.masked_views == "first":
            return view
        if self.high_pass_sigma > 0:
            sigma = torch.full((len(view),), self.high_pass_sigma)
            view = view - gaussian_blur(view, sigma, reach=math.ceil(3 * self.high_pass_sigma))
        if self.mask_ratio == 0:
            return view
        count = CHANNELS * (self.mask_grid**2 + 3) + 1
        draws = uniforms(self.seed, epoch, index, count, first=MASK_FIRST + number * count)
        key, parts = draws[:, 0], draws[:, 1:].reshape(len(draws), CHANNELS, -1)
        hidden = self.mask(parts, view.shape[-1], view.device)
        keys = torch.from_numpy((key * 2.0**53).astype(np.int64)).to(view.device, non_blocking=True)
        return torch.where(hidden, normals(keys, view[0].numel()).view_as(view), view)

    def mask(self, draws: np.ndarray, size: int, device: torch.device) -> Tensor:
        """Masks (B, 3, S, S) bool of S = ``size`` pixels, True where hidden, by draws (B, 3, 3 + G ** 2) in [0, 1)."""
        grid = self.mask_grid
        order = draws[..., 3:].argsort(-1).argsort(-1)
        cells = (order < round(self.mask_ratio * grid**2)).reshape(*order.shape[:2], grid, grid)
        side = round(size * math.sqrt(1 - self.mask_ratio))
        begin = np.floor(draws[..., 1:3] * (size - side + 1))  # of the window: top and left
        focal = draws[..., 0] < self.focal_probability
        hidden, corner, whole = (
            torch.from_numpy(values).to(device, non_blocking=True) for values in (cells, begin, focal)
        )
        pixels = torch.arange(size, device=device)
        places = pixels * grid // size
        hidden = hidden.index_select(2, places).index_select(3, places)
        inside = (pixels >= corner[..., None]) & (pixels < corner[..., None] + side)  # (B, 3, 2, S)
        window = inside[:, :, 0, :, None] & inside[:, :, 1, None, :]
        return torch.where(whole[..., None, None], ~window, hidden)


def normals(keys: Tensor, count: int) -> Tensor:
    """(B, count) standard normal numbers by a hash (SplitMix64) of keys (B,) int64 and position, alike on every
    device."""
    state = mix(keys[:, None] + WEYL * torch.arange(1, count + 1, device=keys.device))
    share = (shifted(state, 64 - BITS).float() + 0.5) / 2**BITS
    return torch.erfinv(2 * share - 1) * math.sqrt(2)


def mix(state: Tensor) -> Tensor:
    """SplitMix64's mixing of int64, whose products wrap around."""
    state = (state ^ shifted(state, 30)) * MIX1
    state = (state ^ shifted(state, 27)) * MIX2
    return state ^ shifted(state, 31)


def shifted(state: Tensor, places: int) -> Tensor:
    """int64 shifted to the right as if it had no sign."""
    return (state >> places) & ((1 << (64 - places)) - 1)


OURS = Config()
PRESETS = {"paper": OURS, "ours": OURS, "demo": replace(OURS, **RESNET_DEMO, dim=32, high_pass_sigma=4.0, mask_grid=4)}


def build(config: Config) -> SimCLR:
    """SimCLR's model, from torch's global generator."""
    return SimCLR(config)
