"""What is seen of a run: while it is at work, after a kill and after its end, on a terminal and elsewhere."""

import io
import json
import os
import pty
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from rich.console import Console

import run_all
from evaluate.harness import executor, launches, watch
from evaluate.runtime import processes, progress
from evaluate.runtime.progress import Told
from results import atomic
from tests.terminals import shown_on

# two slots; `long` tells how far it is and then sleeps, `quick` ends, `bad` fails, `absent` is skipped
RUN = """
import sys
from pathlib import Path
from evaluate.harness import executor
from evaluate.runtime.processes import PARENT
out, seconds = Path(sys.argv[1]), sys.argv[2]
(out / "records").mkdir(parents=True, exist_ok=True)
parent = "from evaluate.runtime.processes import end_with_parent; end_with_parent()\\n"
tell = "from evaluate.runtime.progress import tell; tell('sleeping', 8, 8, lambda: 'loss 0.31')\\n"
def job(name, code, **more):
    log = out / "logs" / f"{name.replace('/', '-')}.log"
    return executor.Job(name, lambda: [sys.executable, "-c", parent + code], log, **more)
jobs = [
    job("mine/quick", "", result=lambda: "kNN 28.9"),
    job("mine/bad", "print('it broke'); raise SystemExit(1)"),
    job("mine/absent", "print('no data'); raise SystemExit(3)"),
    job("mine/long", tell + f"import time; time.sleep({seconds})"),
    job("mine/after", "", needs=("mine/long",)),
]
try:
    executor.run(jobs, slots=2, out=out)
except executor.Stopped as stop:
    sys.exit(stop.status)
"""
Begin = Callable[..., subprocess.Popen[bytes]]


@pytest.fixture
def begin(tmp_path: Path) -> Iterator[Begin]:
    """Starts a run of sleeping jobs in ``tmp_path`` and waits until the long one is at work; kills what is left."""
    begun = []

    def start(seconds: float = 60, wait: bool = True) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-c", RUN, str(tmp_path), str(seconds)]
        begun.append(subprocess.Popen(command, cwd=executor.ROOT, stdout=subprocess.DEVNULL))
        pid, deadline = begun[-1].pid, time.monotonic() + 60
        while wait and not list(tmp_path.glob(f"status/*-{pid}/mine-long.json")) and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(0.3 if wait else 0)  # the run has written that the long one began
        return begun[-1]

    yield start
    for process in begun:
        process.kill()
        process.wait()


def status(out: Path, capsys: pytest.CaptureFixture[str], expected: int = 0) -> str:
    assert run_all.main(["--status", str(out)]) == expected
    said = capsys.readouterr()
    return said.err if expected else said.out


def line(text: str, name: str) -> str:
    """The line of a task in the table."""
    return next(one.rstrip() for one in text.splitlines() if one.startswith(f"{name} "))


