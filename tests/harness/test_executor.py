"""Jobs side by side: order, needs, what stands already, and more slots than GPUs."""

import signal
import subprocess
import sys
import time

import pytest

from evaluate.harness import executor, logs


def job(tmp_path, name, code, **options):
    return executor.Job(name, lambda: [sys.executable, "-c", code], tmp_path / f"{name}.log", **options)


def test_a_job_waits_for_its_need_and_takes_over_its_failure(tmp_path):
    told = []
    first = job(tmp_path, "first", "print('broke'); raise SystemExit(3)")
    second = job(tmp_path, "second", "open('never', 'w')", needs=("first",), on_exit=told.append)
    third = job(tmp_path, "third", "print('fine')")
    executor.run([second, first, third], slots=2)
    assert (first.status, second.status, third.status) == (3, 3, 0)
    assert told == [3] and "first did not succeed: broke" in second.log.read_text()


def test_what_stands_is_not_run_again(tmp_path):
    stands = job(tmp_path, "stands", "raise SystemExit(1)", is_done=lambda: True)
    executor.run([stands], slots=1)
    assert stands.status == 0 and not stands.log.exists()


def test_each_job_sees_one_gpu_also_with_more_slots_than_gpus(tmp_path):
    jobs = [job(tmp_path, str(i), "import os; print(os.environ['CUDA_VISIBLE_DEVICES'])") for i in range(3)]
    executor.run(jobs, slots=3, gpus=["4", "GPU-6"])
    assert [logs.last_line(one.log) for one in jobs] == ["4", "GPU-6", "4"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", ""),
        ("half done\n\n", "half done"),
        ('{\n  "top1": 28.9\n}\nrecord: a.json\n', '"top1": 28.9'),
        ("x" * 400, "x" * 300),
    ],
)
def test_the_line_that_is_shown_says_something(text, says, tmp_path):
    (tmp_path / "log").write_text(text)
    assert logs.last_line(tmp_path / "log") == says


STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(60)"
RUN = """
import sys
from pathlib import Path
from evaluate.harness import executor, logs
executor.GRACE_SECONDS = 1.0
code = sys.argv[2]
jobs = [executor.Job(str(i), lambda: [sys.executable, "-c", code], Path(sys.argv[1]) / f"{i}.log") for i in range(3)]
try:
    executor.run(jobs, slots=3)
except executor.Stopped as stop:
    sys.exit(stop.status)
"""


def alive(tmp_path):
    """The processes that are at work in a folder, by its marker in their command line."""
    listed = subprocess.run(
        ["ps", "-wweo", "pid,stat,args"], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    return [line for line in listed if str(tmp_path) in line and line.split()[1][0] != "Z"]


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGKILL], ids=lambda number: number.name
)
@pytest.mark.parametrize("stubborn", [False, True])
def test_no_job_outlives_the_run(number, stubborn, tmp_path):
    parent = "from evaluate.runtime.processes import end_with_parent; end_with_parent()\n"
    code = (
        parent + (STUBBORN if stubborn else "print('up', flush=True); import time; time.sleep(60)") + f"\n# {tmp_path}"
    )
    process = subprocess.Popen([sys.executable, "-c", RUN, str(tmp_path), code], cwd=executor.ROOT)
    deadline = time.monotonic() + 60
    while sum("up" in path.read_text() for path in tmp_path.glob("*.log")) < 3 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert len(alive(tmp_path)) == 4
    process.send_signal(number)
    assert process.wait(30) == (-number if number == signal.SIGKILL else 128 + number)
    deadline = time.monotonic() + (10 if number == signal.SIGKILL else 2)  # after kill -9 the jobs see for themselves
    while alive(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not alive(tmp_path)


def test_a_silent_job_is_ended(tmp_path):
    silent = job(tmp_path, "silent", "import time; print('up', flush=True); time.sleep(60)")
    busy = job(tmp_path, "busy", "import time\nfor i in range(20): print(i, flush=True); time.sleep(0.1)")
    begun = time.monotonic()
    executor.run([silent, busy], slots=2, silence_minutes=1 / 20)
    assert time.monotonic() - begun < 30 and busy.status == 0 and silent.status == -signal.SIGTERM
    assert "it wrote nothing for 0.05 minutes (--task-timeout)" in silent.log.read_text()


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("os.kill(os.getpid(), signal.SIGKILL)", "was ended by SIGKILL (the system does that where memory runs out"),
        ("os.kill(os.getpid(), signal.SIGBUS)", "was ended by SIGBUS (shared memory ran out"),
        ("os._exit(128 + signal.SIGKILL)", "was ended by SIGKILL"),
        ("os._exit(2)", ""),
        ("print('ended: it wrote nothing', flush=True); os.kill(os.getpid(), signal.SIGTERM)", ""),
    ],
)
def test_a_process_that_a_signal_ended_is_spoken_for(code, says, tmp_path):
    killed = job(tmp_path, "killed", f"import os, signal; print('epoch 3', flush=True); {code}")
    executor.run([killed], slots=1)
    told = logs.killed_by(killed.status, killed.log)
    assert told == "" if not says else says in told and "goes on from its last state" in told and "\n" not in told


def test_a_job_may_say_that_it_failed_whatever_its_status(tmp_path):
    first = job(tmp_path, "first", "pass", on_exit=lambda status: 1)
    second = job(tmp_path, "second", f"open({str(tmp_path / 'begun')!r}, 'w')", needs=("first",))
    executor.run([first, second], slots=1)
    assert (first.status, second.status) == (1, 1) and not (tmp_path / "begun").exists()
