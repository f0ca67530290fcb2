"""Runs commands side by side on this machine: each job is a process of its own that holds one slot (a core, or a GPU),
or several, while it runs.
"""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from evaluate.harness.forks import ROOT as ROOT
from evaluate.harness.forks import Forked, Servers, end_group, serving
from evaluate.harness.logs import lost_gpu, why
from evaluate.harness.watch import Watch
from evaluate.runtime import progress
from evaluate.runtime.cli import EXIT_FAILED
from evaluate.runtime.devices import VISIBLE
from evaluate.runtime.processes import PARENT

POLL_SECONDS = 0.1
GRACE_SECONDS = 10.0  # between the signal that asks a job to end and the one that ends it
STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Stopped(BaseException):
    """A signal asked this process to stop; its jobs have been ended.

    As KeyboardInterrupt it is no Exception: it may come in the middle of anything, which must not take it for its own.
    """

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}; the same command goes on from here")
        self.status = 128 + number


@dataclass
class Job:
    """A command, the jobs that must end before it, and what to do before and after."""

    name: str
    command: Callable[[], list[str]]
    """Asked when its turn comes."""
    log: Path
    needs: tuple[str, ...] = ()
    is_done: Callable[[], bool] = lambda: False
    """Asked when its turn comes; True: nothing to do."""
    on_exit: Callable[[int], int | None] = lambda status: None
    """Told the exit status; returns another one where the job did not do what its own says."""
    result: Callable[[], str] = lambda: ""
    """Asked when it is done: what came of it, in a few words."""
    slots: int = 1
    """How many it holds: of GPUs, which it sees alone, as many."""
    status: int | None = field(default=None, init=False)
    seconds: float = field(default=0.0, init=False)


@dataclass
class Running:
    """A job's process, since when it runs, and when its log last grew."""

    job: Job
    process: subprocess.Popen[bytes] | Forked
    slots: list[int]
    begun: float
    gpus: list[str] = field(default_factory=list)
    """Those that it sees."""
    size: int = 0
    heard: float = field(default_factory=time.monotonic)

    def silent_seconds(self) -> float:
        """How long the job has written nothing."""
        size = self.job.log.stat().st_size if self.job.log.is_file() else 0
        if size != self.size:
            self.size, self.heard = size, time.monotonic()
        return time.monotonic() - self.heard


def run(
    jobs: Sequence[Job],
    slots: int,
    gpus: Sequence[str] = (),
    silence_minutes: float = 0.0,
    out: Path | None = None,
    forks: bool = False,
) -> None:
    """Runs all jobs, up to ``slots`` at a time, in their order as far as their needs allow; sets their status and
    seconds.

    A job whose need ended with another status than 0 does not run: it takes over that status, and its log says why.
    No job begins before an earlier one that is ready and waits for slots. With GPUs, each running job sees those of its
    slots alone (two jobs share one where there are more slots than GPUs).

    Args:
        gpus: the names by which CUDA_VISIBLE_DEVICES gives each of them.
        silence_minutes: a job that writes nothing for so long is ended; 0 for never.
        out: the output folder, whose status/ says how the jobs stand (``evaluate.harness.watch``).
        forks: whether jobs that run a module are forked from one that has imported (``evaluate.harness.forks``),
            where that can be; not beside GPUs.

    Raises: Stopped: on SIGINT, SIGTERM or SIGHUP, after every job has been asked to end and, GRACE_SECONDS later, been
        ended.
    """
    watching = Watch({job.name: job.log for job in jobs}, out)
    with _listening() as heard, watching as watch, serving(forks) as servers:
        launcher = _Launcher(jobs, slots, gpus, watch, servers)
        try:
            while launcher.waiting or launcher.running:
                watch.look()
                while not heard and launcher.begin_next():
                    pass
                launcher.look_at_the_running(silence_minutes)
                if heard:
                    break
                time.sleep(POLL_SECONDS)
            if heard:  # also as the last job ended: the caller must not go on with the next ones
                raise Stopped(heard[0])
        finally:
            _end([one.process for one in launcher.running])  # interrupted: no job is left behind


