"""The spec of an encoder, from its tensors, its format and what the file says of itself.

A file written by ``evaluate.checkpoints.export`` carries ``encoder_spec``: an entry of the checkpoint, of the state
dict's ``_metadata``, of the safetensors metadata or of ``config.json``. Reading it back, these values win over what the
format implies.
"""

import dataclasses
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from evaluate.checkpoints import statements
from evaluate.checkpoints.formats.table import Format, State
from evaluate.checkpoints.reader import Checkpoint
from evaluate.encoder.model import build
from evaluate.encoder.spec import CHOICES, MAX_BLOCKS, MAX_HEADS, EncoderSpec
from evaluate.runtime.errors import UserError
from results.escape import plain

FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
WHOLE = (torch.int64, torch.int32, torch.int16, torch.uint8)
HEAD_WIDTHS = {1280: 80, 1408: 88, 1664: 104}  # ViT-H, -g, -G; all others have 64 channels a head


@dataclass(frozen=True)
class Options:
    """What a user says of a conversion; part of the encoder's identity, since it decides what the encoder is."""

    branch: str = ""
    """The branch taken."""
    asked: Mapping[str, Any] = field(default_factory=dict)
    """What was asked for: ``branch``, ``format``, ``prefix``; only what was."""
    assume: Mapping[str, Any] = field(default_factory=dict)
    """Values of ``EncoderSpec`` that win over everything, checked."""

    def to_dict(self) -> dict[str, Any]:
        """Plain data, equal for equal wishes."""
        assume = {name: list(v) if isinstance(v, tuple) else v for name, v in sorted(self.assume.items())}
        return {**dict(self.asked), **({"assume": assume} if assume else {})}


@dataclass(frozen=True)
class Described:
    """An encoder's spec and what a reader of it must know."""

    spec: EncoderSpec
    """With what was assumed."""
    notes: list[str]
    """What was found and not used."""


def options_of(
    branch: str | None = None,
    format: str | None = None,
    assume: Mapping[str, Any] | None = None,
    normalize: str | None = None,
    prefix: str | None = None,
) -> Options:
    """The options of a conversion, their values read and checked.

    ``assume`` holds fields of ``EncoderSpec`` as text ("12", "0.5,0.5,0.5") or as values; ``normalize`` is a name of
    ``NORMALIZATIONS``.

    Raises:
        UserError: a field or a value that no encoder has.
    """
    values: dict[str, Any] = {}
    legal = tuple(dict.fromkeys((*VIT, *RESNET)))
    for name, value in (assume or {}).items():
        if name not in legal:
            raise UserError(f"--assume {name}: the fields are {', '.join(legal)}")
        values[name] = _parsed(value)
    if normalize is not None:
        if normalize not in statements.NORMALIZATIONS:
            raise UserError(f"--normalize takes {', '.join(statements.NORMALIZATIONS)}, not {normalize!r}")
        if {"mean", "std"} & set(values):
            raise UserError("--normalize and --assume mean or std say the same thing twice; give one of them")
        values["mean"], values["std"] = statements.NORMALIZATIONS[normalize]
    values = validated(values, "--assume")
    asked = {"branch": branch, "format": format, "prefix": prefix}
    return Options("", {name: value for name, value in asked.items() if value}, values)


