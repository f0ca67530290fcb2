"""Files that are whole or not there, and their digests."""

import contextlib
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """A place of the same name to write a file or a folder at; it becomes ``path`` when the block ends, and is removed if the block fails.

    The content is on the disk before it takes the name. The place is in a hidden folder beside ``path``: what lists ``path``'s folder by
    an ending does not meet half a file. Raises OSError where the folder cannot take it.
    """
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", suffix=".part", dir=path.parent, ignore_cleanup_errors=True) as beside:
        written = Path(beside) / path.name
        yield written
        if written.is_file():
            with written.open("rb") as file:
                os.fsync(file.fileno())
        os.replace(written, path)


def remove_partial(folder: Path, name: str) -> None:
    """What kills have left of files (``name`` may be a pattern) that this process alone writes; each may be as large as a model."""
    for half in folder.glob(f".{name}.*.part"):
        shutil.rmtree(half, ignore_errors=True)


def sha256(path: Path) -> str:
    """Of a file's bytes, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
