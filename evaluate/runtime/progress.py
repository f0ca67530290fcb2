"""Progress of long loops: a bar on a terminal, a plain line every so often elsewhere, and a note for who watches.

``run_all.py`` gives each of its tasks a file by the environment variable FILE. There the task notes how far it is
(``tell``), and ``run_all.py`` or any other process reads it (``told``).
"""

import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

from pydantic import TypeAdapter
from rich.progress import track as rich_track

Item = TypeVar("Item")
FILE = "SIAMESE_EVAL_PROGRESS"
CLOCK = "SIAMESE_EVAL_CLOCK"
SECONDS_BETWEEN_LINES = 10.0
SECONDS_BETWEEN_NOTES = 1.0


offset = float(os.environ.get(CLOCK) or time.time() - time.monotonic())  # of a task: that of its run_all.py


def steady() -> float:
    """Seconds since 1970 by the clock as it stood when the run began: setting the clock later does not change it."""
    return time.monotonic() + offset


@dataclass(frozen=True)
class Told:
    """What a task has said of itself last."""

    description: str
    """What it is at."""
    step: int
    total: int
    metric: str
    """In words, as ``loss 0.31``; may be empty."""
    left: float | None
    """Seconds to the end of what it is at, from ``time`` on; None before the first step."""
    time: float
    """When it was said, in seconds since 1970."""


@dataclass
class _Pace:
    """Since when, and from which step, this process has been at what it is at; when it last wrote of it."""

    description: str = ""
    first: int = 0
    begun: float = 0.0
    last: int = 0
    written: float = -SECONDS_BETWEEN_NOTES


_pace = _Pace()


def tell(description: str, step: int, total: int, metric: Callable[[], str] = str) -> None:
    """Notes how far this process is, at most once a second, where somebody asked for it; else it does nothing.

    Of several processes of one task the first tells.

    Args: metric: asked only when a note is written, since the answer may have to wait for the GPU.
    """
    path, now = os.environ.get(FILE), time.monotonic()
    if not path or os.environ.get("RANK", "0") != "0":
        return
    if description != _pace.description or step < _pace.last:
        _pace.description, _pace.first, _pace.begun = description, step, now
    _pace.last = step
    if now - _pace.written < SECONDS_BETWEEN_NOTES and step != total:
        return
    _pace.written = now
    done = step - _pace.first
    left = (now - _pace.begun) / done * (total - step) if done else None
    note = Told(description, step, total, metric(), left, now + offset)
    half = f"{path}.part"
    try:
        Path(half).write_text(json.dumps(asdict(note)))
        os.replace(half, path)  # whole or not there; it need not outlive the machine, so nothing waits for the disk
    except OSError:
        pass  # a task does not fail because nobody can watch it


def told(path: Path) -> Told | None:
    """What the task of this file has told last; None before it has told anything."""
    try:
        return TypeAdapter(Told).validate_json(path.read_bytes())
    except (OSError, ValueError):
        return None


def track(
    items: Iterable[Item],
    description: str,
    total: int | None = None,
    first: int = 0,
    metric: Callable[[], str] = str,
) -> Iterator[Item]:
    """Yields the items and shows how far it is.

    Args: total: needed where ``items`` has no length. first: how many were done before these. metric: a number that
        shows how it goes, in words; asked after an item now and then.
    """
    total = first + (total if total is not None else len(items))  # type: ignore[arg-type]
    if sys.stderr.isatty():
        yield from rich_track(items, description=description, total=total, completed=first)
        return
    begun = last = time.monotonic()
    tell(description, first, total)
    for count, item in enumerate(items, 1):
        yield item
        tell(description, first + count, total, metric)
        now = time.monotonic()
        if now - last >= SECONDS_BETWEEN_LINES:
            last = now
            left = (now - begun) / count * (total - first - count)
            print(f"{description}: {first + count}/{total}, {left:.0f} s left", file=sys.stderr, flush=True)
