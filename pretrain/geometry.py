"""Where one crop lies in another, and the position embeddings made from it.

A crop is (top, left, height, width) in pixels of the source image after its flip. Positions are in patches of view 1,
measured from the center of its first patch. Axes: B batch, N = grid_size ** 2 tokens in row-major order, D width.
"""

from dataclasses import dataclass, fields

import torch
from torch import Tensor


@dataclass(frozen=True)
class RelativeGeometry:
    """View 2 as seen from view 1; every field is (B,). Offsets and scales are in units of view 1's height and width."""

    delta_top: Tensor
    delta_left: Tensor
    scale_height: Tensor
    scale_width: Tensor
    relative_flip: Tensor  # bool: exactly one of the views was flipped
    flip_delta_left: Tensor  # replaces delta_left where relative_flip holds

    def to(self, device: torch.device | str) -> "RelativeGeometry":
        """The same on another device, which nobody waits for."""
        return RelativeGeometry(*(getattr(self, field.name).to(device, non_blocking=True) for field in fields(self)))


def relative_geometry(
    crop1: Tensor, crop2: Tensor, flipped1: Tensor, flipped2: Tensor, image_width: Tensor
) -> RelativeGeometry:
    """From two crops (B, 4), their flips (B,) bool and the source images' widths (B,), all in source pixels.

    Source: SiameseIM, relative position embedding (released code).
    """
    top1, left1, height1, width1 = crop1.double().unbind(-1)
    top2, left2, height2, width2 = crop2.double().unbind(-1)
    return RelativeGeometry(
        ((top2 - top1) / height1).float(),
        ((left2 - left1) / width1).float(),
        (height2 / height1).float(),
        (width2 / width1).float(),
        flipped1 ^ flipped2,
        ((image_width - left1 - left2) / width1).float(),
    )


def relative_positions(geometry: RelativeGeometry, grid_size: int) -> tuple[Tensor, Tensor]:
    """Row and column (each (B, N)) of every cell of view 2, in the grid of view 1 (0 is the center of its first
    cell)."""
    center = torch.arange(grid_size, dtype=torch.float32, device=geometry.delta_top.device) + 0.5
    rows = geometry.scale_height[:, None] * center + (geometry.delta_top * grid_size - 0.5)[:, None]
    straight = geometry.scale_width[:, None] * center + (geometry.delta_left * grid_size - 0.5)[:, None]
    mirrored = -geometry.scale_width[:, None] * center + (geometry.flip_delta_left * grid_size - 0.5)[:, None]
    columns = torch.where(geometry.relative_flip[:, None], mirrored, straight)
    batch = rows.shape[0]
    rows = rows[:, :, None].expand(batch, grid_size, grid_size).reshape(batch, -1)
    columns = columns[:, None, :].expand(batch, grid_size, grid_size).reshape(batch, -1)
    return rows, columns


def sincos(positions: Tensor, channels: int) -> Tensor:
    """(…,) positions to (…, channels): sines of all frequencies, then cosines; frequency k is 10000 ** (-2k /
    channels)."""
    half = channels // 2
    omega = 10000.0 ** (-torch.arange(half, dtype=torch.float64, device=positions.device) / half)
    angles = positions.double()[..., None] * omega
    return torch.cat([angles.sin(), angles.cos()], dim=-1).float()


def sincos_2d(grid_size: int, embed_dim: int, columns_first: bool = False) -> Tensor:
    """The fixed position embedding (1, 1 + N, D) with zeros for the class token.

    Rows fill the first half of the channels (SiameseIM, MoCo-v3); ``columns_first`` is MAE's order.
    """
    cells = torch.arange(grid_size, dtype=torch.float32)
    rows, columns = (grid.reshape(-1) for grid in torch.meshgrid(cells, cells, indexing="ij"))
    first, second = (columns, rows) if columns_first else (rows, columns)
    patches = torch.cat([sincos(first, embed_dim // 2), sincos(second, embed_dim // 2)], dim=-1)
    return torch.cat([torch.zeros(1, embed_dim), patches])[None]


def relative_parts(geometry: RelativeGeometry, grid_size: int, embed_dim: int) -> tuple[Tensor, Tensor, Tensor]:
    """What ``relative_sincos`` is made of: the rows' and the columns' embeddings (B, grid_size, D/2), the scales' (B,
    D)."""
    rows, columns = (positions.view(-1, grid_size, grid_size) for positions in relative_positions(geometry, grid_size))
    quarter = embed_dim // 2
    scales = [sincos(10 * scale.log(), quarter) for scale in (geometry.scale_height, geometry.scale_width)]
    return sincos(rows[:, :, 0], quarter), sincos(columns[:, 0], quarter), torch.cat(scales, dim=-1)


def relative_sincos(geometry: RelativeGeometry, grid_size: int, embed_dim: int) -> Tensor:
    """Embedding (B, N, 2D) of each cell of view 2 in view 1's frame: row, column, and 10 times the logarithm of both
    scales."""
    rows, columns, scales = relative_parts(geometry, grid_size, embed_dim)
    shape = (len(scales), grid_size, grid_size, -1)
    parts = rows[:, :, None].expand(shape), columns[:, None].expand(shape), scales[:, None, None].expand(shape)
    return torch.cat(parts, dim=-1).flatten(1, 2)
