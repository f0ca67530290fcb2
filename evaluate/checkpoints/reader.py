"""Reads a checkpoint file of any container without running anything in it: tensors and plain data only.

PyTorch archives and legacy pickles go through ``torch.load(weights_only=True)``, with ``argparse.Namespace`` the one
type allowed besides. Files that also hold objects of a few well-known packages (numpy scalars, a trainer's
configuration), and TorchScript archives, go through ``evaluate.checkpoints.unpickler``, which rebuilds tensors and puts
a placeholder for everything else; no callable that a file names is ever looked up. Every fault is a UserError of one
sentence naming the file.
"""

import argparse
import json
import pickle
import re
import zipfile
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from evaluate.checkpoints.files import DESCRIPTIONS, INDEX, _json_beside, _shards, digests, weights_file
from evaluate.checkpoints.unpickler import (
    PLACEHOLDER_PACKAGES,
    Placeholder,
    _first_line,
    _flat,
    _read_with_placeholders,
)
from evaluate.encoder.spec import KIND
from evaluate.runtime.errors import UserError

NOT_WEIGHTS = re.compile(
    r"(.*optimizer.*|.*scaler.*|.*scheduler.*|amp|callbacks|loops|message_hub|args|config|hyper_parameters)"
)
MAX_NESTING = 6


@dataclass(frozen=True)
class Checkpoint:
    """What a file holds: its tensors and what it says besides, all of it plain data."""

    path: Path
    """The weights file, or the index of several."""
    sha256: str
    """Of the weights, as ``evaluate.checkpoints.files.digests``."""
    json_sha256: str
    """Of the JSON files beside it that describe it, likewise."""
    state_dicts: dict[str, dict[str, torch.Tensor]]
    """By their path in the file ("" top level, "model", "teacher", …), keys without ``module.``."""
    top_level: dict[str, Any] = field(default_factory=dict)
    """Plain values at the top level (epoch, arch), ``argparse.Namespace`` as a dict."""
    config: dict[str, Any] = field(default_factory=dict)
    """Hugging Face's or timm's ``config.json`` beside the file, or {}."""
    preprocessor: dict[str, Any] = field(default_factory=dict)
    """Hugging Face's ``preprocessor_config.json`` beside the file, or {}."""
    not_restored: tuple[str, ...] = ()
    """Top-level entries that hold objects which were not read."""
    encoder_spec: dict[str, Any] = field(default_factory=dict)
    """What a file written by ``evaluate.checkpoints.export``, or an encoder file, says of its encoder, or {}."""

    @property
    def settings(self) -> dict[str, Any]:
        """What the file says of its own model: ``args`` and, stronger, ``config``."""
        places = (self.top_level.get("args"), self.top_level.get("config"))
        return {key: value for place in places if isinstance(place, dict) for key, value in place.items()}


def read(path: Path) -> Checkpoint:
    """Reads a checkpoint file, or a Hugging Face folder.

    Raises:
        UserError: absent, empty, truncated, not a checkpoint, or an object that only running code could restore.
    """
    path = weights_file(path)
    content = _content(path)
    if isinstance(content, torch.Tensor) or not isinstance(content, dict):
        raise UserError(
            f"{path} is not a checkpoint: it holds a single {type(content).__name__}, a dictionary of named tensors "
            f"is expected"
        )
    groups: dict[str, dict[str, torch.Tensor]] = {}
    _collect(content, "", groups, path, 0)
    if not groups:
        raise UserError(f"{path} holds no weights (its entries: {_listed(content)}); give a file with a state dict")
    entries = {str(key): _plain(value) for key, value in content.items() if not isinstance(value, torch.Tensor)}
    config, preprocessor = (_json_beside(path, name) for name in DESCRIPTIONS)
    return Checkpoint(
        path,
        *digests(path),
        state_dicts={name: _without_wrapper(state) for name, state in groups.items()},
        top_level=entries,
        config=config,
        preprocessor=preprocessor,
        not_restored=tuple(str(key) for key, value in content.items() if _holds_placeholder(value)),
        encoder_spec=_encoder_spec(content, entries, config),
    )


def _read_shards(index: Path) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = {}
    for shard, named in _shards(index).items():
        content = _content(shard)
        if not isinstance(content, dict) or set(content) != named:
            raise UserError(f"{shard} does not hold the tensors that {index.name} says; download the folder again")
        state.update(content)
    return state


def _content(path: Path) -> Any:
    """The object in a file; the container is told by its bytes, not by its name."""
    if path.name.endswith(INDEX):
        return _read_shards(path)
    try:
        with path.open("rb") as file:
            head = file.read(16)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror})") from error
    if not head:
        raise UserError(f"{path} is empty (0 bytes); download or copy it again")
    if head[8:9] == b"{" or path.suffix == ".safetensors":
        return _read_safetensors(path)
    if head[:2] == b"PK":
        return _read_zip(path)
    if head[:1] == b"\x80":
        return _torch_load(path, None)
    raise UserError(
        f"{path} is not a checkpoint: it is neither a PyTorch archive, a pickle nor a safetensors file; download it "
        f"again"
    )


