"""docs/pretrain.sbatch as it stands: two tasks train together, USR2 requeues the job, the end is an unbroken run's."""

import re
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import run_all
from tests.pretrain.runs import EVERY_STEP, TINY, Run, content, same, saved_step, wait_for_step, write_images

HERE = Path(run_all.__file__).parent
SCRIPT = "docs/pretrain.sbatch"
LONG = ("--set", "epochs=100")
STEPS = 300
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT")
Submit = Callable[..., str]


@pytest.fixture
def submit(cluster, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Submit:
    """Submits the script for two tasks with the environment of the cluster; gives the job's number."""
    for name, value in (cluster.environment | {"PYTHON": sys.executable}).items():
        monkeypatch.setenv(name, value)

    def run(*options: str) -> str:
        line = ["sbatch", "--parsable", "--ntasks=2", "--time=30", f"--output={tmp_path / 'job.log'}", SCRIPT]
        done = subprocess.run([*line, *TINY, *options], cwd=HERE, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    return run


def fact(job: str, name: str) -> str:
    """One field of ``scontrol show job``."""
    said = subprocess.run(["scontrol", "show", "job", job], capture_output=True, text=True, timeout=60).stdout
    return re.search(rf"\b{name}=(\S+)", said)[1]


def wait_for_state(job: str, *states: str, seconds: float = 200) -> None:
    """Until a job is in one of the states; fails once it has ended in another."""
    deadline = time.monotonic() + seconds
    while (state := fact(job, "JobState")) not in states:
        assert state not in ENDED and time.monotonic() < deadline, f"job {job} is {state}, not {' or '.join(states)}"
        time.sleep(0.3)


def test_the_docs_show_the_script() -> None:
    script = textwrap.indent((HERE / SCRIPT).read_text(), "    ")
    assert script in (HERE / "docs/slurm.md").read_text()


def test_a_job_that_gets_usr2_requeues_itself_and_ends_as_an_unbroken_run(submit: Submit, tmp_path: Path) -> None:
    images, out, log = write_images(tmp_path / "images"), tmp_path / "out", tmp_path / "job.log"
    job = submit("--data", str(images), "--out", str(out), *LONG, *EVERY_STEP, "--workers", "1")
    wait_for_step(out, 2, seconds=120)
    subprocess.run(["scancel", "--signal=USR2", job], check=True, timeout=60)
    wait_for_state(job, "PENDING")
    step = saved_step(out)
    assert 2 <= step < STEPS, log.read_text()
    wait_for_state(job, *ENDED)
    said = log.read_text()
    assert (fact(job, "JobState"), fact(job, "ExitCode"), fact(job, "Restarts")) == ("COMPLETED", "0:0", "1"), said
    assert f"saved at step {step} on SIGUSR2" in said and f"goes on at step {step}" in said
    assert "Traceback" not in said
    unbroken = Run(images, tmp_path / "unbroken", *LONG, processes=2)
    assert unbroken.statuses(120) == [0, 0]
    assert same(content(out), content(tmp_path / "unbroken"))


def test_a_job_that_is_cancelled_or_fails_is_not_requeued(submit: Submit, tmp_path: Path) -> None:
    images, out = write_images(tmp_path / "images"), tmp_path / "out"
    job = submit("--data", str(images), "--out", str(out), *LONG, *EVERY_STEP)
    wait_for_step(out, 2, seconds=120)
    subprocess.run(["scancel", job], check=True, timeout=60)
    wait_for_state(job, "CANCELLED")
    failed = submit("--data", str(tmp_path / "nothing"), "--out", str(out))
    wait_for_state(failed, "FAILED")
    assert fact(failed, "ExitCode") == "2:0"
    assert (fact(job, "JobState"), fact(job, "Restarts")) == ("CANCELLED", "0")


def test_usr2_before_the_first_step_requeues_too(submit: Submit, tmp_path: Path) -> None:
    images, out, log = write_images(tmp_path / "images"), tmp_path / "out", tmp_path / "job.log"
    job = submit("--data", str(images), "--out", str(out))
    deadline = time.monotonic() + 60
    line = ["squeue", "--steps", "--noheader", "--format=%i", f"--jobs={job}"]
    while f"{job}.0" not in subprocess.run(line, capture_output=True, text=True, timeout=60).stdout:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(0.2)  # the step is known a little before its tasks have begun; torch's import takes longer
    subprocess.run(["scancel", "--signal=USR2", job], check=True, timeout=60)
    wait_for_state(job, "PENDING")
    assert "saved at step" not in log.read_text() and saved_step(out) == -1
    wait_for_state(job, *ENDED)
    assert (fact(job, "JobState"), fact(job, "Restarts"), saved_step(out)) == ("COMPLETED", "1", 9), log.read_text()
