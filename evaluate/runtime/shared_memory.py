"""Room in /dev/shm, where loading processes put their batches: a full one ends them without a word."""

import os
import shutil
from pathlib import Path

from evaluate.runtime.errors import UserError

FOLDER = Path("/dev/shm")
AHEAD = 2  # batches that each loading process of torch prepares
MB = 1e6


def check(batch_bytes: float, workers: int) -> None:
    """Looks whether the loading processes' batches have room, before any is started.

    Args:
        batch_bytes: of a batch.
        workers: loading processes of each process of this machine.

    Raises:
        UserError: they have not; it says how many processes would.
    """
    if not workers or not FOLDER.is_dir():  # only Linux has one
        return
    each, usage = AHEAD * batch_bytes, shutil.disk_usage(FOLDER)
    # other processes of this run may have begun: what they take is no longer free, and is not asked for twice
    room = min(usage.free, usage.total / int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    if each * workers > room:
        raise UserError(
            f"{FOLDER} has {room / MB:,.0f} MB for this process, and {workers} loading processes put up to "
            f"{each * workers / MB:,.0f} MB there; give --workers {int(room / each)}, or a larger {FOLDER} "
            f"(docker run --shm-size=8g)"
        )
