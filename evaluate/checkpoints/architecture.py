"""The architecture that the tensors of a checkpoint describe, and whether they fill it."""

import math
import re
from typing import Any

import torch
from torch import Tensor

from evaluate.encoder.model import build
from evaluate.encoder.spec import MAX_BLOCKS, EncoderSpec
from evaluate.runtime.errors import UserError

FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
WHOLE = (torch.int64, torch.int32, torch.int16, torch.uint8)
HEAD_WIDTHS = {1280: 80, 1408: 88, 1664: 104}  # ViT-H, -g, -G; all others have 64 channels a head


def check_values(state: dict[str, Tensor], what: str) -> None:
    """Raises UserError naming a tensor that is not floating point, or holds NaN or infinity."""
    for name, tensor in state.items():
        if name.endswith("num_batches_tracked"):
            if tensor.dtype not in (*FLOATS, *WHOLE) or not torch.isfinite(tensor).all():
                raise UserError(f"{what}: {name} ({tensor.dtype}) must be a number of batches; the file is damaged")
            continue
        if tensor.dtype not in FLOATS:
            raise UserError(
                f"{what}: {name} is of type {tensor.dtype}, but weights must be floating point; the file is damaged "
                f"or of another format"
            )
        if not torch.isfinite(tensor).all():
            raise UserError(
                f"{what}: {name} holds NaN or infinite values; take a checkpoint from before the run diverged"
            )


def vit(
    state: dict[str, Tensor], given: dict[str, Any], heads: Any, pos_embed_may_lack_prefix: bool, what: str
) -> EncoderSpec:
    """The spec of a ViT. ``given``: fields known otherwise (semantics, provenance, perhaps ``num_heads``); ``heads``:
    from the width; ``pos_embed_may_lack_prefix``: the position embedding may lack rows for class token and registers.

    Raises:
        UserError: a tensor is absent whose shape is needed, or sizes that contradict each other.
    """
    weight = needed(state, "patch_embed.proj.weight", 4, what)
    width, channels, rows, columns = weight.shape
    if channels != 3 or rows != columns:
        raise UserError(
            f"{what}: patch_embed.proj.weight has shape {tuple(weight.shape)}; square patches of 3 channels are "
            f"supported"
        )
    depth = _count(state, r"blocks\.(\d+)\.", "block", what)
    hidden = needed(state, "blocks.0.mlp.fc1.weight", 2, what).shape[0]
    ratio = hidden / width
    relative = any("relative_position_bias_table" in name for name in state)
    class_token, registers = "cls_token" in state, state["reg_token"].shape[1] if "reg_token" in state else 0
    side, with_prefix = _grid(state, int(class_token) + registers, relative, pos_embed_may_lack_prefix, what)
    spec = EncoderSpec(
        **{
            "family": "vit",
            "embed_dim": width,
            "depth": depth,
            "img_size": side * rows,
            "patch_size": rows,
            "num_heads": heads_of(width, heads, what) if given.get("num_heads") is None else given["num_heads"],
            "mlp_ratio": ratio if int(width * ratio) == hidden else (hidden + 0.5) / width,
            "pre_norm": any(name.startswith("norm_pre.") for name in state),
            "final_norm": any(name.startswith("norm.") for name in state),
            "fc_norm": any(name.startswith("fc_norm.") for name in state),
            "class_token": class_token,
            "registers": registers,
            "pos_embed": "pos_embed" in state,
            "pos_embed_prefix": with_prefix,
            "qkv_bias": any(name.endswith((".attn.qkv.bias", ".attn.q_bias")) for name in state),
            "layer_scale": any(name.endswith((".ls1.gamma", ".gamma_1")) for name in state),
            "rel_pos_bias": relative,
            **{name: value for name, value in given.items() if name != "num_heads"},
        }
    )
    if width % spec.num_heads:
        raise UserError(
            f"{what}: {spec.num_heads} heads do not divide the width {width}; correct the checkpoint's config"
        )
    if spec.final_norm and spec.fc_norm:
        raise UserError(f"{what}: both norm and fc_norm exist, and it is unclear which one is the encoder's last")
    return spec


