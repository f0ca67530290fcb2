"""The ViT of MAE's segmentation protocol (mmseg's MAE backbone), from any canonical encoder, for any input size.

Global attention in all blocks, the class token and registers kept through them, a relative position bias a block (from
zero) and layer scale (from one, or the encoder's own). mmseg's class works at one input size only; here the position
embedding and the bias tables are interpolated. No mm* package is imported. Axes: B batch, N tokens, D width, h w
patch grid.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from evaluate.encoder.spec import EncoderSpec
from evaluate.mm.backbones.layers import (
    Block,
    PatchEmbed,
    ViTBackbone,
    drop_path_rates,
    has_class_row,
    plain_state,
    relative_bias,
    resize_grid,
    resize_pos_embed,
    resize_table,
    sizes_of,
)


def out_blocks(depth: int, count: int = 4) -> tuple[int, ...]:
    """The blocks that feed UPerNet: MAE's 3, 5, 7, 11 of 12; else evenly spread, repeating in a shallow encoder."""
    if depth == 12:
        return (3, 5, 7, 11)
    return tuple(max((index + 1) * depth // count - 1, 0) for index in range(count))


class Attention(nn.Module):
    """Multi-head attention over (B, N, D) with a relative position bias."""

    def __init__(self, width: int, heads: int, base: tuple[int, int]) -> None:
        super().__init__()
        self.heads, self.base = heads, base
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * base[0] - 1) * (2 * base[1] - 1) + 3, heads))

    def forward(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        batch, count, width = x.shape
        query, key, value = self.qkv(x).reshape(batch, count, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        bias = relative_bias(self.relative_position_bias_table, self.base, grid, count - grid[0] * grid[1])
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=bias[None].to(query.dtype))
        return self.proj(out.transpose(1, 2).reshape(batch, count, width))


class SegmentationBackbone(ViTBackbone):
    """Image (B, 3, H, W) to the maps (B, D, H / patch, W / patch) after the blocks ``out_indices``.

    Args:
        class_position: whether the class token has a row of the position embedding.
        registers: further tokens that are no patches.
        img_size: training crop (height, width) in pixels; sets the size of the position embedding and of the bias
            tables.
        final_norm: a LayerNorm after the last block (MAE's protocol has none).
    """

    NEW = {r"blocks\.\d+\.attn\.relative_position_bias_table": 0.0, r"blocks\.\d+\.ls[12]\.gamma": 1.0}
    DROPPED = (r"(fc_)?norm\.(weight|bias)",)  # no norm after the blocks

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
        patch_bias: bool,
        class_token: bool,
        class_position: bool,
        registers: int = 0,
        img_size: tuple[int, int] = (512, 512),
        out_indices: tuple[int, ...] | None = None,
        drop_path: float = 0.1,
        final_norm: bool = False,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.base = base = (-(-img_size[0] // patch_size), -(-img_size[1] // patch_size))
        self.out_indices = out_blocks(depth) if out_indices is None else tuple(out_indices)
        self.checkpointing = checkpointing
        self.patch_embed = PatchEmbed(patch_size, width, patch_bias)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width)) if class_token else None
        self.reg_token = nn.Parameter(torch.zeros(1, registers, width)) if registers else None
        self.pos_embed = nn.Parameter(torch.zeros(1, base[0] * base[1] + int(class_position), width))
        self.norm_pre = nn.LayerNorm(width, eps=eps) if pre_norm else nn.Identity()
        self.blocks = nn.ModuleList(
            Block(Attention(width, heads, base), width, hidden, eps, activation, True, drop)
            for drop in drop_path_rates(drop_path, depth)
        )
        self.norm = nn.LayerNorm(width, eps=eps) if final_norm else nn.Identity()

    @staticmethod
    def arguments(spec: EncoderSpec, state: dict[str, Tensor]) -> dict[str, Any]:
        state = plain_state(spec, state)
        sizes = sizes_of(spec, state)
        del (
            sizes["layer_scale"],
            sizes["positions"],
        )  # this protocol always has the one; the other follows from img_size
        return {
            **sizes,
            "class_token": "cls_token" in state,
            "class_position": has_class_row(state["pos_embed"]),
            "registers": spec.registers,
        }

    def fit(self, spec: EncoderSpec, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Position embedding and BEiT's bias resized to the training crop, once, as MAE's protocol does."""
        prefix, patches = resize_pos_embed(state["pos_embed"], has_class_row(state["pos_embed"]), self.base)
        positions = patches.flatten(1, 2)
        state["pos_embed"] = positions if prefix is None else torch.cat([prefix, positions], 1)
        side = spec.img_size // spec.patch_size
        for name in [name for name in state if name.endswith(".relative_position_bias_table")]:
            state[name] = resize_table(state[name], (side, side), self.base)
        return state

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        patches = self.patch_embed(images)
        grid = (patches.shape[1], patches.shape[2])
        prefix, positions = self._positions(grid)
        x = (patches + positions).flatten(1, 2)
        if self.reg_token is not None:
            x = torch.cat([self.reg_token.expand(len(x), -1, -1), x], 1)
        if self.cls_token is not None:
            token = self.cls_token if prefix is None else self.cls_token + prefix
            x = torch.cat([token.expand(len(x), -1, -1), x], 1)
        x = self.norm_pre(x)
        maps = {}
        for index, block in enumerate(self.blocks):
            x = self.run_block(block, x, grid)
            if index in self.out_indices:
                y = self.seen(x, index)
                maps[index] = y[:, -grid[0] * grid[1] :].transpose(1, 2).unflatten(2, grid).contiguous()
        return tuple(maps[index] for index in self.out_indices)

    def seen(self, x: Tensor, index: int) -> Tensor:
        """What a head sees of the tokens after a block (B, N, D)."""
        return self.norm(x) if index == len(self.blocks) - 1 else x

    def _positions(self, grid: tuple[int, int]) -> tuple[Tensor | None, Tensor]:
        """Position embedding for the grid; the stored rows are those of ``base``, which need not be square."""
        extra = self.pos_embed.shape[1] - self.base[0] * self.base[1]
        patches = resize_grid(self.pos_embed[:, extra:].unflatten(1, self.base), grid)
        return (self.pos_embed[:, :extra] if extra else None), patches
