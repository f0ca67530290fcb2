"""A picture of a batch, so that a person sees what the model is asked before days are spent on it.

A row is an image: view 1 with what the method hides of it in grey, and view 2, if the method takes one. For a method
that asks where view 2 lies, dots of one colour are one place: in view 2 the center of a token, in view 1 where the
relative position that goes with that token says it lies. They must sit on the same thing in both.
"""

import math
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from pretrain.config import PretrainConfig
from pretrain.data.views import Batch
from pretrain.geometry import relative_positions

ROWS, SIDE = 6, 224
DOTS = ("red", "yellow", "lime", "cyan", "magenta")


def draw(batch: Batch, hidden: Tensor | None, config: PretrainConfig, path: Path) -> None:
    """Writes a PNG of the first images of a batch; ``hidden`` (B, N) is True where the method does not see view 1, None
    if it sees all."""
    shown = min(ROWS, len(batch.view1))
    grid_size = 1 if hidden is None else math.isqrt(hidden.shape[1])
    views = [view for view in (batch.view1, batch.view2) if view is not None]
    sheet = Image.new("RGB", (len(views) * SIDE, shown * SIDE))
    for number in range(shown):
        view1, *second = (_pixels(view[number], config) for view in views)
        if hidden is not None:
            patch_size = config.img_size // grid_size
            covered = hidden[number].cpu().view(grid_size, grid_size).numpy()
            covered = covered.repeat(patch_size, 0).repeat(patch_size, 1)[..., None]
            view1 = np.where(covered, view1 // 4 + 96, view1)
        strip = Image.new("RGB", (len(views) * SIDE, SIDE))
        for column, pixels in enumerate((view1, *second)):
            strip.paste(Image.fromarray(pixels.astype(np.uint8)).resize((SIDE, SIDE)), (column * SIDE, 0))
        if batch.geometry is not None:
            rows, columns = (positions.cpu() for positions in relative_positions(batch.geometry, grid_size))
            _draw_dots(ImageDraw.Draw(strip), rows[number], columns[number], grid_size)
        sheet.paste(strip, (0, number * SIDE))
    sheet.save(path)


def _pixels(image: Tensor, config: PretrainConfig) -> np.ndarray:
    """A normalized image (3, S, S) as (S, S, 3) in 0..255."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (config.mean, config.std))
    return ((image.cpu().float() * std + mean) * 255).clamp(0, 255).permute(1, 2, 0).numpy()


def _draw_dots(pen: ImageDraw.ImageDraw, rows: Tensor, columns: Tensor, grid_size: int) -> None:
    """Dots for some tokens of view 2 (the right half) whose place lies inside view 1 (the left half); (N,) rows and
    columns in cells."""
    inside = [
        i for i in range(grid_size**2) if -0.5 <= rows[i] <= grid_size - 0.5 and -0.5 <= columns[i] <= grid_size - 0.5
    ]
    marked = inside[:: max(1, math.ceil(len(inside) / len(DOTS)))]
    for color, token in zip(DOTS[: len(marked)], marked, strict=True):
        row, column = divmod(token, grid_size)
        source = ((columns[token].item() + 0.5) / grid_size, (rows[token].item() + 0.5) / grid_size)
        own = ((column + 0.5) / grid_size + 1, (row + 0.5) / grid_size)
        for x, y in (source, own):
            pen.ellipse([x * SIDE - 5, y * SIDE - 5, x * SIDE + 5, y * SIDE + 5], fill=color, outline="black")