def _read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    try:
        with safe_open(path, "pt") as file:
            state = OrderedDict((name, file.get_tensor(name)) for name in file.keys())  # noqa: SIM118  (not a dict)
            state._metadata = file.metadata() or {}  # where torch keeps what belongs to a state dict and is no tensor
            return state
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(
            f"{path} is not a whole safetensors file, it may be truncated ({error}); download or copy it again"
        ) from error


def _read_zip(path: Path) -> Any:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        raise UserError(
            f"{path} is a truncated or damaged PyTorch archive ({error}); download or copy it again"
        ) from error
    if not any(name.endswith("data.pkl") for name in names):
        raise UserError(f"{path} is not a checkpoint: it is a zip archive without data.pkl (it holds {_listed(names)})")
    if any(name.endswith("constants.pkl") for name in names):
        return _flat(_read_with_placeholders(path, script=True))
    return _torch_load(path, zipped=True)


def _torch_load(path: Path, zipped: bool | None) -> Any:
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=bool(zipped))
    except pickle.UnpicklingError as error:
        foreign = _foreign_globals(path, str(error), bool(zipped))
        if zipped and foreign and all(name.split(".")[0] in PLACEHOLDER_PACKAGES for name in foreign):
            return _read_with_placeholders(path, script=False)
        what = f"holds an object of type {foreign[0]}" if foreign else "is not a checkpoint that can be read safely"
        raise UserError(
            f"{path} {what}, which is not restored because doing so may run code;"
            ' save its weights alone, with torch.save({"state_dict": model.state_dict()}, FILE), where it is trusted'
        ) from error
    except Exception as error:  # a damaged file makes torch raise almost anything; each is a fault of the file
        raise UserError(
            f"{path} cannot be read as a PyTorch file, it is truncated or damaged ({_first_line(error)})"
        ) from error


def _foreign_globals(path: Path, message: str, zipped: bool) -> list[str]:
    """Names of the callables and types that a pickle asks for and weights_only refuses."""
    if zipped:
        with torch.serialization.safe_globals([argparse.Namespace]):
            return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    found = re.search(r"GLOBAL ([\w.]+)", message) or re.search(
        r"([\w]+(?:\.[\w]+)+) was not an allowed global", message
    )
    return [found.group(1)] if found else []


def _collect(
    node: dict[Any, Any], name: str, groups: dict[str, dict[str, torch.Tensor]], path: Path, depth: int
) -> None:
    """Every dictionary that directly holds named tensors, by its path; what training keeps besides the weights is left
    out."""
    tensors = {key: value for key, value in node.items() if isinstance(key, str) and isinstance(value, torch.Tensor)}
    for key, value in tensors.items():
        stored = value.untyped_storage().nbytes() if value.layout == torch.strided and not value.is_meta else 0
        if value.layout != torch.strided or value.is_quantized or value.numel() * value.element_size() > stored:
            raise UserError(
                f"{path}: tensor {key!r} of shape {tuple(value.shape)} is not stored in full ({stored} bytes); save "
                f"it dense"
            )
    if tensors:
        groups[name] = tensors
    for key, value in node.items():
        if isinstance(key, str) and isinstance(value, dict) and depth < MAX_NESTING and not NOT_WEIGHTS.fullmatch(key):
            _collect(value, f"{name}/{key}" if name else key, groups, path, depth + 1)


def _without_wrapper(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Without the prefix that DistributedDataParallel or torch.compile gave to every key."""
    for prefix in ("module.", "_orig_mod."):
        if all(key.startswith(prefix) for key in state):
            state = {key.removeprefix(prefix): value for key, value in state.items()}
    return state


def _plain(value: Any, depth: int = 0) -> Any:
    """A value as plain data: a Namespace becomes a dict, whatever is not plain its type's name."""
    if isinstance(value, argparse.Namespace):
        value = vars(value)
    if isinstance(value, dict) and depth < MAX_NESTING:
        return {str(key): _plain(item, depth + 1) for key, item in value.items() if not isinstance(item, torch.Tensor)}
    if isinstance(value, list | tuple) and depth < MAX_NESTING and len(value) < 1000:
        return [_plain(item, depth + 1) for item in value]
    return value if isinstance(value, str | int | float | bool | type(None)) else type(value).__name__


def _encoder_spec(content: dict[Any, Any], entries: dict[str, Any], config: dict[str, Any]) -> dict[str, Any]:
    """What an exported file or an encoder file says of its encoder, wherever its format has room for it."""
    metadata = getattr(content, "_metadata", None)
    metadata = metadata if isinstance(metadata, dict) else {}
    own = metadata.get("spec") if metadata.get("kind") == KIND else None
    for place in (entries.get("encoder_spec"), metadata.get("encoder_spec"), own, config.get("encoder_spec")):
        if isinstance(place, str):  # safetensors metadata holds text
            try:
                place = json.loads(place)
            except ValueError:
                place = None  # another program's word for something else
        if isinstance(place, dict):
            return place
    return {}


def _holds_placeholder(value: Any, depth: int = 0) -> bool:
    if isinstance(value, dict):
        return depth < MAX_NESTING and any(_holds_placeholder(item, depth + 1) for item in value.values())
    return isinstance(value, Placeholder)


def _listed(names: Any, most: int = 8) -> str:
    names = [str(name) for name in names]
    return (
        ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "") if names else "none"
    )
