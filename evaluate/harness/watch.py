"""What is seen of a run: a live table on a terminal, lines elsewhere, and ``--status`` and ``--cancel`` anywhere."""

import math
import os
import platform
import signal
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from evaluate.harness import launches
from evaluate.harness.launches import ENDED, FOLDER, ON_ITS_OWN, Launch, Task
from evaluate.harness.logs import last_line, why
from evaluate.runtime.cli import EXIT_SKIPPED, output_folder
from evaluate.runtime.errors import UserError
from evaluate.runtime.processes import beginning
from evaluate.runtime.progress import Told, steady
from results.atomic import machine
from results.escape import plain

SECONDS_BETWEEN_FRAMES = 1.0  # a frame of 30 tasks takes a core 15 ms
SECONDS_BETWEEN_NEWS = 60.0
SECONDS_BETWEEN_SIGNS = 30.0  # of life, for a machine that cannot look into this one
STALE_SECONDS = 60.0  # what was told longer ago is shown with its age
CANCEL_SECONDS = 120.0
STYLES = {"running": "bold", "done": "green", "skipped": "yellow", "failed": "bold red", "interrupted": "yellow"}
FIRST_SHOWN = ("running", "failed", "interrupted", "skipped", "waiting", "done")  # where not all tasks find room


class Watch:
    """Shows how the jobs of this process stand, and keeps OUT/status; a context manager around their run.

    Args:
        logs: of each job, by its name, in their order.
        out: None for no OUT/status.
    """

    def __init__(self, logs: Mapping[str, Path], out: Path | None = None, console: Console | None = None) -> None:
        console = console or Console()
        pid, now = os.getpid(), steady()
        tasks = [Task(name, os.path.relpath(log, out) if out else str(log)) for name, log in logs.items()]
        self.launch = Launch(pid, beginning(pid), platform.node(), machine(), now, now, tasks=tasks)
        self.tasks = {task.name: task for task in tasks}
        self.out = out or Path()
        self.folder = out and out / FOLDER / f"{time.strftime('%Y%m%dT%H%M%S', time.gmtime(now))}-{pid}"
        self.news = self.frame = self.sign = time.monotonic()
        self.told: dict[str, Told] = {}
        self.live: Live | None = None
        if console.file.isatty() and not console.is_dumb_terminal:
            # standard error may go to a file while the table is on the terminal
            self.live = Live(console=console, auto_refresh=False, transient=True, redirect_stderr=sys.stderr.isatty())

    def __enter__(self) -> "Watch":
        if self.folder:
            launches.forget_ended(self.folder.parent)
        self._write()
        if self.live:
            self.live.start()
            self.live.console.show_cursor(True)  # after kill -9 nobody would bring it back
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for task in self.launch.tasks:
            if task.state == "running":
                self._end(task, "interrupted", "")
        self.launch.ended = ON_ITS_OWN if error is None else str(error) or type(error).__name__
        self._write()
        if self.live:
            self.live.stop()

    def file_of(self, name: str) -> Path | None:
        """Where a job is to tell how far it is."""
        return self.folder and launches.file_of(self.folder, self.tasks[name])

    def started(self, name: str, place: str) -> None:
        """A job's process has begun; ``place`` says in a few words where (a GPU, a slot)."""
        task = self.tasks[name]
        task.state, task.place, task.begun = "running", place, steady()
        self.sign = -math.inf

    def ended(self, name: str, status: int, note: str = "") -> None:
        """A job has ended with this exit status, or did not have to run. ``note`` says what came of it; without one the
        log tells what went wrong.
        """
        task = self.tasks[name]
        state = {0: "done", EXIT_SKIPPED: "skipped"}.get(status, "failed")
        self._end(task, state, note or (why(self.out / task.log, status) if status else ""))

    def look(self) -> None:
        """Shows and writes what is due; to be called often."""
        now = time.monotonic()
        if now - self.sign > SECONDS_BETWEEN_SIGNS:
            self.sign = now
            self._write()
        if self.live and now - self.frame >= SECONDS_BETWEEN_FRAMES:
            self.frame = now
            self.live.update(frame(self.launch, self._notes(), self.out, self.live.console.height), refresh=True)
        if not self.live and now - self.news > SECONDS_BETWEEN_NEWS:
            self.news = now
            for line in news(self.launch, self._notes(), self.out):
                print(line, flush=True)

    def _end(self, task: Task, state: str, note: str) -> None:
        self._notes()  # its last words
        task.state, task.note = state, plain(note)
        task.seconds = steady() - task.begun if task.begun else None
        self.sign = -math.inf

    def _notes(self) -> dict[str, Told]:
        """What the tasks have told; what has ended is not read again and again."""
        if self.folder:
            self.told |= launches.notes_of(self.folder, (task for task in self.launch.tasks if task.state == "running"))
        return self.told

    def _write(self) -> None:
        self.launch.heard = steady()
        if self.folder:
            launches.write(self.folder, self.launch)


