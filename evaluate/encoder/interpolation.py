"""Position embeddings at another image size, as each source's own code does it. The class and register rows are never
touched.

``bicubic``            to the wanted size, align_corners False: MAE, SiameseIM, MoCo-v3, Hugging Face, mmpretrain.
``bicubic_antialias``  the same with antialiasing: timm, open_clip.
``dino``               by a scale factor with 0.1 cells added, which moves the sampling points a little: DINO, iBOT.
"""

import math

import torch.nn.functional as F
from torch import Tensor, cat

from evaluate.encoder.spec import METHODS


def resample_pos_embed(pos_embed: Tensor, grid: tuple[int, int], prefix: int = 1, method: str = "bicubic") -> Tensor:
    """A position embedding (1, prefix + N, D) of a square grid to (1, prefix + h w, D).

    Args:
        grid: wanted rows and columns (h, w).
        prefix: leading rows that belong to no patch (class token, registers).
        method: one of ``METHODS``.

    Raises:
        ValueError: the stored rows are no square grid, or an unknown method.
    """
    side = math.isqrt(pos_embed.shape[1] - prefix)
    if side * side != pos_embed.shape[1] - prefix:
        raise ValueError(f"pos_embed has {pos_embed.shape[1] - prefix} patch rows, which is no square grid")
    if method not in METHODS:
        raise ValueError(f"interpolation is one of {', '.join(METHODS)}, not {method!r}")
    if grid == (side, side):
        return pos_embed
    maps = pos_embed[:, prefix:].float().transpose(1, 2).unflatten(2, (side, side))
    if method == "dino":
        factors = [(wanted + 0.1) / side for wanted in grid]
        maps = F.interpolate(maps, scale_factor=factors, mode="bicubic", align_corners=False)
    else:
        maps = F.interpolate(
            maps, size=grid, mode="bicubic", align_corners=False, antialias=method == "bicubic_antialias"
        )
    return cat([pos_embed[:, :prefix], maps.flatten(2).transpose(1, 2).to(pos_embed.dtype)], dim=1)