class _Launcher:
    """Which jobs wait, run and have ended, and which slots and GPUs are left."""

    def __init__(self, jobs: Sequence[Job], slots: int, gpus: Sequence[str], watch: Watch, servers: Servers) -> None:
        self.slots, self.gpus, self.watch, self.servers = slots, gpus, watch, servers
        self.waiting, self.free = [job for job in jobs if job.status is None], list(range(slots))
        self.running: list[Running] = []
        self.gone: set[str] = set()  # GPUs that no longer answer
        self.ended = {job.name: job for job in jobs if job.status is not None}  # in an earlier call
        for job in self.ended.values():
            self._tell_end(job)

    def begin_next(self) -> bool:
        """Begins the first job that is ready, or settles it without a process; False where none can begin now."""
        job = next((job for job in self.waiting if all(need in self.ended for need in job.needs)), None)
        if job is None:
            return False
        unmet = next((self.ended[need] for need in job.needs if self.ended[need].status != 0), None)
        width, left = min(job.slots, self.slots), sum(map(self._answers, range(self.slots)))
        if unmet:
            _propagate_failure(unmet, job)
        elif len(self.free) < width <= left:
            return False
        elif job.is_done():
            job.status = 0
            print(f"{job.name}: stands already", flush=True)
        elif left < width:
            _refuse(job, self.gone)
        else:
            self._begin(job, width)
            return True
        self.waiting.remove(job)
        self.ended[job.name] = job
        self._tell_end(job)
        return True

    def _begin(self, job: Job, width: int) -> None:
        self.waiting.remove(job)
        taken, self.free = self.free[:width], self.free[width:]
        seen = list(dict.fromkeys(self._gpu(slot) for slot in taken)) if self.gpus else []
        on = f" on {width} GPUs" if self.gpus and width > 1 else ""
        print(f"{job.name}: started{on} (log: {job.log})", flush=True)
        job.log.parent.mkdir(parents=True, exist_ok=True)
        environment = _environment(seen, self.watch.file_of(job.name))
        process = self.servers.start(job.command(), environment, job.log)
        self.running.append(Running(job, process, taken, time.monotonic(), seen))
        place = "GPU " if seen else "slot "
        self.watch.started(job.name, place + ",".join(seen or map(str, taken)))

    def look_at_the_running(self, silence_minutes: float) -> None:
        """Takes note of those that have ended, and ends those that are silent for too long."""
        for one in list(self.running):
            if (status := one.process.poll()) is not None:
                self._note_end(one, status)
            elif silence_minutes and one.silent_seconds() > 60 * silence_minutes:
                _end([one.process])
                with one.job.log.open("a") as log:
                    log.write(f"\nended: it wrote nothing for {silence_minutes:g} minutes (--task-timeout)\n")

    def _note_end(self, one: Running, status: int) -> None:
        self.running.remove(one)
        job = one.job
        if status and one.gpus and (lost := lost_gpu(job.log)):
            _say_which_gpu(one, lost)
            self.gone.update(one.gpus)
        self.free = sorted(slot for slot in self.free + one.slots if self._answers(slot))
        job.seconds = time.monotonic() - one.begun
        job.status = job.on_exit(status) or status
        self.ended[job.name] = job
        self._tell_end(job)

    def _tell_end(self, job: Job) -> None:
        self.watch.ended(job.name, job.status or 0, "" if job.status else job.result())

    def _gpu(self, slot: int) -> str:
        return self.gpus[slot % len(self.gpus)]

    def _answers(self, slot: int) -> bool:
        """Whether a slot's GPU, where it has one, still does."""
        return not self.gpus or self._gpu(slot) not in self.gone


@contextlib.contextmanager
def stopping_in_words() -> Iterator[None]:
    """SIGTERM and SIGHUP raise Stopped while the block runs, as Ctrl-C raises KeyboardInterrupt: also where no job
    runs, a run that is asked to stop says so.
    """

    def stop(number: int, _: object) -> None:
        raise Stopped(number)

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _listening() -> Iterator[list[int]]:
    """The numbers of the STOPPING signals that have come, while the block runs."""
    heard: list[int] = []
    before = {number: signal.signal(number, lambda number, _: heard.append(number)) for number in STOPPING}
    try:
        yield heard
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _end(processes: Sequence[subprocess.Popen[bytes] | Forked]) -> None:
    """Asks processes and what they started to end, and ends what is left after GRACE_SECONDS."""
    for number, seconds in ((signal.SIGTERM, GRACE_SECONDS), (signal.SIGKILL, GRACE_SECONDS)):
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                end_group(process, number)
        deadline = time.monotonic() + seconds
        while any(process.poll() is None for process in processes) and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS / 2)


def _say_which_gpu(one: Running, lost: str) -> None:
    """The last line of the log of a job whose GPU is gone: which one it is, and what to do."""
    which = f"GPU {one.gpus[0]}" if len(one.gpus) == 1 else f"one of the GPUs {', '.join(one.gpus)}"
    with one.job.log.open("a") as log:
        log.write(
            f"\nended: {which} no longer answers ({lost}); no further task of this run gets it; restart the machine, "
            f"or leave it out by CUDA_VISIBLE_DEVICES, and start the same command again\n"
        )


def _refuse(job: Job, gone: Iterable[str]) -> None:
    """Ends a job that needs more GPUs than are left; it has not begun."""
    job.log.parent.mkdir(parents=True, exist_ok=True)
    job.log.write_text(
        f"not run: GPU {', '.join(sorted(gone))} no longer answers, and too few are left; restart the machine and "
        f"start the same command again\n"
    )
    job.status = EXIT_FAILED
    job.on_exit(job.status)


def _propagate_failure(unmet: Job, job: Job) -> None:
    job.log.parent.mkdir(parents=True, exist_ok=True)
    job.log.write_text(f"not run, since {unmet.name} did not succeed: {why(unmet.log, unmet.status or 0)}\n")
    job.status = unmet.status
    job.on_exit(unmet.status or 0)


def _environment(gpus: Sequence[str], told: Path | None) -> dict[str, str]:
    """That of a job: the GPUs that it sees, and the file in which it tells how far it is."""
    environment = {**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"), "PYTHONUNBUFFERED": "1"}
    environment[PARENT] = str(os.getpid())
    environment[progress.CLOCK] = str(progress.offset)
    environment[progress.FILE] = str(told or "")
    if gpus:
        environment[VISIBLE] = ",".join(gpus)
    return environment
