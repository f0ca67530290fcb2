"""Runs commands side by side on this machine: each job is a subprocess that holds one slot (a core, or a GPU) while it runs."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.progress import Progress

POLL_SECONDS = 0.1
SECONDS_BETWEEN_NEWS = 30.0


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
    on_exit: Callable[[int], None] = lambda status: None
    """Told the exit status."""
    status: int | None = field(default=None, init=False)
    seconds: float = field(default=0.0, init=False)


def run(jobs: Sequence[Job], slots: int, gpus: Sequence[int] = ()) -> None:
    """Runs all jobs, up to ``slots`` at a time, in their order as far as their needs allow; sets their status and seconds.

    A job whose need ended with another status than 0 does not run: it takes over that status, and its log says why. With GPUs, each
    running job sees one of them alone (two share one where there are more slots than GPUs).
    """
    waiting, free = list(jobs), list(range(slots))
    running: dict[int, tuple[Job, subprocess.Popen[bytes], float]] = {}
    ended: dict[str, Job] = {}
    news = time.monotonic()
    bar = Progress(disable=not sys.stdout.isatty(), transient=True)  # it keeps what is printed above itself
    shown = bar.add_task("", total=len(jobs))
    bar.start()
    try:
        while waiting or running:
            at_work = ", ".join(job.name for job, *_ in running.values())
            bar.update(shown, completed=len(ended), description=at_work)
            for job in [job for job in waiting if all(need in ended for need in job.needs)]:
                if not free:
                    break
                waiting.remove(job)
                unmet = next((ended[need] for need in job.needs if ended[need].status != 0), None)
                if unmet or job.is_done():
                    ended[job.name] = job
                    if unmet:
                        _propagate_failure(unmet, job)
                    else:
                        job.status = 0
                        print(f"{job.name}: stands already", flush=True)
                    break  # its dependants may be ready now, and come first
                slot = free.pop(0)
                print(f"{job.name}: started (log: {job.log})", flush=True)
                running[slot] = (job, _start(job, gpus[slot % len(gpus)] if gpus else None), time.monotonic())
            for slot, (job, process, begun) in list(running.items()):
                if process.poll() is None:
                    continue
                del running[slot]
                free.append(slot)
                job.status, job.seconds = process.returncode, time.monotonic() - begun
                ended[job.name] = job
                job.on_exit(job.status)
            if not sys.stdout.isatty() and time.monotonic() - news > SECONDS_BETWEEN_NEWS:
                news = time.monotonic()
                for job, _, begun in running.values():
                    print(f"{job.name}: {news - begun:.0f} s, {last_line(job.log)}", flush=True)
            time.sleep(POLL_SECONDS)
    finally:
        bar.stop()
        for _, process, _ in running.values():  # interrupted: leave no orphan
            process.terminate()


def _propagate_failure(unmet: Job, job: Job) -> None:
    job.log.parent.mkdir(parents=True, exist_ok=True)
    job.log.write_text(f"not run, since {unmet.name} did not succeed: {last_line(unmet.log)}\n")
    job.status = unmet.status
    job.on_exit(unmet.status)


def _start(job: Job, gpu: int | None) -> subprocess.Popen[bytes]:
    job.log.parent.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"), "PYTHONUNBUFFERED": "1"}
    if gpu is not None:
        environment["CUDA_VISIBLE_DEVICES"] = str(gpu)
    with job.log.open("wb") as log:
        return subprocess.Popen(job.command(), stdout=log, stderr=subprocess.STDOUT, env=environment)


def last_line(log: Path, most: int = 300) -> str:
    """The last line of a log that says something; not the one that names the record."""
    text = log.read_text(errors="replace") if log.is_file() else ""
    lines = [line.strip() for line in text.splitlines() if any(map(str.isalnum, line)) and not line.startswith("record: ")]
    return lines[-1][:most] if lines else "no output yet"
