"""A task as the launcher starts it on several GPUs: processes of torchrun, here on a CPU, that work for run_all."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from evaluate.harness import executor, logs
from evaluate.runtime.processes import PARENT
from tests.factories import mae_state
from tests.worlds import write_world

LAUNCHER = ("-m", "evaluate.runtime.torchrun", "--standalone", "--nproc-per-node", "2")


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """kNN of a checkpoint, without the launcher and OUT."""
    folder = tmp_path_factory.mktemp("data")
    torch.save({"model": mae_state()}, folder / "mine.pth")
    root = write_world(folder / "data", train=12, val=7)
    options = ["--ckpt", folder / "mine.pth", "--data-root", root, "--preset", "demo", "--device", "cpu"]
    return ["-m", "evaluate.knn", *map(str, options)]


def run(job_command: list[str], log: Path) -> executor.Job:
    """A job that has ended."""
    job = executor.Job("task", lambda: [sys.executable, *job_command], log)
    executor.run([job], 1)
    return job


def test_two_processes_give_the_record_of_one(command: list[str], tmp_path: Path) -> None:
    found = []
    for name, launcher in (("one", ()), ("two", LAUNCHER)):
        job = run([*launcher, *command, "--out", str(tmp_path / name)], tmp_path / f"{name}.log")
        assert job.status == 0, job.log.read_text()
        (path,) = (tmp_path / name / "records").glob("*.json")
        found.append(json.loads(path.read_text()))
    assert found[0]["metrics"] == found[1]["metrics"] and found[0]["key"] == found[1]["key"], "the same measurement"


def test_a_failure_has_the_status_and_the_sentence_of_the_task(command: list[str], tmp_path: Path) -> None:
    job = run([*LAUNCHER, *command, "--out", str(tmp_path), "--set", "neighbors=[5]"], tmp_path / "log")
    assert job.status == 2 and "headline 20" in logs.last_line(job.log), job.log.read_text()


def test_no_process_outlives_the_launcher_of_the_task(tmp_path: Path) -> None:
    """Each works for torchrun, and torchrun for run_all, which here is a process that is killed."""
    (tmp_path / "sleeper.py").write_text(
        "import os, time\nfrom evaluate.runtime.processes import end_with_parent\nend_with_parent()\n"
        "open(f'pid{os.getpid()}', 'w').close()\ntime.sleep(120)\n"
    )
    start = f"""
import os, subprocess, sys, time
os.environ[{PARENT!r}] = str(os.getpid())
subprocess.Popen([sys.executable, *{LAUNCHER!r}, "sleeper.py"], start_new_session=True)
time.sleep(120)
"""
    root = str(Path(__file__).parents[2])
    run_all = subprocess.Popen(
        [sys.executable, "-c", start], cwd=tmp_path, env={**os.environ, "PYTHONPATH": root}, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 60
    while len(pids := [int(path.name[3:]) for path in tmp_path.glob("pid*")]) < 2 and time.monotonic() < deadline:
        time.sleep(0.1)
    assert len(pids) == 2 and all(map(_lives, pids))
    time.sleep(2.5)  # a process that looked for another parent than it has would have ended itself by now
    assert all(map(_lives, pids))
    run_all.send_signal(signal.SIGKILL)
    run_all.wait()
    while any(map(_lives, pids)) and time.monotonic() < deadline + 30:
        time.sleep(0.1)
    assert not any(map(_lives, pids))


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
