"""Graphs of sleeping jobs, interrupted at random moments: nothing is done twice, lost or begun too early, and nobody is
left behind.

In full (100 interruptions): -m slow. INTERRUPTIONS_SEED repeats a run that failed, whose seed is printed.
"""

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import run_all
from evaluate.harness import executor

WAYS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL)
LONGEST = 2.0  # seconds before an interruption
JOB = """
import json, os, sys, time
from pathlib import Path
from evaluate.runtime.processes import end_with_parent
from results.atomic import atomic_write
end_with_parent()
folder, name, needs, seconds = Path(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3]), float(sys.argv[4])
line = {"job": name, "stood": (folder / name).exists(), "missing": [n for n in needs if not (folder / n).exists()]}
with (folder / "begun.jsonl").open("a") as begun:
    begun.write(json.dumps(line) + "\\n")
print("begun", flush=True)
time.sleep(seconds)
with atomic_write(folder / name) as written:
    written.write_text(name)
"""
RUN = """
import json, sys
from pathlib import Path
from evaluate.harness.executor import Job, Stopped, run
folder, forks, graph = Path(sys.argv[1]), sys.argv[2] == "forked", json.loads(sys.argv[3])
def command(name, needs, seconds):
    return lambda: [sys.executable, "-m", "graph_job", str(folder), name, json.dumps(needs), str(seconds)]
jobs = [
    Job(name, command(name, needs, seconds), folder / "logs" / f"{name}.log", tuple(needs), (folder / name).is_file)
    for name, (needs, seconds) in graph.items()
]
try:
    run(jobs, 3, out=folder, forks=forks)
except Stopped as stop:
    sys.exit(stop.status)
sys.exit(max(abs(job.status) for job in jobs))
"""


def graph_of(draw: random.Random) -> dict[str, tuple[list[str], float]]:
    """Twelve jobs by name: those that each needs, all of them earlier ones, and its seconds."""
    names = [f"job{number}" for number in range(12)]
    return {
        name: (sorted(draw.sample(names[:number], min(number, draw.choice((0, 1, 1, 2))))), draw.uniform(0.0, 0.5))
        for number, name in enumerate(names)
    }


def processes_of(folder: Path) -> list[str]:
    """Those with a folder in their command line or, as fork servers, in their environment."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            said = (process / "cmdline").read_text() + (process / "environ").read_text()
            if str(folder) in said and (process / "stat").read_text().rpartition(")")[2].split()[0] != "Z":
                found.append(f"{process.name}: {said[:200]}")
        except (OSError, UnicodeDecodeError):
            pass
    return found


def wait_for_none(folder: Path, seconds: float) -> list[str]:
    """What is still there of a run after so long."""
    deadline = time.monotonic() + seconds
    while (left := processes_of(folder)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return left


@pytest.mark.parametrize("how", ["forked", "alone"])
@pytest.mark.parametrize("count", [8, pytest.param(100, marks=pytest.mark.slow)])
def test_nothing_is_done_twice_or_lost(count: int, how: str, tmp_path: Path) -> None:
    seed = int(os.environ.get("INTERRUPTIONS_SEED") or random.randrange(2**32))
    print(f"INTERRUPTIONS_SEED={seed}")
    draw, interrupted, graphs, begun = random.Random(seed), 0, 0, 0
    (tmp_path / "graph_job.py").write_text(JOB)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"}
    while interrupted < count:
        folder, graph = tmp_path / f"graph{graphs}", graph_of(draw)
        folder.mkdir()
        command = [sys.executable, "-c", RUN, str(folder), how, json.dumps(graph)]
        finished: set[str] = set()
        while True:
            process = subprocess.Popen(
                command, cwd=executor.ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment
            )
            way, moment = draw.choice(WAYS), draw.uniform(0.0, LONGEST)
            try:
                _, said = process.communicate(timeout=moment if interrupted < count else 120)
            except subprocess.TimeoutExpired:
                process.send_signal(way)
                _, said = process.communicate(timeout=60)
                interrupted += 1
                left = wait_for_none(tmp_path, 10 if way == signal.SIGKILL else 2)
                assert not left, f"left over after {way.name}: {left}"
                assert process.returncode or finished_of(folder, graph) == set(graph), f"{way.name} was not heeded"
            else:
                assert process.returncode == 0, said.decode()
            stands = finished_of(folder, graph)
            assert finished <= stands, f"lost: {finished - stands}"
            finished = stands
            if process.returncode == 0:
                break
        lines = [json.loads(line) for line in (folder / "begun.jsonl").read_text().splitlines()]
        assert finished == set(graph) == {line["job"] for line in lines}
        assert not [line for line in lines if line["stood"]], "begun again after its end"
        assert not [line for line in lines if line["missing"]], "begun before what it needs"
        assert (folder / "logs/imports.log").exists() == (how == "forked") and not processes_of(tmp_path)
        graphs, begun = graphs + 1, begun + len(lines)
    print(f"{interrupted} interruptions of {graphs} graphs, {begun} beginnings of {12 * graphs} jobs")


def finished_of(folder: Path, graph: dict[str, tuple[list[str], float]]) -> set[str]:
    return {name for name in graph if (folder / name).is_file()}


PLANS = """
import sys, time
import run_all
def planned(*_):
    print("plans", flush=True)
    time.sleep(60)
run_all.make_toy_world = planned
sys.exit(run_all.main(["--out", sys.argv[1]]))
"""


@pytest.mark.parametrize("way", ["SIGTERM", "SIGHUP", "--cancel"])
def test_a_run_that_plans_stops_in_words(way: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", PLANS, str(tmp_path)], cwd=executor.ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout and process.stderr
    while process.stdout.readline().strip() != b"plans":
        assert process.poll() is None
    if way == "--cancel":
        assert run_all.main(["--status", str(tmp_path)]) == 0
        assert "is at work; planning" in capsys.readouterr().out
        threading.Timer(0.0, process.wait).start()  # a process that nobody waits for is still there
        assert run_all.main(["--cancel", str(tmp_path)]) == 0
        assert "has ended; the same command goes on" in capsys.readouterr().out
    else:
        process.send_signal(getattr(signal, way))
    number = signal.SIGHUP if way == "SIGHUP" else signal.SIGTERM
    assert process.wait(30) == 128 + number
    assert process.stderr.read().decode() == (
        f"run_all.py: stopped by {number.name}; the same command goes on from here\n"
    )
    assert run_all.main(["--status", str(tmp_path)]) == 0
    assert "has ended before it began a task" in capsys.readouterr().out


LATE = """
import os, signal, sys
from pathlib import Path
from evaluate.harness import executor
def at_the_end(status):
    executor.time.sleep = lambda seconds: os.kill(os.getpid(), signal.SIGTERM)  # after the last look at the signals
try:
    job = executor.Job("one", lambda: [sys.executable, "-c", ""], Path(sys.argv[1]) / "log", on_exit=at_the_end)
    executor.run([job], slots=1)
except executor.Stopped as stop:
    sys.exit(stop.status)
"""


def test_a_signal_as_the_last_job_ends_is_heeded(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", LATE, str(tmp_path)], cwd=executor.ROOT, timeout=60)
    assert done.returncode == 128 + signal.SIGTERM
