"""What both ViT backbones are built of: block, position embedding, and loading from the canonical encoder by name.

Axes: B batch, N tokens, D width, h w patch grid. Parameter names are timm's, so that the encoder's tensors load without
renaming.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from timm.layers import DropPath, LayerScale, Mlp
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from evaluate.encoder.model import ACTIVATIONS
from evaluate.encoder.spec import EncoderSpec


def drop_path_rates(highest: float, depth: int) -> list[float]:
    """Stochastic depth of each block, from 0 to ``highest`` linearly."""
    return [highest * index / max(depth - 1, 1) for index in range(depth)]


class Block(nn.Module):
    """Pre-norm transformer block of channels-last tokens; ``attention`` gets what ``forward`` gets besides them."""

    def __init__(
        self, attention: nn.Module, width: int, hidden: int, eps: float, activation: str, layer_scale: bool, drop: float
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=eps)
        self.attn = attention
        self.ls1 = LayerScale(width, init_values=1.0) if layer_scale else nn.Identity()
        self.norm2 = nn.LayerNorm(width, eps=eps)
        self.mlp = Mlp(width, hidden, act_layer=ACTIVATIONS[activation])
        self.ls2 = LayerScale(width, init_values=1.0) if layer_scale else nn.Identity()
        self.drop_path = DropPath(drop)

    def forward(self, x: Tensor, *grid: tuple[int, int]) -> Tensor:
        x = x + self.drop_path(self.ls1(self.attn(self.norm1(x), *grid)))
        return x + self.drop_path(self.ls2(self.mlp(self.norm2(x))))


class PatchEmbed(nn.Module):
    """Image (B, 3, H, W) to patches (B, h, w, D); right and bottom are padded with zeros to whole patches."""

    def __init__(self, patch_size: int, width: int, bias: bool) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.proj = nn.Conv2d(3, width, patch_size, patch_size, bias=bias)

    def forward(self, images: Tensor) -> Tensor:
        bottom, right = (-images.shape[2] % self.patch_size, -images.shape[3] % self.patch_size)
        if bottom or right:
            images = F.pad(images, (0, right, 0, bottom))
        return self.proj(images).permute(0, 2, 3, 1)


def padded_side(side: int, patch_size: int) -> int:
    """The side in pixels that a picture is padded to, so that each map of its pyramid covers it exactly.

    A multiple of two patches, as the coarsest map that is pooled has cells of two patches.
    """
    return -(-side // (2 * patch_size)) * 2 * patch_size


def resize_pos_embed(pos_embed: Tensor, has_class_row: bool, grid: tuple[int, int]) -> tuple[Tensor | None, Tensor]:
    """The class token's row (1, 1, D) or None, and the others resized to the grid, (1, h, w, D)."""
    prefix = pos_embed[:, :1] if has_class_row else None
    patches = pos_embed[:, 1:] if has_class_row else pos_embed
    side = round(patches.shape[1] ** 0.5)
    if side * side != patches.shape[1]:
        raise ValueError(f"a position embedding of {patches.shape[1]} patches is not square")
    patches = patches.reshape(1, side, side, -1)
    return prefix, resize_grid(patches, grid)


def resize_grid(patches: Tensor, grid: tuple[int, int]) -> Tensor:
    """Position rows (1, h, w, D) resized to the grid: bicubic, no antialias, as detectron2 and mmseg do."""
    if tuple(patches.shape[1:3]) == tuple(grid):
        return patches
    resized = F.interpolate(patches.permute(0, 3, 1, 2), size=grid, mode="bicubic", align_corners=False)
    return resized.permute(0, 2, 3, 1)


def has_class_row(pos_embed: Tensor) -> bool:
    """Whether a position embedding (1, N, D) begins with the class token's row: N is then one more than a square."""
    count = pos_embed.shape[1]
    return round(count**0.5) ** 2 != count


