"""The canonical encoder: one description, one model, one file format. Here is its face; torch is imported when a name
first needs it."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from evaluate.encoder.file import load, save
    from evaluate.encoder.model import Encoder, Maps, Tokens, build, fingerprint
    from evaluate.encoder.spec import KIND, EncoderSpec, certificate_path, read_spec

__all__ = [
    "KIND",
    "Encoder",
    "EncoderSpec",
    "Maps",
    "Tokens",
    "build",
    "certificate_path",
    "fingerprint",
    "load",
    "read_spec",
    "save",
]
HOMES = {
    "file": ("load", "save"),
    "spec": ("KIND", "EncoderSpec", "certificate_path", "read_spec"),
}  # the others: "model"


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = next((home for home, names in HOMES.items() if name in names), "model")
    return getattr(importlib.import_module(f"{__name__}.{home}"), name)
