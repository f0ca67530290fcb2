"""Atomic checkpoints under the official names, and resuming from the newest that is whole."""

import hashlib
import json
import os
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from pretrain.config import PretrainConfig

NAME, PREVIOUS = "checkpoint.pth", "checkpoint.previous.pth"


def save(folder: Path, model: nn.Module, method: ModuleType, config: PretrainConfig, **state: Any) -> Path:
    """Writes ``checkpoint.pth`` with its sha256 beside it, and keeps the one before as ``checkpoint.previous.pth``.

    The new file is complete and on the disk before it takes the name; a kill at any moment leaves at least one whole checkpoint.
    """
    path, temporary = folder / NAME, folder / f".{NAME}.{os.getpid()}"
    torch.save({"model": method.to_official(model.state_dict()), "config": config.to_json(), **state}, temporary)
    with temporary.open("rb+") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        os.fsync(file.fileno())
    if path.exists():
        os.replace(path, folder / PREVIOUS)
        os.replace(_digest_file(path), _digest_file(folder / PREVIOUS))
    _digest_file(path).write_text(digest)
    os.replace(temporary, path)
    _sync_folder(folder)
    (folder / "config.json").write_text(json.dumps(config.to_json(), indent=1))
    return path


def load_newest(folder: Path) -> dict[str, Any] | None:
    """The newest checkpoint of a folder that is whole by its sha256, or None; says which damaged one it passes over."""
    for path in (folder / NAME, folder / PREVIOUS):
        if not path.is_file():
            continue
        with path.open("rb") as file:
            whole = _digest_file(path).is_file() and hashlib.file_digest(file, "sha256").hexdigest() == _digest_file(path).read_text()
        if whole:
            return torch.load(path, map_location="cpu", weights_only=True)
        print(f"{path} is damaged (its sha256 does not match) and is passed over")
    return None


def _digest_file(path: Path) -> Path:
    return path.with_name(path.name + ".sha256")


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