def resize_table(table: Tensor, base: tuple[int, int], grid: tuple[int, int]) -> Tensor:
    """A table ((2 h - 1) (2 w - 1) + 3, heads) of the grid ``base`` resized bicubically; the last three rows stay."""
    if tuple(base) == tuple(grid):
        return table
    square = table[:-3].T.reshape(1, -1, 2 * base[0] - 1, 2 * base[1] - 1)
    square = F.interpolate(square.float(), size=(2 * grid[0] - 1, 2 * grid[1] - 1), mode="bicubic", align_corners=False)
    return torch.cat([square.reshape(table.shape[1], -1).T.to(table.dtype), table[-3:]])


def relative_bias(table: Tensor, base: tuple[int, int], grid: tuple[int, int], prefix: int) -> Tensor:
    """The additive bias (heads, N, N) of a table ((2 h - 1) (2 w - 1) + 3, heads) made for the grid ``base``.

    The last three rows are prefix token to patch, patch to prefix token, and prefix token to prefix token (BEiT's
    order, whose only prefix token is the class token; registers share them). The patches' part is resized bicubically
    where the grid differs from ``base``.

    Args:
        prefix: tokens before the patches; without any the three rows are not used.
    """
    h, w = grid
    table = resize_table(table, base, grid)
    patches, extra = table[:-3], table[-3:]
    rows, columns = torch.arange(h, device=table.device), torch.arange(w, device=table.device)
    row_offset = (rows[:, None] - rows[None] + h - 1)[:, None, :, None]
    column_offset = (columns[:, None] - columns[None] + w - 1)[None, :, None, :]
    index = (row_offset * (2 * w - 1) + column_offset).reshape(h * w, h * w)
    bias = patches[index].permute(2, 0, 1)
    if not prefix:
        return bias
    full = bias.new_empty(bias.shape[0], prefix + h * w, prefix + h * w)
    full[:, prefix:, prefix:] = bias
    full[:, :prefix, prefix:], full[:, prefix:, :prefix], full[:, :prefix, :prefix] = extra[:, :, None, None]
    return full


