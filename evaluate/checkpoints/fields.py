"""What decides each field of an encoder's spec: its tensors, its format and what the file says of itself.

A file written by ``evaluate.checkpoints.export`` carries ``encoder_spec``: an entry of the checkpoint, of the state
dict's ``_metadata``, of the safetensors metadata or of ``config.json``. Reading it back, these values win over what the
format implies.
"""

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from evaluate.checkpoints import statement_readers, statements
from evaluate.checkpoints.architecture import HEAD_WIDTHS, heads_of, needed, resnet, vit
from evaluate.checkpoints.formats.table import Format, State
from evaluate.checkpoints.reader import Checkpoint
from evaluate.encoder.spec import CHOICES, MAX_HEADS, EncoderSpec
from evaluate.runtime.errors import UserError
from results.escape import plain

ENTRY = "encoder_spec"
LONGEST_REMARK = 200  # letters
STANDARD_WIDTHS = (192, 384, 768, 1024, 1280)  # of ViT-Ti, -S, -B, -L and -H, whose heads every method has alike
VIT = ("num_heads", "layer_norm_eps", "activation", "mean", "std", "pooling", "interpolation")
RESNET = ("batch_norm_eps", "mean", "std", "pooling", "interpolation")


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
    found = statement_readers.read(checkpoint, known.naming, known.family, what)
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
        width, _, _, patch = needed(state, "patch_embed.proj.weight", 4, what).shape
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
        width = needed(state, "patch_embed.proj.weight", 4, what).shape[0]
        if known.num_heads is not None:
            return known.num_heads(width), ""
        decided = "num_heads" not in undecided and (width in STANDARD_WIDTHS or known.name == "clip_openai")
        return heads_of(width, None, what), "" if decided else f"{HEAD_WIDTHS.get(width, 64)} channels a head"
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
