"""Locks between processes: whoever holds one works, the others wait and say so.

A lock ends with the process that holds it.
"""

import contextlib
import fcntl
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

POLL_SECONDS = 0.2
SECONDS_BETWEEN_LINES = 60.0


@contextlib.contextmanager
def exclusive(path: Path, purpose: str) -> Iterator[None]:
    """Holds the lock file ``path`` while the block runs; waits for another process that holds it, and says what for.

    On a file system without locks the block runs at once: then two processes may do the same work, and each writes
    atomically.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as file:
        said = 0.0
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if not said or time.monotonic() - said > SECONDS_BETWEEN_LINES:
                    said = time.monotonic()
                    print(
                        f"waiting for process {_holder(path)}, which is at {purpose} too", file=sys.stderr, flush=True
                    )
                time.sleep(POLL_SECONDS)
                continue
            except OSError:
                pass
            break
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def _holder(path: Path) -> str:
    with contextlib.suppress(OSError):
        return path.read_text() or "(unknown)"
    return "(unknown)"