def announce(out: Path) -> None:
    """Lets ``--status`` and ``--cancel`` find this process while it plans, before it has tasks."""
    plans = Watch({}, out)
    if plans.folder:
        launches.write(plans.folder, plans.launch)


def status(out: Path, console: Console | None = None) -> int:
    """Prints how the tasks of every run of an output folder stand that is at work, or of the last; the exit status.

    Raises UserError where it is no output folder.
    """
    output_folder(out)
    console = console or Console()
    if not console.is_terminal:  # a pipe has no width: no path is broken
        console.width = 1000
    found = list(launches.known(out))
    if not found:
        console.print(Text(f"{out}: no run is known here, since none has begun a task"))
    for folder, launch in found:
        runs = launch.runs()  # once: it may end as we look
        console.print(Text(f"{out}: {_of_launch(launch, runs)}"))
        notes = launches.notes_of(folder, launch.tasks)
        now = launch.now()
        if runs is False and not launch.ended:  # killed: what it last wrote says running
            now = max(launch.heard, *(note.time for note in notes.values()), 0.0)
            for task in launch.tasks:
                if task.state == "running":
                    task.state, task.seconds = "interrupted", now - (task.begun or now)
        console.print(_table(launch.tasks, notes, out, now, with_logs=True))
        for task in launch.tasks:
            if task.state in ("failed", "skipped"):
                console.print(Text(f"{task.name} {task.state}: {task.note} (log: {out / task.log})"))
    return 0


def cancel(out: Path) -> int:
    """Asks the runs of an output folder to stop, as Ctrl-C does, and waits for their ends; the exit status.

    Raises UserError where none runs, where one runs on another machine, and where one may not be asked or does not end.
    """
    output_folder(out)
    found = [launch for _, launch in launches.known(out)]
    here = [launch for launch in found if launch.runs()]
    for launch in here:
        try:
            os.kill(launch.pid, signal.SIGTERM)
        except ProcessLookupError:
            continue  # it has just ended
        except PermissionError as error:
            raise UserError(f"process {launch.pid} belongs to another user, who must cancel it") from error
        print(f"{out}: asked process {launch.pid} to stop; waiting for it and its tasks to end", flush=True)
    deadline = time.monotonic() + CANCEL_SECONDS
    for launch in here:
        while launch.runs():
            if time.monotonic() > deadline:
                raise UserError(f"process {launch.pid} still runs after {CANCEL_SECONDS:.0f} s; see its terminal")
            time.sleep(0.1)
        print(f"{out}: process {launch.pid} has ended; the same command goes on from here", flush=True)
    for launch in found:
        if launch.runs() is None:
            raise UserError(
                f"the run of {out} was started on {launch.host} (process {launch.pid}), out of reach from here; cancel "
                f"it there"
            )
    if not here:
        raise UserError(f"no run of {out} is at work; --status {out} shows how the last one ended")
    return 0


def frame(launch: Launch, notes: Mapping[str, Told], out: Path, height: int) -> Group:
    """The live table: a summary, and as many tasks as find room, those first that say most."""
    tasks, room = launch.tasks, max(height - 4, 1)  # the summary, the head, what is left out, and the cursor's line
    if len(tasks) > room:
        first = sorted(tasks, key=lambda task: FIRST_SHOWN.index(task.state))[:room]
        tasks = [task for task in tasks if task in first]
    rest = len(launch.tasks) - len(tasks)
    more = [Text(f"… and {rest} more", style="dim")] if rest else []
    return Group(
        Text(_summary(launch), no_wrap=True, overflow="ellipsis"), _table(tasks, notes, out, launch.now()), *more
    )


