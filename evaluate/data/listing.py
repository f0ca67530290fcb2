"""The one lister of files: every reader, and the identity of the data, see the same ones.

Symbolic links are followed. Hidden names are left out, and so is whatever a file system, a file server or an archive
tool leaves behind.
"""

import errno
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TypeVar

from evaluate.runtime.errors import UserError

T = TypeVar("T")
THREADS = 16  # file systems of a network answer many at once
# in lower case; names that begin with a dot are hidden anyway
LEFT_BEHIND = frozenset(
    {
        # file systems: ext4, FAT
        *("lost+found", "found.000", "aquota.user", "aquota.group"),
        # Windows
        *("thumbs.db", "ehthumbs.db", "desktop.ini", "$recycle.bin", "recycler", "system volume information"),
        # macOS
        *("__macosx", "icon\r", "network trash folder", "temporary items"),
        # file servers
        *("@eadir", "#recycle", "#snapshot", "@recycle", "@recently-snapshot", "~snapshot"),
        # tar
        *("paxheader", "paxheaders", "pax_global_header"),
    }
)


def is_left_behind(name: str) -> bool:
    """Whether the name of a file or folder is a hidden one, or one of LEFT_BEHIND."""
    return name.startswith(".") or name.lower() in LEFT_BEHIND


def entries(folder: str | Path) -> list[os.DirEntry[str]]:
    """What lies in a folder, sorted by name. Raises UserError for a folder that cannot be read."""
    try:
        with os.scandir(folder) as found:
            visible = [entry for entry in found if not is_left_behind(entry.name)]
        if not os.access(folder, os.X_OK):  # then names can be listed, and no file opened
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return sorted(visible, key=lambda entry: entry.name)
    except OSError as error:
        raise _closed(f"the folder {folder}", error) from error


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether an entry is a folder, or a link to one. Raises UserError for a link that may not be followed."""
    try:
        return entry.is_dir()
    except OSError as error:
        if error.errno == errno.ELOOP:  # a link to itself
            return False
        raise _closed(entry.path, error) from error


def walk(root: Path, look: Callable[[os.DirEntry[str]], T], leave_out: Path | None = None) -> Iterator[tuple[str, T]]:
    """Every file below a folder, in no order: its path there, and what ``look`` says of it.

    A link that leads back to a folder above itself is passed over. A link that leads nowhere counts as a file, so that
    whoever reads it names it.

    Args:
        look: called in several threads.
        leave_out: a folder that is not entered.

    Raises:
        UserError: naming a folder that cannot be read.
    """
    left_out = os.path.realpath(leave_out) if leave_out else None
    with ThreadPoolExecutor(THREADS) as pool:
        level: list[_Folder] = [(str(root), "", (os.path.realpath(root),))]
        while level:
            following: list[_Folder] = []
            for files, folders in pool.map(partial(_scan, look=look), level):
                yield from files
                following += [folder for folder in folders if folder[2][-1] != left_out]
            level = following


_Folder = tuple[str, str, tuple[str, ...]]  # path, path below the root, the real paths from the root to the folder


def _scan(folder: _Folder, look: Callable[[os.DirEntry[str]], T]) -> tuple[list[tuple[str, T]], list[_Folder]]:
    path, below, way = folder
    files, folders = [], []
    for entry in entries(path):
        name = f"{below}/{entry.name}" if below else entry.name
        if is_folder(entry):
            real = os.path.realpath(entry.path) if entry.is_symlink() else os.path.join(way[-1], entry.name)
            if real not in way:
                folders.append((entry.path, name, (*way, real)))
        elif entry.is_symlink() or entry.is_file():  # neither a pipe nor a device
            files.append((name, look(entry)))
    return files, folders


def _closed(what: str, error: OSError) -> UserError:
    return UserError(f"{what} cannot be read ({error.strerror}); allow access to it, or move it away")