def resnet(state: dict[str, Tensor], given: dict[str, Any], what: str) -> EncoderSpec:
    """The spec of a ResNet with torchvision names. Raises UserError as ``vit`` does."""
    stem = needed(state, "conv1.weight", 4, what)
    if tuple(stem.shape[1:]) != (3, 7, 7):
        raise UserError(
            f"{what}: conv1.weight has shape {tuple(stem.shape)}, a 7x7 convolution of 3 channels is expected (CIFAR "
            f"stems are not supported)"
        )
    layers = tuple(_count(state, rf"layer{stage}\.(\d+)\.", f"block of layer{stage}", what) for stage in range(1, 5))
    bottleneck = any(name.endswith("conv3.weight") for name in state)
    second = needed(state, "layer1.0.conv2.weight", 4, what)
    cardinality = max(1, second.shape[0] // max(1, second.shape[1])) if bottleneck else 1
    last = needed(state, f"layer4.0.conv{3 if bottleneck else 2}.weight", 4, what)
    return EncoderSpec(
        **{
            "family": "resnet",
            "embed_dim": last.shape[0],
            "depth": sum(layers),
            "patch_size": 32,
            "layers": layers,
            "block": "bottleneck" if bottleneck else "basic",
            "cardinality": cardinality,
            "base_width": second.shape[0] // cardinality if bottleneck else 64,
            "pos_embed": False,
            **{
                name: value
                for name, value in given.items()
                if name not in ("num_heads", "layer_norm_eps", "activation")
            },
        }
    )


def complete(state: dict[str, Tensor], spec: EncoderSpec, what: str) -> dict[str, Tensor]:
    """The state dict in float32, with exactly the names and shapes of the model that ``spec`` describes.

    BatchNorm's batch counters, which old files lack and no feature depends on, are the only tensors filled in (with 0).

    Raises:
        UserError: naming what is missing, left over or of another shape (all of the latter, with both shapes).
    """
    expected = {name: tuple(tensor.shape) for name, tensor in build(spec).state_dict().items()}
    state = {**{name: torch.tensor(0) for name in expected if name.endswith("num_batches_tracked")}, **state}
    missing = [name for name in expected if name not in state]
    if missing:
        raise UserError(f"{what}: {_listed(missing)} is missing; the file is incomplete")
    left_over = [name for name in state if name not in expected]
    if left_over:
        raise UserError(f"{what}: {_listed(left_over)} has no place in the model that the other tensors describe")
    wrong = [
        f"{name} has shape {tuple(state[name].shape)}, expected {shape}"
        for name, shape in expected.items()
        if tuple(state[name].shape) != shape
    ]
    if wrong:
        raise UserError(f"{what}: {'; '.join(wrong[:8])}" + (f"; and {len(wrong) - 8} more" if len(wrong) > 8 else ""))
    whole: dict[str, Tensor] = {}
    places: set[int] = set()
    for name in expected:
        tensor = _own(state[name].long() if name.endswith("num_batches_tracked") else state[name].float())
        if tensor.data_ptr() in places and tensor.numel():  # two names of one tensor: files hold each by itself
            tensor = tensor.clone()
        places.add(tensor.data_ptr())
        whole[name] = tensor
    return whole


def _own(tensor: Tensor) -> Tensor:
    """Contiguous, and no part of a larger storage."""
    tensor = tensor.detach().contiguous()
    return tensor if tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size() else tensor.clone()


def needed(state: dict[str, Tensor], name: str, dimensions: int, what: str) -> Tensor:
    """A tensor without which there is no encoder. Raises UserError where it is missing, empty, or has other than so
    many dimensions; ``what`` names the checkpoint."""
    if name not in state:
        raise UserError(f"{what}: {name} is missing; the file is incomplete")
    if state[name].dim() != dimensions or 0 in state[name].shape:
        raise UserError(f"{what}: {name} has shape {tuple(state[name].shape)}, {dimensions} dimensions are expected")
    return state[name]


def _count(state: dict[str, Tensor], pattern: str, what_is_counted: str, what: str) -> int:
    """How many consecutive indices there are from 0; a gap is an error that names it."""
    there = {int(found.group(1)) for name in state if (found := re.match(pattern, name))}
    if not there:
        raise UserError(f"{what}: there is no {what_is_counted} 0; the file is incomplete")
    gaps = [index for index in range(min(max(there), MAX_BLOCKS)) if index not in there]
    if gaps:
        raise UserError(
            f"{what}: {what_is_counted} {gaps[0]} is missing while {what_is_counted} {max(there)} is there; the file "
            f"is incomplete"
        )
    if len(there) > MAX_BLOCKS:
        raise UserError(f"{what}: {len(there)} blocks; at most {MAX_BLOCKS} are supported")
    return len(there)


def heads_of(width: int, heads: Any, what: str) -> int:
    """The number of heads of a ViT of that width: by the format's function ``heads``, or else by the usual 64 channels
    a head (ViT-H, -g, -G: their own). Raises UserError where the width is no multiple of them."""
    if heads is not None:
        return heads(width)
    channels = HEAD_WIDTHS.get(width, 64)
    if width % channels:
        raise UserError(
            f"{what}: the number of heads cannot be inferred from the width {width}; give it with --assume num_heads=N"
        )
    return width // channels


def _grid(
    state: dict[str, Tensor], prefix: int, relative: bool, pos_embed_may_lack_prefix: bool, what: str
) -> tuple[int, bool]:
    """Patches a side, and whether class token and registers have position rows of their own."""
    if "pos_embed" not in state:
        if not relative:
            raise UserError(f"{what}: pos_embed is missing; the file is incomplete")
        table = next(tensor for name, tensor in state.items() if name.endswith("relative_position_bias_table"))
        span = math.isqrt(max(0, table.shape[0] - 3))
        if span * span + 3 != table.shape[0] or span % 2 == 0:
            raise UserError(
                f"{what}: relative_position_bias_table has {table.shape[0]} rows, which is no square window"
            )
        return (span + 1) // 2, True
    rows = state["pos_embed"].shape[1] if state["pos_embed"].dim() == 3 else 0
    for leading, with_prefix in ((prefix, True), (0, False)) if pos_embed_may_lack_prefix else ((prefix, True),):
        side = math.isqrt(max(0, rows - leading))
        if side > 0 and side * side == rows - leading:
            return side, with_prefix or prefix == 0
    if prefix == 0 and math.isqrt(max(0, rows - 1)) ** 2 == rows - 1 > 0:
        raise UserError(f"{what}: cls_token is missing, but pos_embed has a row for it; the file is incomplete")
    raise UserError(
        f"{what}: pos_embed has shape {tuple(state['pos_embed'].shape)}, which is no square grid after {prefix} "
        f"leading rows"
    )


def _listed(names: list[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