def news(launch: Launch, notes: Mapping[str, Told], out: Path) -> list[str]:
    """A line for each running task: for how long, and what it is doing."""
    now, lines = launch.now(), []
    for task in launch.tasks:
        if task.state != "running":
            continue
        passed, note = clock(_seconds(task, now)), notes.get(task.name)
        doing = _doing(task, note, out, now)
        if doing == "starting":
            lines.append(f"{task.name}: starting ({passed})")
            continue
        left = f"{_left(task, note, now)} left" if _left(task, note, now) else ""
        parts = [f"running for {passed}", doing, note.metric if note else "", left]
        lines.append(plain(f"{task.name}: {', '.join(part for part in parts if part)}"))
    return lines


def clock(seconds: float | None) -> str:
    """A time in two units at most: ``12 s``, ``2 min 5 s``, ``3 h 7 min``, ``2 d 4 h``."""
    if seconds is None or not math.isfinite(seconds):
        return ""
    whole = max(int(seconds), 0)
    for size, unit, part, small in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= size:
            return f"{whole // size} {unit} {whole % size // part} {small}"
    return f"{whole} s"


def _table(tasks: Iterable[Task], notes: Mapping[str, Told], out: Path, now: float, with_logs: bool = False) -> Table:
    """A line for each task. With logs it may be wider than a terminal and breaks its lines; without, it cuts them."""
    table = Table(box=None, pad_edge=False, header_style="dim", expand=not with_logs)
    for head in ("task", "state", "on"):
        table.add_column(head, no_wrap=True)
    table.add_column("step", no_wrap=not with_logs, ratio=None if with_logs else 1)
    table.add_column("metric", no_wrap=not with_logs)
    for head in ("time", "left"):
        table.add_column(head, no_wrap=True, justify="right")
    if with_logs:
        table.add_column("log", overflow="fold")
    for task in tasks:
        note = notes.get(task.name)
        numbers = task.note if task.state == "done" else ""
        cells = [
            task.name,
            task.state,
            task.place,
            task.note if task.state in ("failed", "skipped") and not with_logs else _doing(task, note, out, now),
            numbers or (note.metric if note else ""),
            clock(_seconds(task, now)),
            _left(task, note, now),
            *([str(out / task.log)] if with_logs else []),
        ]
        table.add_row(*(Text(plain(cell)) for cell in cells), style=STYLES.get(task.state, "dim"))
    return table


def _doing(task: Task, note: Told | None, out: Path, now: float) -> str:
    """How far a task is, in its own words; empty for one that has not begun, or is done."""
    if note and task.state != "done":
        age = now - note.time
        stale = f" ({clock(age)} ago)" if task.state == "running" and age > STALE_SECONDS else ""
        return f"{note.description} {note.step}/{note.total}{stale}"
    return (last_line(out / task.log) or "starting") if task.state == "running" else ""


def _seconds(task: Task, now: float) -> float | None:
    """For how long a task has run."""
    return now - task.begun if task.state == "running" and task.begun else task.seconds


def _left(task: Task, note: Told | None, now: float) -> str:
    """How long a running task will be at what it is at."""
    if task.state != "running" or note is None or note.left is None:
        return ""
    return clock(note.left - (now - note.time))


def _summary(launch: Launch) -> str:
    """How many tasks stand how."""
    if not launch.tasks:
        return f"planning; {clock(launch.now() - launch.begun)} since the start"
    count = {state: sum(task.state == state for task in launch.tasks) for state in FIRST_SHOWN}
    shown = ", ".join(f"{count[state]} {state}" for state in ("running", "waiting", *ENDED) if count[state])
    return f"{len(launch.tasks)} tasks: {shown}; {clock(launch.now() - launch.begun)} since the start"


def _of_launch(launch: Launch, runs: bool | None) -> str:
    """In a sentence: which process it is, and whether it is at work."""
    who, lasted = f"process {launch.pid} on {launch.host}", clock(launch.heard - launch.begun)
    match runs:
        case True:
            return f"{who} is at work; {_summary(launch)}"
        case None:
            return f"{who}, out of sight from here, was at work {clock(launch.now() - launch.heard)} ago"
    if launch.ended == ON_ITS_OWN:
        return f"{who} has ended after {lasted}"
    if launch.ended:
        return f"{who}, after {lasted}: {launch.ended}"
    if not launch.tasks:
        return f"{who} has ended before it began a task"
    return f"{who} is gone: it was killed, or its machine was; the same command goes on from here"