def test_the_states_of_a_run_at_work(begin: Begin, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    process = begin()
    text = status(tmp_path, capsys)
    assert f"process {process.pid} on " in text and "is at work" in text
    assert "done" in line(text, "mine/quick") and "kNN 28.9" in line(text, "mine/quick")
    long = line(text, "mine/long")
    assert "running" in long and "sleeping 8/8" in long and "loss 0.31" in long and " s " in long and "slot " in long
    assert long.endswith(f"{tmp_path}/logs/mine-long.log")
    assert "waiting" in line(text, "mine/after")
    assert f"mine/bad failed: it broke (log: {tmp_path}/logs/mine-bad.log)" in text
    assert f"mine/absent skipped: no data (log: {tmp_path}/logs/mine-absent.log)" in text


def test_after_kill_9_the_run_is_gone(begin: Begin, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    process = begin()
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    for _ in range(2):  # also while its parent has not looked after it
        text = status(tmp_path, capsys)
        assert f"process {process.pid} on " in text and "is gone: it was killed" in text and "at work" not in text
        assert "interrupted" in line(text, "mine/long") and "running" not in text
        assert "sleeping 8/8" in line(text, "mine/long") and "waiting" in line(text, "mine/after")
        process.wait()
    assert run_all.main(["--cancel", str(tmp_path)]) == 2


def test_after_the_end(begin: Begin, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert begin(seconds=0.1, wait=False).wait(60) == 0
    text = status(tmp_path, capsys)
    assert "has ended after" in text and "done" in line(text, "mine/after") and "done" in line(text, "mine/long")
    assert "loss 0.31" in line(text, "mine/long") and "sleeping" not in text
    assert begin(seconds=0.1, wait=False).wait(60) == 0
    assert status(tmp_path, capsys).count("has ended after") == 1, "an ended run gives way to the next"


def test_jobs_of_an_earlier_call_are_shown_as_they_ended(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "records").mkdir()
    jobs = [executor.Job(name, lambda: [sys.executable, "-c", ""], tmp_path / f"{name}.log") for name in ("one", "two")]
    executor.run(jobs[:1], slots=1, out=tmp_path)
    assert "is at work" in status(tmp_path, capsys), "its process is there: it may be stopped"
    (folder,) = (tmp_path / "status").iterdir()
    folder.rename(folder.with_name("20260101T000000-1"))  # begun in another second
    executor.run(jobs, slots=1, out=tmp_path)
    text = status(tmp_path, capsys)
    assert text.count("is at work") == 1 and "done" in line(text, "one") and "done" in line(text, "two")


def test_two_runs_of_one_folder_are_both_shown_and_both_cancelled(
    begin: Begin, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    both = [begin(), begin()]
    text = status(tmp_path, capsys)
    assert text.count("is at work") == 2 and all(f"process {process.pid} on" in text for process in both)
    waiting = [threading.Thread(target=process.wait) for process in both]  # as a shell does
    for thread in waiting:
        thread.start()
    assert run_all.main(["--cancel", str(tmp_path)]) == 0
    assert not any(processes.beginning(process.pid) for process in both), "it waits for their ends"
    said = capsys.readouterr().out
    assert all(f"process {process.pid} has ended; the same command goes on" in said for process in both)
    assert [process.wait(30) for process in both] == [128 + signal.SIGTERM] * 2
    text = status(tmp_path, capsys)
    assert text.count("stopped by SIGTERM") == 2 and text.count("interrupted") == 2
    assert run_all.main(["--cancel", str(tmp_path)]) == 2
    assert capsys.readouterr().err == (
        f"run_all.py: no run of {tmp_path} is at work; --status {tmp_path} shows how the last one ended\n"
    )


def rewritten(out: Path, **changes: object) -> None:
    """Changes what the run of a folder says of itself."""
    (path,) = out.glob("status/*/run.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_a_process_number_that_is_used_again_is_not_the_run(
    begin: Begin, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    begin().kill()
    rewritten(tmp_path, pid=os.getpid())  # another process, begun at another time
    assert "is gone" in status(tmp_path, capsys)
    monkeypatch.setattr(os, "kill", lambda *_: pytest.fail("another process was sent a signal"))
    assert run_all.main(["--cancel", str(tmp_path)]) == 2
    rewritten(tmp_path, process=processes.beginning(os.getpid()))
    assert "is at work" in status(tmp_path, capsys)


def test_a_run_of_another_machine(begin: Begin, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    begin().kill()
    rewritten(tmp_path, machine="0" * 8, host="far", pid=1)
    text = status(tmp_path, capsys)
    assert "process 1 on far, out of sight from here, was at work" in text and "running" in line(text, "mine/long")
    assert run_all.main(["--cancel", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "was started on far (process 1)" in error and error.count("\n") == 1


def test_no_output_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for option in ("--status", "--cancel"):
        assert run_all.main([option, str(tmp_path)]) == 2
        error = capsys.readouterr().err
        assert "is no output folder" in error and error.count("\n") == 1
    (tmp_path / "records").mkdir()
    assert "no run is known here" in status(tmp_path, capsys)
    (tmp_path / "status/torn").mkdir(parents=True)
    (tmp_path / "status/torn/run.json").write_text('{"pid": 1')
    assert "no run is known here" in status(tmp_path, capsys)


def test_elsewhere_each_running_job_gets_a_line_that_says_something(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(watch, "SECONDS_BETWEEN_NEWS", 0.4)
    tells = "from evaluate.runtime.progress import tell; tell('training', 0, 400); import time; time.sleep(1.5)\n"
    tells += "tell('training', 100, 400, lambda: 'loss 0.31'); time.sleep(1.5)"
    codes = {
        "silent": "import time; time.sleep(3)",
        "prints": "print('reading', flush=True); import time; time.sleep(3)",
    }
    jobs = [
        executor.Job(name, lambda code=code: [sys.executable, "-c", code], tmp_path / f"{name}.log")  # type: ignore[misc]
        for name, code in {**codes, "tells": tells}.items()
    ]
    executor.run(jobs, slots=3, out=tmp_path)
    said = capsys.readouterr().out
    # how long a process takes to start is not ours to say: a busy machine needs seconds
    assert "silent: starting (1 s)" in said and "no output" not in said
    assert re.search(r"prints: running for \d s, reading\n", said)
    assert re.search(r"tells: running for \d+ s, training 0/400\n", said)
    assert re.search(r"tells: running for \d+ s, training 100/400, loss 0.31, [3-6] s left\n", said)
    assert 4 <= said.count("silent: starting") <= jobs[0].seconds / watch.SECONDS_BETWEEN_NEWS, said


def launch(**states: str) -> launches.Launch:
    now = time.time()
    tasks = [
        launches.Task(
            f"mine/{name}",
            f"logs/mine-{name}.log",
            state,
            "GPU 4" if state == "running" else "",
            None if state == "waiting" else now - 3725.5,
            None if state in ("waiting", "running") else 65.2,
            {"failed": "the loss is not finite [red]", "done": "FT 85.0"}.get(state, ""),
        )
        for name, state in states.items()
    ]
    return launches.Launch(1, "", "here", atomic.machine(), now - 4000, now, tasks=tasks)


def rendered(of: launches.Launch, notes: dict[str, Told], width: int, height: int) -> list[str]:
    console = Console(width=width, height=height, file=io.StringIO(), force_terminal=True, color_system=None)
    console.print(watch.frame(of, notes, Path("out"), height))
    assert isinstance(console.file, io.StringIO)
    return [one.rstrip() for one in console.file.getvalue().splitlines()]


def test_the_table_of_a_terminal() -> None:
    of = launch(finetune="running", knn="done", segmentation="failed", robustness="waiting", few_shot="running")
    notes = {
        "mine/finetune": Told("finetune", 120, 400, "loss 0.31", 190.5, time.time()),
        "mine/few_shot": Told("val", 3, 9, "", None, time.time() - 130),
    }
    assert rendered(of, notes, 100, 24) == [
        "5 tasks: 2 running, 1 waiting, 1 done, 1 failed; 1 h 6 min since the start",
        "task               state    on     step                             metric          time        left",
        "mine/finetune      running  GPU 4  finetune 120/400                 loss 0.31  1 h 2 min  3 min 10 s",
        "mine/knn           done                                             FT 85.0    1 min 5 s",
        "mine/segmentation  failed          the loss is not finite [red]                1 min 5 s",
        "mine/robustness    waiting",
        "mine/few_shot      running  GPU 4  val 3/9 (2 min 10 s ago)                    1 h 2 min",
    ]


def test_the_table_fits_a_small_terminal() -> None:
    states = {f"done{i}": "done" for i in range(20)} | {"a": "waiting", "b": "failed", "c": "running"}
    lines = rendered(launch(**states), {}, 60, 8)
    assert len(lines) == 7 and max(map(len, lines)) <= 60
    assert [one.split()[:2] for one in lines[2:6]] == [
        ["mine/done0", "done"],
        ["mine/a", "waiting"],
        ["mine/b", "failed"],
        ["mine/c", "running"],
    ]
    assert lines[6] == "… and 19 more"


def test_a_terminal_shows_the_table_and_the_cursor(tmp_path: Path) -> None:
    master, slave = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "120", "LINES": "30"}
    process = subprocess.Popen(
        [sys.executable, "-c", RUN, str(tmp_path), "2.5"], cwd=executor.ROOT, stdout=slave, env=environment
    )
    os.close(slave)
    text = shown_on(master).decode()
    assert process.wait(30) == 0
    assert "sleeping 8/8" in text and "5 tasks: 1 running, 1 waiting" in text and "mine/long: started (log: " in text
    assert text.count(" since the start") >= 2, "a frame a second"
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l")
    assert text.index("\x1b[?25h") < text.index("sleeping 8/8"), "kill -9 must not leave a terminal without its cursor"


def test_telling_writes_once_a_second_and_never_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "_pace", progress._Pace())
    asked: list[int] = []

    def tell(step: int, description: str = "training") -> None:
        progress.tell(description, step, 1000, lambda: str(asked.append(step)))

    tell(1)
    assert not asked and not list(tmp_path.iterdir()), "nobody asked"
    monkeypatch.setenv(progress.FILE, str(tmp_path / "a.json"))
    for step in range(500):
        tell(step)
    assert asked == [0], "what may wait for the GPU is asked for no more than is written"
    tell(1000)
    assert asked == [0, 1000]
    note = progress.told(tmp_path / "a.json")
    assert note and (note.description, note.step, note.total, note.left) == ("training", 1000, 1000, 0.0)
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
    monkeypatch.setenv("RANK", "1")
    tell(1000)
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv(progress.FILE, str(tmp_path / "absent/a.json"))
    tell(1000)
    assert asked == [0, 1000, 1000]
    (tmp_path / "a.json").write_text('{"step": "x"}')
    assert progress.told(tmp_path / "a.json") is None and progress.told(tmp_path / "absent") is None


def test_time_left_is_that_of_the_steps_done_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([100.0, 110.0, 110.0, 200.0])
    monkeypatch.setattr(progress, "_pace", progress._Pace())
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    monkeypatch.setenv(progress.FILE, str(tmp_path / "a.json"))
    left = []
    for step in (50, 60, 60, 3):  # goes on at step 50; the last begins anew
        progress.tell("training", step, 100)
        note = progress.told(tmp_path / "a.json")
        left.append(note and note.left)
    assert left == [None, 40.0, 40.0, None]


def test_track_tells_how_far_it_is_also_when_it_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "_pace", progress._Pace())
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_NOTES", 0.0)
    monkeypatch.setenv(progress.FILE, str(tmp_path / "a.json"))
    seen = []
    for _ in progress.track(range(3, 5), "training", first=3, metric=lambda: "loss 1"):
        note = progress.told(tmp_path / "a.json")
        seen.append(note and (note.step, note.total, note.metric))
    note = progress.told(tmp_path / "a.json")
    assert seen == [(3, 5, ""), (4, 5, "loss 1")] and note and note.step == 5


@pytest.mark.parametrize(
    ("seconds", "says"),
    [
        (None, ""),
        (0.4, "0 s"),
        (59, "59 s"),
        (125, "2 min 5 s"),
        (11220, "3 h 7 min"),
        (187200, "2 d 4 h"),
        (-3, "0 s"),
    ],
)
def test_times_have_two_units_at_most(seconds: float | None, says: str) -> None:
    assert watch.clock(seconds) == says
