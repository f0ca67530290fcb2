"""Reads a checkpoint file of any container without running anything in it: tensors and plain data only.

PyTorch archives and legacy pickles go through ``torch.load(weights_only=True)``, with ``argparse.Namespace`` the one
type allowed besides. Files that also hold objects of a few well-known packages (numpy scalars, a trainer's
configuration), and TorchScript archives, go through ``evaluate.checkpoints.unpickler``, which rebuilds tensors and puts
a placeholder for everything else; no callable that a file names is ever looked up. Every fault is a UserError of one
sentence naming the file.
"""

import argparse
import dataclasses
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

from evaluate.checkpoints.files import INDEX, OPEN_CLIP, _json_beside, _shards, descriptions, digests, weights_file
from evaluate.checkpoints.unpickler import (
    PLACEHOLDER_PACKAGES,
    Placeholder,
    _first_line,
    _flat,
    _read_with_placeholders,
)
from evaluate.encoder.spec import KIND, read_spec
from evaluate.runtime.errors import UserError

NOT_WEIGHTS = re.compile(
    r"(.*optimizer.*|.*scaler.*|.*scheduler.*|amp|callbacks|loops|message_hub|args|config|hyper_parameters)"
)
OPTIMIZER = re.compile(r".*(optimizer|scaler|scheduler|callbacks|loops|rng).*")  # large, and says nothing of the model
MAX_NESTING = 6
MAX_ENTRIES = 100_000  # values besides the tensors; a trainer's settings are some hundreds
# what DistributedDataParallel, torch.compile, FSDP and activation checkpointing leave in a key
WRAPPERS = ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
CHUNK = re.compile(r"((?:.+\.)?)blocks\.\d+\.(\d+)\.")


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
    open_clip: dict[str, Any] = field(default_factory=dict)
    """open_clip's ``open_clip_config.json`` beside the file, or {}."""
    outside_prefix: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """By state dict the keys that a prefix (``without_prefix``) left outside."""
    not_restored: tuple[str, ...] = ()
    """Top-level entries that hold objects which were not read."""
    encoder_spec: dict[str, Any] = field(default_factory=dict)
    """What a file written by ``evaluate.checkpoints.export``, or an encoder file, says of its encoder, or {}."""

    @property
    def settings(self) -> dict[str, Any]:
        """What the file says of its own model: ``args`` and, stronger, ``config``."""
        places = (self.top_level.get("args"), self.top_level.get("config"))
        return {key: value for place in places if isinstance(place, dict) for key, value in place.items()}

    def without_prefix(self, prefix: str) -> "Checkpoint":
        """The same file as if every key behind ``prefix`` stood alone; state dicts that have none are left out.

        The prefix is one of keys (``encoder.``), the path of a state dict (``teacher``), or both
        (``teacher/encoder.``).
        """
        states: dict[str, dict[str, torch.Tensor]] = {}
        outside: dict[str, tuple[str, ...]] = {}
        for path, state in self.state_dicts.items():
            own = prefix.removeprefix(f"{path}/") if path else prefix
            if own == path:
                states[path], outside[path] = state, ()
                continue
            own = own.rstrip(".") + "."
            inside = {
                key.removeprefix(own): tensor for key, tensor in state.items() if key.startswith(own) and key != own
            }
            if inside:
                states[path] = inside
                left = tuple(key for key in state if not key.startswith(own))
                outside[path] = (*self.outside_prefix.get(path, ()), *left)
        return dataclasses.replace(self, state_dicts=states, outside_prefix=outside)


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
    groups = _collect(content, path)
    if not groups:
        raise UserError(f"{path} holds no weights (its entries: {_listed(content)}); give a file with a state dict")
    plain = _Plain(path)
    entries = {
        str(key): plain(value)
        for key, value in content.items()
        if not isinstance(value, torch.Tensor) and str(key) not in groups and not OPTIMIZER.fullmatch(str(key))
    }
    entries |= {str(key): "…" for key in content if OPTIMIZER.fullmatch(str(key))}
    entries |= {name: "…" for name in groups if name in content}
    beside = {name: _json_beside(path, name) for name in descriptions(path)}
    config = beside.get("config.json", {})
    return Checkpoint(
        path,
        *digests(path),
        state_dicts={name: without_wrappers(state, str(path)) for name, state in groups.items()},
        top_level=entries,
        config=config,
        preprocessor=beside.get("preprocessor_config.json", {}),
        open_clip=beside.get(OPEN_CLIP, {}),
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
    read_spec(path)  # an encoder file of ours whose spec is damaged is refused, not read as another program's
    try:
        with safe_open(path, "pt") as file:
            state = OrderedDict((name, file.get_tensor(name)) for name in file.keys())  # noqa: SIM118  (not a dict)
            # where torch keeps what belongs to a state dict and is no tensor
            state._metadata = file.metadata() or {}  # type: ignore[attr-defined]  # torch sets it on the plain class
            return state
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(
            f"{path} is not a whole safetensors file, it may be truncated ({error}); download or copy it again"
        ) from error


def _read_zip(path: Path) -> Any:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            declared = sum(entry.file_size for entry in archive.infolist())
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        raise UserError(
            f"{path} is a truncated or damaged PyTorch archive ({error}); download or copy it again"
        ) from error
    if declared > 2 * path.stat().st_size + 2**20:
        raise UserError(
            f"{path} is a compressed archive of {declared} bytes in a file of {path.stat().st_size}, which "
            f"torch.save never "
            f"writes; unpack it first if it is trusted"
        )
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


def _collect(content: dict[Any, Any], path: Path) -> dict[str, dict[str, torch.Tensor]]:
    """Every dictionary that directly holds named tensors, by its path; what training keeps besides is left out."""
    groups: dict[str, dict[str, torch.Tensor]] = {}
    waiting, seen = [("", content, 0)], {id(content)}
    while waiting:
        name, node, depth = waiting.pop(0)
        tensors = {
            key: value for key, value in node.items() if isinstance(key, str) and isinstance(value, torch.Tensor)
        }
        for key, value in tensors.items():
            stored = value.untyped_storage().nbytes() if value.layout == torch.strided and not value.is_meta else 0
            if value.layout != torch.strided or value.is_quantized or value.numel() * value.element_size() > stored:
                raise UserError(
                    f"{path}: tensor {key!r} of shape {tuple(value.shape)} is not stored in full ({stored} bytes); "
                    f"save it dense"
                )
        if tensors:
            groups[name] = tensors
        for key, value in node.items():
            below = isinstance(key, str) and isinstance(value, dict) and depth < MAX_NESTING
            if below and not NOT_WEIGHTS.fullmatch(key) and id(value) not in seen:
                if len(seen) > MAX_ENTRIES:
                    raise UserError(f"{path} holds more than {MAX_ENTRIES} dictionaries, which no checkpoint does")
                seen.add(id(value))  # a dictionary that stands in several places is read once
                waiting.append((f"{name}/{key}" if name else key, value, depth + 1))
    return groups


def without_wrappers(state: dict[str, torch.Tensor], what: str) -> dict[str, torch.Tensor]:
    """The keys without the parts that training wrappers leave in them, wherever and as often as they stand.

    Also without the chunks that DINOv2's training puts its blocks into: ``blocks.1.3.…`` is block 3.

    Raises:
        UserError: two keys that become one.
    """
    bare: dict[str, torch.Tensor] = {}
    for key, tensor in state.items():
        name = ".".join(part for part in key.split(".") if part not in WRAPPERS) or key
        if name in bare:
            raise UserError(f"{what}: two keys become {name!r} without the parts of training wrappers, one is {key!r}")
        bare[name] = tensor
    chunks = {key: CHUNK.sub(r"\1blocks.\2.", key) for key in bare}
    if len(set(chunks.values())) == len(chunks):  # other models count blocks within stages, from 0 in each
        bare = {chunks[key]: tensor for key, tensor in bare.items()}
    return bare


class _Plain:
    """Turns values into plain data: a Namespace becomes a dict, whatever is not plain its type's name.

    At most ``MAX_ENTRIES`` values, since a few kilobytes can hold one list many times over, level upon level.
    """

    def __init__(self, path: Path):
        self.path, self.left = path, MAX_ENTRIES

    def __call__(self, value: Any, depth: int = 0) -> Any:
        self.left -= 1
        if self.left < 0:
            raise UserError(
                f"{self.path} holds more than {MAX_ENTRIES} values besides its tensors; save its state dict alone, "
                f"with "
                f'torch.save({{"state_dict": model.state_dict()}}, FILE)'
            )
        if isinstance(value, argparse.Namespace):
            value = vars(value)
        if isinstance(value, dict) and depth < MAX_NESTING:
            return {
                str(key)[:200]: self(item, depth + 1)
                for key, item in value.items()
                if not isinstance(item, torch.Tensor)
            }
        if isinstance(value, list | tuple) and depth < MAX_NESTING and len(value) < 1000:
            return [self(item, depth + 1) for item in value]
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


def _holds_placeholder(value: Any) -> bool:
    waiting, seen = [(value, 0)], {id(value)}
    while waiting:
        node, depth = waiting.pop()
        if isinstance(node, Placeholder):
            return True
        if isinstance(node, dict) and depth < MAX_NESTING:
            below = [item for item in node.values() if isinstance(item, dict | Placeholder) and id(item) not in seen]
            seen.update(map(id, below))
            waiting += [(item, depth + 1) for item in below]
    return False


def _listed(names: Any, most: int = 8) -> str:
    names = [str(name) for name in names]
    return (
        ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "") if names else "none"
    )
