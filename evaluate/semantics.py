"""What an exported file says beside its tensors, and the check of whatever any file says of itself.

A file written by ``evaluate.export`` carries ``encoder_spec``: an entry of the checkpoint, of the state dict's ``_metadata``, of the
safetensors metadata or of ``config.json``. Reading it back, these values win over what the format implies.
"""

import math
from collections.abc import Mapping
from typing import Any

from evaluate.encoder.interpolation import METHODS
from evaluate.encoder.model import ACTIVATIONS
from evaluate.encoder.spec import EncoderSpec
from evaluate.runtime.errors import UserError

ENTRY = "encoder_spec"
VIT = ("num_heads", "layer_norm_eps", "activation", "mean", "std", "pooling", "interpolation")
RESNET = ("batch_norm_eps", "mean", "std", "pooling", "interpolation")
CHOICES = {"activation": tuple(ACTIVATIONS), "pooling": ("cls", "mean"), "interpolation": METHODS}
MAX_HEADS = 1024


def carried(spec: EncoderSpec) -> dict[str, Any]:
    """What the tensors of an encoder do not say, as plain values."""
    values = {name: getattr(spec, name) for name in (VIT if spec.family == "vit" else RESNET)}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def obeyed(said: Mapping[str, Any], family: str) -> dict[str, Any]:
    """The fields of ``EncoderSpec`` that an exported file's own words decide; others of its words are ignored."""
    return {name: said[name] for name in (VIT if family == "vit" else RESNET) if name in said}


def checked(given: Mapping[str, Any], what: str) -> dict[str, Any]:
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
        triple = values.get(name)
        if not isinstance(triple, list | tuple) or len(triple) != 3 or not all(_number(value) for value in triple):
            raise UserError(f"{what} says {name} {triple!r}; three numbers on the 0 to 1 scale are expected")
        if name == "std" and min(triple) <= 0:
            raise UserError(f"{what} says std {triple!r}; it must be positive")
        values[name] = tuple(float(value) for value in triple)
    heads = values.get("num_heads")
    if heads is not None and (not isinstance(heads, int) or isinstance(heads, bool) or not 0 < heads <= MAX_HEADS):
        raise UserError(f"{what} says num_heads {heads!r}; a whole number from 1 to {MAX_HEADS} is expected")
    return values


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
