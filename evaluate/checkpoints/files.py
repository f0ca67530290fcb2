"""Which files a checkpoint consists of, and their digests (no torch)."""

import hashlib
import json
from pathlib import Path
from typing import Any

from evaluate.runtime.errors import UserError
from results.atomic import sha256

INDEX = ".index.json"  # of weights in several files: {"weight_map": {tensor: file}}
DESCRIPTIONS = ("config.json", "preprocessor_config.json")  # Hugging Face's and timm's, beside the weights
OPEN_CLIP = "open_clip_config.json"  # open_clip's
WEIGHT_FILES = (
    "model.safetensors",
    "pytorch_model.bin",
    "model.safetensors" + INDEX,
    "pytorch_model.bin" + INDEX,
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.bin",
)
MAX_DESCRIPTION = 16 * 2**20  # bytes; a larger JSON file describes no checkpoint


def weights_file(path: Path) -> Path:
    """The file itself, or the weights in a Hugging Face folder; raises UserError where there is none."""
    if path.is_dir():
        for name in WEIGHT_FILES:
            if (path / name).is_file():
                return path / name
        raise UserError(f"the folder {path} holds none of {', '.join(WEIGHT_FILES)}; give the checkpoint file itself")
    if not path.exists():
        raise UserError(f"the checkpoint {path} does not exist; give the path of a file")
    if not path.is_file():
        raise UserError(f"{path} is not a regular file; give the path of a checkpoint")
    return path


def digests(path: Path) -> tuple[str, str]:
    """SHA-256 of a weights file (of an index: over its files), and of the JSON files beside it that describe it (""
    without any)."""
    shards = list(_shards(path)) if path.name.endswith(INDEX) else []
    described = [file for name in descriptions(path) if (file := path.with_name(name)).is_file()]
    return _over(shards) if shards else sha256(path), _over(described) if described else ""


def descriptions(path: Path) -> tuple[str, ...]:
    """Names of the JSON files that may describe a weights file: never one program's weights by another's
    description."""
    if path.name.startswith("open_clip_"):
        return (OPEN_CLIP,)
    return DESCRIPTIONS if path.name in WEIGHT_FILES else (*DESCRIPTIONS, OPEN_CLIP)


def _over(files: list[Path]) -> str:
    return hashlib.sha256("".join(map(sha256, files)).encode()).hexdigest()


def _shards(index: Path) -> dict[Path, set[str]]:
    """The files beside an index and the tensors that each must hold."""
    names = _json_beside(index, index.name).get("weight_map")
    if not isinstance(names, dict) or not names or not all(map(_is_shard, names.values())):
        raise UserError(
            f"{index} is not an index of weights: its weight_map must name a file of the same folder for every tensor"
        )
    shards: dict[Path, set[str]] = {}
    for tensor, name in names.items():
        shards.setdefault(index.with_name(name), set()).add(tensor)
    for shard in shards:
        if not shard.is_file():
            raise UserError(f"{index} names {shard.name}, which is not beside it; download all files of the folder")
    return shards


def _is_shard(name: Any) -> bool:
    return isinstance(name, str) and Path(name).name == name and not name.endswith(INDEX)


def _json_beside(path: Path, name: str) -> dict[str, Any]:
    """A Hugging Face folder's JSON file; {} where there is none."""
    file = path.with_name(name)
    if not file.is_file():
        return {}
    try:
        if file.stat().st_size > MAX_DESCRIPTION:
            raise ValueError("it is larger than 16 MiB")
        content = json.loads(file.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(
            f"{file}, which describes {path.name}, is not readable JSON ({error}); repair it, or move the checkpoint "
            f"to another folder"
        ) from error
    return content if isinstance(content, dict) else {}