def _parsed(value: Any) -> Any:
    """Text as a number, a triple of numbers or a word."""
    if not isinstance(value, str):
        return value
    text = value.strip()
    if "," in text and not text.startswith("["):
        text = f"[{text.strip('()')}]"
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return value.strip()


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
    weight = _needed(state, "patch_embed.proj.weight", 4, what)
    width, channels, rows, columns = weight.shape
    if channels != 3 or rows != columns:
        raise UserError(
            f"{what}: patch_embed.proj.weight has shape {tuple(weight.shape)}; square patches of 3 channels are "
            f"supported"
        )
    depth = _count(state, r"blocks\.(\d+)\.", "block", what)
    hidden = _needed(state, "blocks.0.mlp.fc1.weight", 2, what).shape[0]
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
            "num_heads": _heads(width, heads, what) if given.get("num_heads") is None else given["num_heads"],
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
    stem = _needed(state, "conv1.weight", 4, what)
    if tuple(stem.shape[1:]) != (3, 7, 7):
        raise UserError(
            f"{what}: conv1.weight has shape {tuple(stem.shape)}, a 7x7 convolution of 3 channels is expected (CIFAR "
            f"stems are not supported)"
        )
    layers = tuple(_count(state, rf"layer{stage}\.(\d+)\.", f"block of layer{stage}", what) for stage in range(1, 5))
    bottleneck = any(name.endswith("conv3.weight") for name in state)
    second = _needed(state, "layer1.0.conv2.weight", 4, what)
    cardinality = max(1, second.shape[0] // max(1, second.shape[1])) if bottleneck else 1
    last = _needed(state, f"layer4.0.conv{3 if bottleneck else 2}.weight", 4, what)
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
    whole: State = {}
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


def _needed(state: dict[str, Tensor], name: str, dimensions: int, what: str) -> Tensor:
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


def _heads(width: int, heads: Any, what: str) -> int:
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


ENTRY = "encoder_spec"
LONGEST_REMARK = 200  # letters
STANDARD_WIDTHS = (192, 384, 768, 1024, 1280)  # of ViT-Ti, -S, -B, -L and -H, whose heads every method has alike
VIT = ("num_heads", "layer_norm_eps", "activation", "mean", "std", "pooling", "interpolation")
RESNET = ("batch_norm_eps", "mean", "std", "pooling", "interpolation")


def to_metadata(spec: EncoderSpec) -> dict[str, Any]:
    """What the tensors of an encoder do not say, as plain values."""
    values = {name: getattr(spec, name) for name in (VIT if spec.family == "vit" else RESNET)}
    values |= {"remark": spec.remark} if spec.remark else {}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def from_metadata(said: Mapping[str, Any], family: str) -> dict[str, Any]:
    """The fields of ``EncoderSpec`` that an exported file's own words decide; others of its words are ignored."""
    return {name: said[name] for name in (VIT if family == "vit" else RESNET) if name in said}


def _remark(checkpoint: Checkpoint) -> str:
    """The sentence that the file wants every table to repeat: of an exported file, or of its training's settings."""
    for table in (checkpoint.encoder_spec, checkpoint.top_level.get("config")):
        remark = table.get("remark") if isinstance(table, dict) else None
        if isinstance(remark, str):
            return plain(" ".join(remark.split()))[:LONGEST_REMARK]
    return ""


def validated(given: Mapping[str, Any], what: str) -> dict[str, Any]:
    """The same fields with numbers as float and triples as tuples.

    Raises:
        UserError: naming a value that no encoder can have.
    """
    values = dict(given)
    for name, legal in CHOICES.items():
        if name in values and values[name] not in legal:
            raise UserError(f"{what} says {name} {values[name]!r}; it is one of {', '.join(legal)}")
    for name in ("layer_norm_eps", "batch_norm_eps"):
        if name in values:
            if not _number(values[name]) or not 0 < values[name] < 1:
                raise UserError(f"{what} says {name} {values[name]!r}; a small positive number is expected")
            values[name] = float(values[name])
    for name in ("mean", "std"):
        if name not in values:
            continue
        triple = values[name]
        if not isinstance(triple, list | tuple) or len(triple) != 3 or not all(_number(value) for value in triple):
            raise UserError(f"{what} says {name} {triple!r}; three numbers on the 0 to 1 scale are expected")
        if max(map(abs, triple)) > 10:
            raise UserError(f"{what} says {name} {triple!r}; the 0 to 1 scale of pixels is expected")
        if name == "std" and min(triple) <= 0:
            raise UserError(f"{what} says std {triple!r}; it must be positive")
        values[name] = tuple(float(value) for value in triple)
    heads = values.get("num_heads")
    if heads is not None and (not isinstance(heads, int) or isinstance(heads, bool) or not 0 < heads <= MAX_HEADS):
        raise UserError(f"{what} says num_heads {heads!r}; a whole number from 1 to {MAX_HEADS} is expected")
    return values


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def spec_of(
    state: State, source: State, known: Format, checkpoint: Checkpoint, options: Options, what: str
) -> Described:
    """The spec, what of it was assumed, and what was found and not used.

    For every field the first of these that says something decides: the options, what our own exported file says,
    everything else that the file and its folder say (``statements``), the tensors, the format. What the format's keys
    leave open is assumed, and listed as such.
    """
    found = statements.read(checkpoint, known.naming, known.family, what)
    tensors = known.read_semantics(source) if known.read_semantics else {}
    own = from_metadata(checkpoint.encoder_spec, known.family)
    undecided = known.undecided(source)
    epoch = checkpoint.top_level.get("epoch")
    given: dict[str, Any] = {
        "source_format": known.name,
        "branch": options.branch,
        "epoch": epoch if isinstance(epoch, int) and not isinstance(epoch, bool) else None,
        "source_sha256": checkpoint.sha256,
        "source_json_sha256": checkpoint.json_sha256,
        "options": options.to_dict(),
        "remark": _remark(checkpoint),
    }
    assumed: dict[str, dict[str, Any]] = {}
    fields = VIT if known.family == "vit" else RESNET
    for name in options.assume:
        if name not in fields:
            raise UserError(f"--assume {name}: this encoder's fields are {', '.join(fields)}")
    for name in fields:
        option = "--normalize or --assume" if name in ("mean", "std") else f"--assume {name}=VALUE"
        if name in options.assume:
            given[name] = options.assume[name]
            continue
        if name in own:
            given[name] = own[name]
            continue
        said = found.value(name, what, option)
        fact = tensors.get(name)
        if said and fact is not None and not statements.same(said.value, fact) and name == "num_heads":
            raise UserError(
                f"{what}: {said.place} says num_heads {said.value}, but the tensors have {fact}; the file is "
                f"inconsistent"
            )
        if said is not None:
            given[name] = said.value
        elif fact is not None:
            given[name] = fact
        else:
            given[name], why = _default(name, known, state, undecided, what)
            if why:
                assumed[name] = {"value": given[name], "option": option, "why": why}
    given = validated(given, f"{what}: the file")
    if "mean" in assumed or "std" in assumed:  # one assumption, said once
        both = {key: assumed.pop(key)["value"] for key in ("mean", "std") if key in assumed}
        option = "--normalize imagenet, half, clip or none"
        assumed["normalization"] = {"value": both, "option": option, "why": f"usual for {known.name} files"}
    if known.family == "resnet":
        spec = resnet(state, given, what)
        statements.compare_shape(found, {"layers": spec.layers}, what)
    else:
        width, _, _, patch = _needed(state, "patch_embed.proj.weight", 4, what).shape
        statements.compare_shape(found, {"embed_dim": width, "patch_size": patch}, what)
        may_lack = known.pos_embed_may_lack_prefix or bool(own) or "reg_token" in state
        spec = vit(state, given, None, may_lack, what)
        sizes = {name: getattr(spec, name) for name in ("img_size", "patch_size", "embed_dim", "depth")}
        statements.compare_shape(found, sizes, what)
        if spec.rel_pos_bias or not spec.pos_embed:
            assumed.pop("interpolation", None)
    spec = dataclasses.replace(spec, assumed=assumed)
    try:
        spec.check()
    except ValueError as error:
        raise UserError(f"{what}: {error}") from error
    return Described(spec, found.notes)


def _default(name: str, known: Format, state: State, undecided: tuple[str, ...], what: str) -> tuple[Any, str]:
    """A field that nothing says: the format's own value, and why it is only assumed ("" where the format decides
    it)."""
    pre_norm = "norm_pre.weight" in state
    usual = f"usual for {known.name} files"
    if name == "num_heads":
        width = _needed(state, "patch_embed.proj.weight", 4, what).shape[0]
        if known.num_heads is not None:
            return known.num_heads(width), ""
        decided = "num_heads" not in undecided and (width in STANDARD_WIDTHS or known.name == "clip_openai")
        return _heads(width, None, what), "" if decided else f"{HEAD_WIDTHS.get(width, 64)} channels a head"
    if name in ("mean", "std"):
        value = known.normalization[("mean", "std").index(name)]
        return value, usual if "mean" in undecided else ""
    if name == "batch_norm_eps":
        return EncoderSpec.batch_norm_eps, ""
    value = getattr(known, name)
    if name == "pooling" and "cls_token" not in state and known.family == "vit":
        return "mean", ""
    if name == "pooling" and "fc_norm.weight" in state:
        return "mean", ""
    if pre_norm and known.layer_norm_eps == 1e-6 and known.naming != "open_clip":
        if name == "layer_norm_eps":
            return 1e-5, "a norm before the blocks is CLIP's, whose eps this is"
        if name == "activation":
            raise UserError(
                f"{what}: a norm before the blocks shows that this is a CLIP model, but nothing says its activation; "
                f"give --assume activation=quick_gelu for OpenAI's models, --assume activation=gelu for open_clip's"
            )
    return value, usual if name in undecided else ""
