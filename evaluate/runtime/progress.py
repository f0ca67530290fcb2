"""Progress of long loops: a bar on a terminal, a plain line every so often elsewhere."""

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.progress import track as rich_track

Item = TypeVar("Item")
SECONDS_BETWEEN_LINES = 10.0


def track(items: Iterable[Item], description: str, total: int | None = None) -> Iterator[Item]:
    """Yields the items and shows how far it is; ``total`` is needed where ``items`` has no length."""
    total = total if total is not None else len(items)  # type: ignore[arg-type]
    if sys.stderr.isatty():
        yield from rich_track(items, description=description, total=total)
        return
    begun = last = time.monotonic()
    for count, item in enumerate(items, 1):
        yield item
        now = time.monotonic()
        if now - last >= SECONDS_BETWEEN_LINES:
            last = now
            left = (now - begun) / count * (total - count)
            print(f"{description}: {count}/{total}, {left:.0f} s left", file=sys.stderr, flush=True)
