"""ViTDet's plain backbone and simple feature pyramid (Li et al., arXiv 2203.16527), as detectron2 computes them.

detectron2's commit is 02b5c4e. Window attention in most blocks, global attention in a few evenly spread ones,
decomposed relative positions in all, no class token and no final norm. No mm* package is imported. Axes: B batch, N
tokens, D width, C channels of a head, h w patch grid, S window side.

detectron2 knows no registers. An encoder that has them was trained to need them, so here they and its class token stay
as *prefix tokens*: in every block they attend to all tokens, and in a windowed block a patch attends to its window and
to them. So one window over the whole picture is the encoder's own block.
"""

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from evaluate.encoder.spec import EncoderSpec
from evaluate.mm.backbones.attention import with_positions
from evaluate.mm.backbones.layers import (
    Block,
    PatchEmbed,
    ViTBackbone,
    drop_path_rates,
    has_class_row,
    plain_state,
    relative_bias,
    resize_pos_embed,
    sizes_of,
)


def global_blocks(depth: int, count: int = 4) -> tuple[int, ...]:
    """The blocks with global attention: the last of each of ``count`` equal parts; 2, 5, 8, 11 of 12.

    Shallow encoders get two parts.
    """
    count = count if depth >= 2 * count else min(2, depth)
    return tuple((index + 1) * depth // count - 1 for index in range(count))


def relative_positions(table: Tensor, size: int) -> Tensor:
    """A table (2 S - 1, C) by query and key position, (size, size, C); resized linearly if S differs from ``size``."""
    if table.shape[0] != 2 * size - 1:
        table = F.interpolate(table.T[None], size=2 * size - 1, mode="linear")[0].T
    positions = torch.arange(size, device=table.device)
    return table[positions[:, None] - positions[None] + size - 1]


class Attention(nn.Module):
    """Multi-head attention over a grid (B, h, w, D) with decomposed relative positions.

    With a ``window`` each window of so many patches a side attends to itself; 0 is global attention. The relative term
    uses the unscaled query: softmax(q k^T / sqrt(C) + q . R_h + q . R_w). BEiT's own bias (``bias_side`` patches a
    side; 0: none) is added to it; detectron2 has no such term and BEiT without it is another model.
    """

    def __init__(self, width: int, heads: int, window: int, table_size: int, bias_side: int = 0) -> None:
        super().__init__()
        self.heads, self.window, self.bias_side = heads, window, bias_side
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.rel_pos_h = nn.Parameter(torch.zeros(2 * table_size - 1, width // heads))
        self.rel_pos_w = nn.Parameter(torch.zeros(2 * table_size - 1, width // heads))
        if bias_side:
            self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * bias_side - 1) ** 2 + 3, heads))

    def forward(self, x: Tensor, *size: tuple[int, int]) -> Tensor:
        """The same of patches (B, h, w, D), or of prefix tokens and patches (B, N, D) where the grid is given."""
        if size:
            return self._with_prefix(x, size[0])
        if self.window:
            return from_windows(self._attend(to_windows(x, self.window)), x.shape[1], x.shape[2])
        return self._attend(x)

    def _attend(self, x: Tensor) -> Tensor:
        batch, h, w, width = x.shape
        query, key, value = self._split(self.qkv(x).flatten(1, 2))
        out = self._attend_to_grid(query, key, value, (h, w))
        return self.proj(out.transpose(1, 2).reshape(batch, h, w, width))

    def _with_prefix(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        prefix = x.shape[1] - size[0] * size[1]
        patches = x[:, prefix:].unflatten(1, size)
        windows = self.qkv(to_windows(patches, self.window) if self.window else patches)
        whole = from_windows(windows, *size) if self.window else windows  # without what pads the windows
        own = self.qkv(x[:, :prefix])
        query, key, value = self._split(torch.cat([own, whole.flatten(1, 2)], 1))
        tokens = F.scaled_dot_product_attention(query[:, :, :prefix], key, value)
        seen = own.repeat_interleave(len(windows) // len(x), 0)
        query, key, value = self._split(torch.cat([seen, windows.flatten(1, 2)], 1))
        out = self._attend_to_grid(query[:, :, prefix:], key, value, windows.shape[1:3])
        out = out.transpose(1, 2).flatten(2).unflatten(1, windows.shape[1:3])
        out = from_windows(out, *size) if self.window else out
        return self.proj(torch.cat([tokens.transpose(1, 2).flatten(2), out.flatten(1, 2)], 1))

    def _split(self, qkv: Tensor) -> Tensor:
        """(B, N, 3 D) to queries, keys and values, (3, B, heads, N, C)."""
        return qkv.unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)

    def _attend_to_grid(self, query: Tensor, key: Tensor, value: Tensor, grid: tuple[int, int]) -> Tensor:
        """Attention of the patches of a grid to what may be prefix tokens and then the patches, (B, heads, h w, C)."""
        places = query.unflatten(2, grid)
        by_row, by_column = relative_positions(self.rel_pos_h, grid[0]), relative_positions(self.rel_pos_w, grid[1])
        rows = torch.einsum("bnhwc,hkc->bnhwk", places, by_row.to(query.dtype)).flatten(2, 3)
        columns = torch.einsum("bnhwc,wkc->bnhwk", places, by_column.to(query.dtype)).flatten(2, 3)
        if not self.bias_side:
            return with_positions(query, key, value, rows, columns)
        # BEiT's own bias is no sum of rows and columns, so it is added as a tensor of all pairs
        bias = (rows[..., :, None] + columns[..., None, :]).flatten(3)
        own = relative_bias(self.relative_position_bias_table, (self.bias_side, self.bias_side), grid, prefix=0)
        bias = F.pad(bias + own.to(bias.dtype), (key.shape[2] - bias.shape[3], 0))
        return F.scaled_dot_product_attention(query, key, value, attn_mask=bias)


def to_windows(x: Tensor, side: int) -> Tensor:
    """(B, h, w, D) to (B * windows, side, side, D), padded right and below with zeros, which take part in attention."""
    batch, h, w, width = x.shape
    x = F.pad(x, (0, 0, 0, -w % side, 0, -h % side))
    x = x.reshape(batch, x.shape[1] // side, side, x.shape[2] // side, side, width)
    return x.permute(0, 1, 3, 2, 4, 5).reshape(-1, side, side, width)


def from_windows(windows: Tensor, h: int, w: int) -> Tensor:
    """The inverse of ``to_windows``, cut back to (B, h, w, D)."""
    side, width = windows.shape[1], windows.shape[3]
    rows, columns = -(-h // side), -(-w // side)
    x = windows.reshape(-1, rows, columns, side, side, width).permute(0, 1, 3, 2, 4, 5)
    return x.reshape(-1, rows * side, columns * side, width)[:, :h, :w]


class ViTDetBackbone(ViTBackbone):
    """Plain ViT for detection: image (B, 3, H, W) to a tuple of one map (B, D, H / patch, W / patch).

    With fresh relative positions and one window covering the image, it computes the encoder's own patch tokens, but for
    a class token, which takes no part here unless there are registers.

    Args:
        prefix_tokens: an encoder's registers, and before them its class token; 0 where it has no registers.
        positions: rows of the pretrained position embedding, the class token's included if there is one.
        img_size: training image side in pixels; sets the length of the global blocks' relative tables.
        window: side of the attention windows in patches.
        global_indices: blocks with global attention.
        bias_side: patches a side for which an encoder's relative position bias (BEiT's) was made; 0: it has none.
    """

    NEW = {r"blocks\.\d+\.attn\.rel_pos_[hw]": 0.0}
    DROPPED = ("cls_token", r"(fc_)?norm\.(weight|bias)")  # no class token alone, no norm after the blocks

    def __init__(
        self,
        *,
        patch_size: int,
        width: int,
        depth: int,
        heads: int,
        hidden: int,
        eps: float,
        activation: str,
        pre_norm: bool,
        layer_scale: bool,
        patch_bias: bool,
        positions: int,
        prefix_tokens: int = 0,
        img_size: int = 1024,
        window: int = 14,
        global_indices: tuple[int, ...] | None = None,
        drop_path: float = 0.1,
        checkpointing: bool = False,
        bias_side: int = 0,
    ) -> None:
        super().__init__()
        global_indices = global_blocks(depth) if global_indices is None else global_indices
        self.checkpointing = checkpointing
        self.patch_embed = PatchEmbed(patch_size, width, patch_bias)
        self.prefix_tokens = nn.Parameter(torch.zeros(1, prefix_tokens, width)) if prefix_tokens else None
        self.pos_embed = nn.Parameter(torch.zeros(1, positions, width))
        self.norm_pre = nn.LayerNorm(width, eps=eps) if pre_norm else nn.Identity()
        spans = [(0, -(-img_size // patch_size)) if i in global_indices else (window, window) for i in range(depth)]
        self.blocks = nn.ModuleList(
            Block(Attention(width, heads, *span, bias_side), width, hidden, eps, activation, layer_scale, drop)
            for drop, span in zip(drop_path_rates(drop_path, depth), spans, strict=True)
        )

    @staticmethod
    def arguments(spec: EncoderSpec, state: dict[str, Tensor]) -> dict[str, Any]:
        return {
            **sizes_of(spec, plain_state(spec, state)),
            "prefix_tokens": spec.registers and int(spec.class_token) + spec.registers,
            "bias_side": spec.img_size // spec.patch_size if spec.rel_pos_bias else 0,
        }

    def fit(self, spec: EncoderSpec, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Class token and registers as one tensor."""
        if spec.registers:
            tokens = [state.pop(name) for name in ("cls_token", "reg_token") if name in state]
            state["prefix_tokens"] = torch.cat(tokens, 1)
        return state

    def forward(self, images: Tensor) -> tuple[Tensor]:
        return (self.forward_blocks(images)[-1].permute(0, 3, 1, 2).contiguous(),)

    def forward_blocks(self, images: Tensor) -> list[Tensor]:
        """The patch embedding before the position embedding, then every block's output, (B, h, w, D) each."""
        patches = self.patch_embed(images)
        grid = (patches.shape[1], patches.shape[2])
        _, positions = resize_pos_embed(self.pos_embed, has_class_row(self.pos_embed), grid)
        x, outputs = patches + positions, [patches]
        size: tuple[tuple[int, int], ...]
        if self.prefix_tokens is None:
            x, size, prefix = self.norm_pre(x), (), 0
        else:
            tokens = self.prefix_tokens.expand(len(x), -1, -1)
            x, size, prefix = self.norm_pre(torch.cat([tokens, x.flatten(1, 2)], 1)), (grid,), tokens.shape[1]
        for block in self.blocks:
            x = self.run_block(block, x, *size)
            outputs.append(x[:, prefix:].unflatten(1, grid) if prefix else x)
        return outputs


class ChannelLayerNorm(nn.Module):
    """LayerNorm over the channels of (B, C, H, W) at each pixel, population variance.

    Not a torch norm class on purpose: detectron2's rule for weight decay exempts torch's classes only, so this one is
    decayed.
    """

    def __init__(self, num_features: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(num_features))
        self.bias = nn.Parameter(torch.zeros(num_features))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        y = F.layer_norm(x.permute(0, 2, 3, 1), self.weight.shape, self.weight, self.bias, self.eps)
        return y.permute(0, 3, 1, 2).contiguous()


class ConvNorm(nn.Conv2d):
    """A convolution without bias, then LayerNorm over the channels."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int) -> None:
        super().__init__(in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=False)
        self.norm = ChannelLayerNorm(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(super().forward(x))


class SimpleFeaturePyramid(nn.Module):
    """The last map, at stride s, to five of ``out_channels`` at strides s/4, s/2, s, 2s, 4s (p2 to p6 for s = 16)."""

    def __init__(self, in_channels: int, out_channels: int = 256) -> None:
        super().__init__()
        half, quarter = in_channels // 2, in_channels // 4
        doubled = partial(nn.ConvTranspose2d, kernel_size=2, stride=2)
        heads: list[tuple[list[nn.Module], int]] = [
            ([doubled(in_channels, half), ChannelLayerNorm(half), nn.GELU(), doubled(half, quarter)], quarter),
            ([doubled(in_channels, half)], half),
            ([], in_channels),
            ([nn.MaxPool2d(2, 2)], in_channels),
        ]
        self.levels = nn.ModuleList(
            nn.Sequential(*layers, ConvNorm(width, out_channels, 1), ConvNorm(out_channels, out_channels, 3))
            for layers, width in heads
        )

    def forward(self, maps: tuple[Tensor]) -> tuple[Tensor, ...]:
        outputs = [level(maps[-1]) for level in self.levels]
        return (*outputs, F.max_pool2d(outputs[-1], kernel_size=1, stride=2))
