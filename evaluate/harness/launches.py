"""Which ``run_all.py`` are at work on an output folder, or were: OUT/status.

Each has a folder there. ``run.json`` in it says which process it is and how each of its tasks stands; beside it each
task notes how far it is (``evaluate.runtime.progress``). Any number of them may work on one OUT.
"""

import contextlib
import os
import shutil
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import TypeAdapter

from evaluate.runtime import progress
from evaluate.runtime.processes import beginning
from evaluate.runtime.progress import Told, told
from results.atomic import FOREIGN_SECONDS, atomic_write, machine

FOLDER, FILE = "status", "run.json"
ENDED = ("done", "skipped", "failed", "interrupted")
ON_ITS_OWN = "ended"


@dataclass
class Task:
    """How one job of a run stands."""

    name: str
    log: str
    """Below OUT, or elsewhere as an absolute path."""
    state: str = "waiting"
    """waiting, running, or one of ENDED."""
    place: str = ""
    """The GPU or the slot that it has."""
    begun: float | None = None
    """In seconds since 1970, as all times here."""
    seconds: float | None = None
    """How long it ran."""
    note: str = ""
    """What came of it: its numbers, or why there are none."""


@dataclass
class Launch:
    """One ``run_all.py``: its process and its tasks."""

    pid: int
    process: str
    """When the process began, as ``processes.beginning`` says: another one may have the same number later."""
    host: str
    machine: str
    """``atomic.machine``: where the process number means something."""
    begun: float
    heard: float
    """When it last wrote this."""
    ended: str = ""
    """How it ended; empty while it runs, and for ever where it was killed."""
    tasks: list[Task] = field(default_factory=list)
    clock: float = field(default_factory=lambda: progress.offset)
    """Seconds from this machine's monotonic clock to these times."""

    def now(self) -> float:
        """The time by the clock of this run, also after that of the machine was set; elsewhere, the time there."""
        return time.monotonic() + self.clock if self.machine == machine() else time.time()

    def runs(self) -> bool | None:
        """Whether its process is there; None on another machine (or in another container), which cannot tell.

        After its tasks it still writes the table, or plans the next ones.
        """
        if self.ended not in ("", ON_ITS_OWN):
            return False
        if self.machine != machine():
            return False if self.ended else None
        return bool(self.process) and beginning(self.pid) == self.process


LAUNCH = TypeAdapter(Launch)


def write(folder: Path, launch: Launch) -> None:
    """Keeps a run in its folder; where that cannot be written it is not kept."""
    with contextlib.suppress(OSError):  # a run does not fail because nobody can watch it
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_write(folder / FILE) as written:
            written.write_bytes(LAUNCH.dump_json(launch, indent=1))


def known(out: Path) -> Iterator[tuple[Path, Launch]]:
    """The runs that an output folder knows of, with their folders, the oldest first."""
    for folder in sorted((out / FOLDER).glob("*")):
        with contextlib.suppress(OSError, ValueError):  # it has just been removed, or is of another version
            yield folder, LAUNCH.validate_json((folder / FILE).read_bytes())


def file_of(folder: Path, task: Task) -> Path:
    """Where a task of a run tells how far it is."""
    return folder / f"{Path(task.log).stem}.json"


def notes_of(folder: Path, tasks: Iterable[Task]) -> dict[str, Told]:
    """What the tasks have told, by their names."""
    found = {}
    for task in tasks:
        if task.begun and (note := told(file_of(folder, task))):
            found[task.name] = note
    return found


def forget_ended(folder: Path) -> None:
    """Removes what ended runs have left here, and this process's last tasks: those that begin now take their place."""
    for path in folder.glob("*"):
        over = False
        try:
            launch = LAUNCH.validate_json((path / FILE).read_bytes())
            own = launch.machine == machine() and launch.pid == os.getpid()
            over = own or launch.runs() is False or time.time() - launch.heard > FOREIGN_SECONDS
        except (OSError, ValueError):  # one that begins now, or of another version
            with contextlib.suppress(OSError):
                over = time.time() - path.stat().st_mtime > FOREIGN_SECONDS
        if over:
            shutil.rmtree(path, ignore_errors=True)
