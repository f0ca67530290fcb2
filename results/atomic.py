"""Files that are whole or not there, and their digests."""

import contextlib
import hashlib
import os
import platform
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from results.ending import FULL, is_full

FOREIGN_SECONDS = (
    24 * 3600.0
)  # what another machine has left half-written is taken for dead when nothing in it changed for so long
ASKED_BYTES = 2**16  # a disk that takes no more of these is full
OWNER = re.compile(r"\.(?P<machine>[0-9a-f]{8})-(?P<pid>\d+)-[^.]*\.part")


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """A place of the same name to write a file or a folder at; it becomes ``path`` when the block ends.

    If the block fails, it is removed. The content is on the disk before it takes the name, with the permissions that
    the umask gives to any new file. The place is in a hidden folder beside ``path``, whose name says which process
    writes there: what lists ``path``'s folder by an ending does not meet half a file. Raises OSError where the folder
    cannot take it, naming ``path`` where the disk is full, also from inside the block.
    """
    owner = f".{path.name}.{machine()}-{os.getpid()}-"
    with tempfile.TemporaryDirectory(
        prefix=owner, suffix=".part", dir=path.parent, ignore_cleanup_errors=True
    ) as beside:
        written = Path(beside) / path.name
        try:
            yield written
            _give_usual_mode(Path(beside), written)
            if written.is_file():
                with written.open("rb") as file:
                    os.fsync(file.fileno())
            os.replace(written, path)
        except Exception as error:
            full = _no_room(Path(beside), error)
            if full:
                raise OSError(full.errno, full.strerror, str(path)) from error
            raise


def _no_room(folder: Path, error: Exception) -> OSError | None:
    """The reason of a failed write, if it is a full disk. torch and safetensors hide it: then the disk is asked."""
    if isinstance(error, OSError):
        return error if is_full(error) else None
    hidden = next((number for number in FULL if os.strerror(number) in str(error)), None)
    if hidden:
        return OSError(hidden, os.strerror(hidden))
    try:
        (folder / ".room").write_bytes(bytes(ASKED_BYTES))
    except OSError as reason:
        return reason if is_full(reason) else None
    return None


def remove_partial(folder: Path, name: str) -> None:
    """What killed processes have left of files of this name (it may be a pattern); each may be as large as a model.

    What a live process is writing stays: two commands may save the same name at once.
    """
    for half in folder.glob(f".{name}.*.part"):
        if is_left_over(half):
            shutil.rmtree(half, ignore_errors=True)


def sha256(path: Path) -> str:
    """Of a file's bytes, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _give_usual_mode(folder: Path, written: Path) -> None:
    """Gives what was written the permissions of any new file: safetensors makes its files for the owner alone."""
    usual = folder / ".mode"
    usual.touch()  # the umask cannot be asked for without changing it; the mode of a new file says it
    mode = usual.stat().st_mode & 0o666
    inside = written.rglob("*") if written.is_dir() and not written.is_symlink() else ()
    for path in (written, *inside):
        wanted = mode | (mode & 0o444) >> 2 if path.is_dir() else mode
        if path.is_symlink() or path.stat().st_mode & wanted == wanted:
            continue
        with contextlib.suppress(OSError):  # some mounts have no modes
            path.chmod(path.stat().st_mode & 0o7777 | wanted)


def is_left_over(half: Path) -> bool:
    """Whether nobody writes there any more; a name without its owner is an earlier version's, which has ended."""
    owner = OWNER.search(half.name)
    if owner is None:
        return True
    if owner["machine"] == machine():
        return not _is_alive(int(owner["pid"]))
    try:
        newest = max(path.stat().st_mtime for path in (half, *half.rglob("*")))
    except OSError:
        return False  # it changes as we look
    return time.time() - newest > FOREIGN_SECONDS


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except (ProcessLookupError, OverflowError):
        return False
    with contextlib.suppress(OSError, IndexError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in (
            "Z",
            "X",
        )  # a zombie writes nothing
    return True


def machine() -> str:
    """Eight digits of where a process number means the same process: this boot of this machine, this container."""
    parts = [platform.node()]
    with contextlib.suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text())
    with contextlib.suppress(OSError):
        parts.append(os.readlink("/proc/self/ns/pid"))
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:8]