def plain_state(spec: EncoderSpec, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """An encoder's tensors under the names of a plain timm ViT with a position embedding.

    BEiT's separate query and value biases become one (its keys have none), its gammas layer scales; an encoder without
    position embedding gets zeros, which change nothing. Beside registers, the positions of all tokens that are no patch
    go into these tokens, so that the position embedding has at most a row for the class token.

    Raises:
        ValueError: an encoder that is no ViT.
    """
    if spec.family != "vit":
        raise ValueError(f"a ViT backbone cannot be built from an encoder of family {spec.family!r}")
    plain = {
        name.replace(".gamma_1", ".ls1.gamma").replace(".gamma_2", ".ls2.gamma"): value for name, value in state.items()
    }
    for index in range(spec.depth):
        attention = f"blocks.{index}.attn."
        query, value = plain.pop(attention + "q_bias", None), plain.pop(attention + "v_bias", None)
        if query is not None and value is not None:
            plain[attention + "qkv.bias"] = torch.cat([query, torch.zeros_like(query), value])
        plain.setdefault(attention + "qkv.bias", plain[attention + "qkv.weight"].new_zeros(3 * spec.embed_dim))
    if not spec.pos_embed:
        plain["pos_embed"] = plain["patch_embed.proj.weight"].new_zeros(
            1, (spec.img_size // spec.patch_size) ** 2, spec.embed_dim
        )
    elif spec.registers and spec.pos_embed_prefix:
        first = int(spec.class_token)
        own, registers, patches = plain["pos_embed"].tensor_split((first, first + spec.registers), 1)
        plain |= {"reg_token": plain["reg_token"] + registers, "pos_embed": patches}
        if spec.class_token:
            plain["cls_token"] = plain["cls_token"] + own
    return plain


def load_encoder(
    module: nn.Module, state: dict[str, Tensor], new: Mapping[str, float], dropped: Iterable[str]
) -> dict[str, list[str]]:
    """Loads the encoder's tensors strictly. A module on the meta device takes them as they are, without a copy.

    Args:
        new: patterns of the names that this backbone may have on top of the encoder, and the value that these tensors
            begin with.
        dropped: patterns of the names that the encoder may have and this backbone has no use for.

    Returns:
        ``{"matched": [...], "new": [...], "dropped": [...]}``.

    Raises:
        ValueError: names that are neither, or a shape that differs.
    """
    own, dropped = module.state_dict(), tuple(dropped)
    begins = {
        name: value
        for name in own
        if name not in state
        for pattern, value in new.items()
        if re.fullmatch(pattern, name)
    }
    missing = [name for name in own if name not in state and name not in begins]
    unexpected = [
        name for name in state if name not in own and not any(re.fullmatch(pattern, name) for pattern in dropped)
    ]
    if missing or unexpected:
        raise ValueError(
            f"the encoder does not fit {type(module).__name__}: missing {missing[:5]}, unexpected {unexpected[:5]}"
        )
    matched = [name for name in own if name in state]
    for name in matched:
        if own[name].shape != state[name].shape:
            raise ValueError(
                f"{name} has shape {tuple(state[name].shape)}, {type(module).__name__} expects {tuple(own[name].shape)}"
            )
    filled = {name: torch.full(own[name].shape, value) for name, value in begins.items()}
    module.load_state_dict(
        {**filled, **{name: state[name] for name in matched}}, assign=any(tensor.is_meta for tensor in own.values())
    )
    return {"matched": matched, "new": list(begins), "dropped": [n for n in state if n not in own]}


class ViTBackbone(nn.Module):
    """What both ViT backbones can do with a canonical encoder."""

    NEW: ClassVar[dict[str, float]]
    """Patterns of the parameters that an encoder may lack, and the neutral value that they then begin with."""
    DROPPED: ClassVar[tuple[str, ...]]
    """Patterns of an encoder's parameters that the backbone has no use for."""
    checkpointing: bool
    """Recompute activations in the backward pass to save memory."""

    @staticmethod
    def arguments(spec: EncoderSpec, state: dict[str, Tensor]) -> dict[str, Any]:
        """The constructor's arguments that follow from the encoder, as plain values for a config."""
        raise NotImplementedError

    def fit(self, spec: EncoderSpec, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """The encoder's plain state, resized to this backbone."""
        return state

    def load(self, spec: EncoderSpec, state: dict[str, Tensor]) -> dict[str, list[str]]:
        """Loads the encoder's tensors strictly, as ``load_encoder`` does, and returns the same."""
        return load_encoder(self, self.fit(spec, plain_state(spec, state)), self.NEW, self.DROPPED)

    @classmethod
    def from_spec(cls, spec: EncoderSpec, state: dict[str, Tensor], **settings: Any) -> Self:
        """The encoder's backbone with its weights, which it shares with ``state`` where no resizing is needed."""
        with torch.device("meta"):
            backbone = cls(**cls.arguments(spec, state), **settings)
        backbone.load(spec, state)
        return backbone

    def run_block(self, block: nn.Module, x: Tensor, *grid: tuple[int, int]) -> Tensor:
        """A block's output."""
        if self.checkpointing and self.training:
            return checkpoint(block, x, *grid, use_reentrant=False)
        return block(x, *grid)


def sizes_of(spec: EncoderSpec, state: dict[str, Tensor]) -> dict[str, Any]:
    """The keyword arguments that both backbones take from the encoder's spec and its plain state."""
    return {
        "patch_size": spec.patch_size,
        "width": spec.embed_dim,
        "depth": spec.depth,
        "heads": spec.num_heads,
        "hidden": state["blocks.0.mlp.fc1.weight"].shape[0],
        "eps": spec.layer_norm_eps,
        "activation": spec.activation,
        "pre_norm": bool(spec.pre_norm),
        "layer_scale": "blocks.0.ls1.gamma" in state,
        "patch_bias": "patch_embed.proj.bias" in state,
        "positions": state["pos_embed"].shape[1],
    }
