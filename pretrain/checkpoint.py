"""Atomic checkpoints under the official names, and resuming from the newest that is whole."""

import json
import os
import zipfile
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from pretrain.config import PretrainConfig

NAME, PREVIOUS = "checkpoint.pth", "checkpoint.previous.pth"


def save(folder: Path, model: nn.Module, method: ModuleType, config: PretrainConfig, **state: Any) -> Path:
    """Writes ``checkpoint.pth`` and keeps the one before as ``checkpoint.previous.pth``.

    The new file is complete and on the disk before it takes the name; a kill at any moment leaves at least one whole checkpoint.
    """
    path, temporary = folder / NAME, folder / f".{NAME}.part"
    torch.save({"model": method.to_official(model.state_dict()), "config": config.to_json(), **state}, temporary)
    with temporary.open("rb+") as file:
        os.fsync(file.fileno())
    if path.exists():
        os.replace(path, folder / PREVIOUS)
    os.replace(temporary, path)
    _sync_folder(folder)
    (folder / "config.json").write_text(json.dumps(config.to_json(), indent=1))
    return path


def load_newest(folder: Path) -> dict[str, Any] | None:
    """The newest whole checkpoint of a folder, or None where it holds none; says which damaged one it passes over.

    Raises ValueError where every one is damaged: starting again from nothing must be the user's decision.
    """
    found = [path for path in (folder / NAME, folder / PREVIOUS) if path.is_file()]
    for path in found:
        if is_whole(path):
            return torch.load(path, map_location="cpu", weights_only=True)
        print(f"{path} is damaged and is passed over")
    if found:
        raise ValueError(f"every checkpoint in {folder} is damaged; remove them to start again, or choose another --out")
    return None


def is_whole(path: Path) -> bool:
    """Whether every part of a file that torch.save wrote has its checksum (it is a zip archive, which holds one for each)."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except (zipfile.BadZipFile, EOFError, OSError):
        return False


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
