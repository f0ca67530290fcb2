"""What the log of a job says of it."""

import contextlib
import re
import shutil
import signal
from pathlib import Path

from results.escape import plain

ROOM_BYTES = 2**20  # with less a disk is full: what a job could not write is already removed
# what the driver says of a GPU that is gone; an illegal access is a program's fault and leaves the GPU in order
GPU_IS_LOST = re.compile(
    r"CUDA error: (unknown error|uncorrectable ECC error|hardware stack error)[^\n]*"
    r"|GPU is lost[^\n]*|fallen off the bus[^\n]*|\bXid\b[^\n]*",
    re.IGNORECASE,
)


def last_line(log: Path, most: int = 300) -> str:
    """The last line of a log that says something, not the one that names the record, as a terminal can show it; empty
    where there is none.
    """
    text = log.read_text(errors="replace") if log.is_file() else ""
    lines = [
        line.strip() for line in text.splitlines() if any(map(str.isalnum, line)) and not line.startswith("record: ")
    ]
    return plain(lines[-1][:most]) if lines else ""


def lost_gpu(log: Path, most: int = 100) -> str:
    """What a log says of a GPU that no longer answers; "" where it says nothing of the kind."""
    found = GPU_IS_LOST.search(log.read_text(errors="replace")) if log.is_file() else None
    return plain(found[0][:most].strip()) if found else ""


def why(log: Path, status: int) -> str:
    """Why a job ended with another status than 0: its last words, or what is known where it had no time for words."""
    return killed_by(status, log) or last_line(log) or _no_words(log, status)


def _no_words(log: Path, status: int) -> str:
    """Of a job whose log is empty; a full disk takes no words."""
    with contextlib.suppress(OSError):
        if shutil.disk_usage(log.parent).free < ROOM_BYTES:
            return f"the disk of {log.parent} is full; make room and start the same command again"
    return f"its process ended with status {status}"


def killed_by(status: int, log: Path) -> str:
    """What is to be said of a process that a signal ended, which could say nothing itself; "" of any other, and where
    run_all has ended it and said why.
    """
    if 0 <= status <= 128 or last_line(log).startswith("ended: "):
        return ""
    number = -status if status < 0 else status - 128  # a shell's and torchrun's way
    name = signal.Signals(number).name if number in set(signal.Signals) else str(number)
    guess = ""
    if name == "SIGKILL":
        guess = (
            " (the system does that where memory runs out: choose fewer --workers, --jobs 1 or a smaller micro_batch)"
        )
    elif name == "SIGBUS":
        guess = " (shared memory ran out: provide a larger /dev/shm or choose fewer --workers)"
    return f"its process was ended by {name}{guess}; the same command goes on from its last state; its log is {log}"
