"""Checkpoints that survive a kill at any moment, a full disk and damage: written whole or not at all, with a checksum;
the last few are kept.

``checkpoint.pth`` is the newest; ``checkpoint.1.pth``, ``checkpoint.2.pth``, … came before it. The checksum is
a CRC-32 of every byte of the file, kept as the comment that a zip archive (what torch.save writes) may end with: other
readers pass over it.
"""

import itertools
import json
import os
import re
import threading
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor, nn

from pretrain.config import PretrainConfig
from pretrain.methods import MethodModule

NAME = "checkpoint.pth"
KEEP = 3
SAVE_MINUTES = 10.0  # between two saves
CHECKSUM = b"crc32:%08x"
CHECKSUM_LENGTH = len(CHECKSUM % 0)
CHUNK = 2**24


def save(
    folder: Path, model: nn.Module, method: MethodModule, config: PretrainConfig, keep: int = KEEP, **state: Any
) -> Path:
    """Writes ``checkpoint.pth`` under the method's official names, and config.json, as ``put``; returns the path."""
    return put(folder, _content(model, method, config, state), keep)


class Saver:
    """Saves from a thread: training goes on while the file is written. One file is written at a time.

    As a context it waits for the thread at its end. Only ``save`` and ``wait`` tell what failed in it.
    """

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None

    def __enter__(self) -> "Saver":
        return self

    def __exit__(self, *_: object) -> None:
        if self._thread:
            self._thread.join()

    def save(
        self, folder: Path, model: nn.Module, method: MethodModule, config: PretrainConfig, keep: int, **state: Any
    ) -> None:
        """Copies everything to the memory of the CPU and begins to write it, after the save before has ended.

        Raises:
            Exception: what the save before raised, OSError as a rule.
        """
        self.wait()
        content = in_own_memory(_content(model, method, config, state))
        self._thread = threading.Thread(target=self._put, args=(folder, content, keep), name="checkpoint")
        self._thread.start()

    def wait(self) -> None:
        """Returns when everything is on the disk. Raises what the last save raised, once."""
        if self._thread:
            self._thread.join()
        error, self._thread, self._error = self._error, None, None
        if error:
            raise error

    def _put(self, folder: Path, content: dict[str, Any], keep: int) -> None:
        try:
            put(folder, content, keep)
        except Exception as error:  # it is raised in the thread that trains
            self._error = error


def in_own_memory(content: Any) -> Any:
    """A copy of nested dictionaries, lists and tuples whose tensors are copied to the memory of the CPU."""
    if isinstance(content, Tensor):
        return content.detach().to("cpu", copy=True)
    if isinstance(content, dict):
        return {key: in_own_memory(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return type(content)(in_own_memory(value) for value in content)
    return content


def _content(model: nn.Module, method: MethodModule, config: PretrainConfig, state: dict[str, Any]) -> dict[str, Any]:
    return {"model": method.to_official(model.state_dict()), "config": config.to_json(), **state}


def put(folder: Path, content: dict[str, Any], keep: int) -> Path:
    """Writes a checkpoint and its config.json; ``keep`` checkpoints stay, this one included.

    The new file is whole and on the disk before it takes the name, and each older one is whole under one name or the
    next.

    Raises:
        OSError: the folder cannot take the file; the older checkpoints are as they were.
    """
    path, temporary = folder / NAME, folder / f".{NAME}.part"
    text = json.dumps(content["config"], indent=1).encode()
    write(folder / "config.json", lambda file: file.write(text))
    _write_part(path, temporary, lambda file: _write_with_checksum(file, content))
    older = [path, *(folder / f"checkpoint.{number}.pth" for number in range(1, keep))]
    for source, target in reversed(list(itertools.pairwise(older))):
        if source.exists():
            os.replace(source, target)
    os.replace(temporary, path)
    for left_over in checkpoints(folder)[keep:]:
        left_over.unlink()
    _sync_folder(folder)
    return path


def checkpoints(folder: Path) -> list[Path]:
    """Every checkpoint of a folder, the newest first."""
    numbered = {
        int(match[1]): path
        for path in folder.glob("checkpoint.*.pth")
        if (match := re.fullmatch(r"checkpoint\.(\d+)", path.stem))
    }
    newest = [folder / NAME] if (folder / NAME).is_file() else []
    return newest + [numbered[number] for number in sorted(numbered)]


def newest(folder: Path) -> tuple[Path, int] | None:
    """The newest whole checkpoint and its checksum, or None where the folder holds none; names each damaged one that it
    passes over.

    Raises ValueError where every one is damaged: starting again from nothing must be the user's decision.
    """
    found = checkpoints(folder)
    for path in found:
        checksum = checksum_of(path)
        if checksum is not None:
            return path, checksum
        print(f"pretrain: {path} is damaged and is passed over", flush=True)
    if found:
        raise ValueError(
            f"every checkpoint in {folder} is damaged; remove them to start again, or choose another --out"
        )
    return None


def load(path: Path, checksum: int) -> dict[str, Any]:
    """What ``newest`` found. Raises ValueError if the file is another one here, in this process."""
    if checksum_of(path) != checksum:
        raise ValueError(
            f"{path} is not the same file for every process; --out must be a folder that all of them share"
        )
    return torch.load(path, map_location="cpu", weights_only=True)


def checksum_of(path: Path) -> int | None:
    """The CRC-32 that a checkpoint carries, or None if the file is not what it was when it was written."""
    try:
        with path.open("rb") as file:
            body = path.stat().st_size - CHECKSUM_LENGTH - 2
            checksum = _crc32(file, body) if body > 0 else 0
            end = file.read()
    except OSError:
        return None
    return checksum if end == CHECKSUM_LENGTH.to_bytes(2, "little") + CHECKSUM % checksum else None


def write(path: Path, content: Callable[[BinaryIO], Any]) -> None:
    """A small file, whole or not at all. Raises OSError."""
    temporary = path.with_name(f".{path.name}.part")
    _write_part(path, temporary, content)
    os.replace(temporary, path)


def _write_with_checksum(file: BinaryIO, content: dict[str, Any]) -> None:
    torch.save(content, file)
    body = file.tell() - 2  # an archive ends with the length of its comment, which is 0
    file.seek(0)
    checksum = _crc32(file, body)
    file.seek(body)
    file.write(CHECKSUM_LENGTH.to_bytes(2, "little") + CHECKSUM % checksum)


def _write_part(path: Path, temporary: Path, content: Callable[[BinaryIO], Any]) -> None:
    try:
        with temporary.open("wb+") as file:
            content(file)
            file.flush()
            os.fsync(file.fileno())
    except (OSError, RuntimeError) as error:  # torch.save hides the first behind the second
        reason = _reason(error)
        if reason is None:
            raise
        try:
            temporary.unlink(missing_ok=True)  # it may be what fills the disk
        except OSError:
            pass  # a folder that cannot be written holds no part either
        raise OSError(
            f"{path} could not be written ({reason}); what was saved before is whole: "
            "make room, or make the folder writable, and start again"
        ) from error


def _reason(error: BaseException) -> str | None:
    """The operating system's reason in an error or in those that led to it; None where there is none."""
    seen: BaseException | None = error
    while seen is not None and not isinstance(seen, OSError):
        seen = seen.__context__
    return None if seen is None else seen.strerror


def _crc32(file: BinaryIO, length: int) -> int:
    """CRC-32 of the next ``length`` bytes of a file."""
    checksum = 0
    while length > 0 and (chunk := file.read(min(CHUNK, length))):
        checksum = zlib.crc32(chunk, checksum)
        length -= len(chunk)
    return checksum


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
