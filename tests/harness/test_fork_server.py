"""A job that is forked is what a subprocess would be, and the end of its server or of its launcher is met."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import run_all
from evaluate.harness import executor, fork_server, forks, plan
from evaluate.runtime import devices
from tests.worlds import write_world

ROOT = Path(__file__).parents[2]
Modules = Callable[..., executor.Job]

STATE = """
import json, os, signal, sys, threading
handlers = {number.name: str(signal.getsignal(number)) for number in signal.Signals}
own = os.getpid()
environment = {name: value for name, value in os.environ.items() if name != "SIAMESE_EVAL_PROGRESS"}
print(json.dumps({
    "argv": sys.argv, "name": __name__, "spec": __spec__.name, "file": __file__,
    "main": sys.modules["__main__"].__file__,
    "path": sys.path, "cwd": os.getcwd(), "environment": environment, "files": sorted(os.listdir("/proc/self/fd")),
    "leads": [os.getsid(0) == own, os.getpgid(0) == own], "parent": os.getppid(), "umask": os.umask(0o22),
    "handlers": handlers, "blocked": str(signal.pthread_sigmask(signal.SIG_BLOCK, ())),
    "threads": [len(os.listdir("/proc/self/task")), threading.current_thread() is threading.main_thread()],
    "stdin": os.fstat(0).st_ino, "buffered": [sys.stdout.write_through, sys.stdout.line_buffering, sys.stdout.encoding],
    "words": open("/proc/self/cmdline").read().rstrip(chr(0)).split(chr(0)),
}, indent=1))
"""
DRAWS = """
import random
import numpy
import torch
print(torch.initial_seed(), torch.rand(1).item(), random.random(), numpy.random.rand())
random.seed(1), numpy.random.seed(1), torch.manual_seed(1)
print(torch.rand(1).item(), random.random(), numpy.random.rand(), torch.get_num_threads())
"""
PROCESSES = """
import multiprocessing
import torch
def double(number):
    return 2 * number
class Squares(torch.utils.data.Dataset):
    def __len__(self):
        return 6
    def __getitem__(self, index):
        return index * index
if __name__ == "__main__":
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        print(pool.map(double, range(4)))
    print([batch.tolist() for batch in torch.utils.data.DataLoader(Squares(), 2, num_workers=2)])
    torch.set_num_threads(2)
    print((torch.ones(300, 300) @ torch.ones(300, 300)).sum().item())
"""
ENDS = {  # what a module does: exit status, and what its log must have, last
    "pass": (0, ""),
    "raise SystemExit(3)": (3, ""),
    "raise SystemExit(259)": (3, ""),
    "raise SystemExit('this is why')": (1, "this is why"),
    "print('late', end='')": (0, "late"),
    "raise ValueError('wrong')": (1, "ValueError: wrong"),
    "import os; print('first'); os._exit(7)": (7, "first"),
    "import os; os.kill(os.getpid(), 9)": (-9, ""),
    "import os, signal; os.kill(os.getpid(), signal.SIGINT)": (-2, "KeyboardInterrupt"),
    "import os, signal; os.kill(os.getpid(), signal.SIGTERM)": (-15, ""),
    "import ctypes, os; os.system('echo of a child'); ctypes.CDLL(None).abort()": (-6, "of a child"),
    "import faulthandler, ctypes; faulthandler.enable(); ctypes.string_at(0)": (-11, "Segmentation fault"),
    "import atexit; atexit.register(print, 'at the end')": (0, "at the end"),
    "import threading, time; threading.Thread(target=lambda: (time.sleep(0.3), print('joined'))).start()": (
        0,
        "joined",
    ),
    "import absent_module": (1, "ModuleNotFoundError: No module named 'absent_module'"),
}


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Modules:
    """Makes a job that runs a module of this code."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")

    def make(name: str, code: str, *arguments: str) -> executor.Job:
        (tmp_path / f"{name}.py").write_text(textwrap.dedent(code))
        command = [sys.executable, "-m", name, *arguments]
        return executor.Job(f"{tmp_path.name}/{name}", lambda: command, tmp_path / f"{name}.log")

    return make


def ended(job: executor.Job, forks: bool) -> tuple[int | None, str]:
    job.status = None
    executor.run([job], slots=1, forks=forks)
    return job.status, job.log.read_text()


def servers_of(pid: int) -> list[int]:
    """The fork servers among a process's children."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in children if forks.SERVER in Path(f"/proc/{child}/cmdline").read_text()]


def test_a_forked_job_has_the_state_of_a_subprocess(module: Modules) -> None:
    job = module("state", STATE, "--name", "väl", "")
    forked, alone = ended(job, True), ended(job, False)
    assert forked == alone and alone[0] == 0
    assert f'"parent": {os.getpid()}' in alone[1] and '"väl"' in alone[1].encode().decode("unicode_escape")
    assert (job.log.parent / forks.LOG).exists(), "it was not forked"


@pytest.mark.parametrize("code", ENDS)
def test_it_ends_as_a_subprocess(code: str, module: Modules) -> None:
    job = module("ending", code)
    (status, said), (status_alone, said_alone) = ended(job, True), ended(job, False)
    assert status == status_alone == ENDS[code][0]
    if "File " in said_alone:  # the way from the server is shown too
        line = 0 if "Fatal" in said_alone else -1
        said, said_alone = (text.strip().splitlines()[line] for text in (said, said_alone))
    assert said == said_alone and ENDS[code][1] in said


def test_a_module_that_there_is_not(tmp_path: Path) -> None:
    job = executor.Job("absent", lambda: [sys.executable, "-m", "absent_module"], tmp_path / "log")
    status, said = ended(job, True)
    assert status == 1 and "No module named absent_module" in said.splitlines()[-1]


def test_it_draws_as_a_new_process(module: Modules, tmp_path: Path) -> None:
    warm = executor.Job("warm", lambda: [sys.executable, "-m", "evaluate.convert", "--help"], tmp_path / "warm")
    jobs = [module(f"job{i}", DRAWS) for i in range(3)]
    executor.run([warm, *jobs[:2]], slots=1, forks=True)
    ended(jobs[2], False)
    free, seeded = zip(*(job.log.read_text().splitlines() for job in jobs), strict=True)
    assert len(set(seeded)) == 1
    assert len({number for line in free for number in line.split()}) == 12, "two jobs draw alike without a seed"


def test_it_may_start_processes_and_threads(module: Modules) -> None:
    status, said = ended(module("processes", PROCESSES), True)
    assert status == 0 and said == "[0, 2, 4, 6]\n[[0, 1], [4, 9], [16, 25]]\n27000000.0\n"


def test_a_crash_takes_its_own_job_alone(module: Modules, tmp_path: Path) -> None:
    crash = module("crash", "import ctypes; ctypes.string_at(0)")
    long = module("long", "import time; time.sleep(1); print('well')")
    after = module("after", "print('well')")
    executor.run([long, crash, after], slots=2, forks=True)
    assert (crash.status, long.status, after.status) == (-signal.SIGSEGV, 0, 0)


def test_a_server_that_is_killed_takes_no_job(module: Modules, tmp_path: Path) -> None:
    kill = f"""
        import os, time
        from pathlib import Path
        for child in Path(f"/proc/{{os.getppid()}}/task/{{os.getppid()}}/children").read_text().split():
            if {forks.SERVER!r} in Path(f"/proc/{{child}}/cmdline").read_text():
                os.kill(int(child), 9)
        time.sleep(1)
        print("killed it")
    """
    long = module("long", "import time; print('begun'); time.sleep(2); print('well')")
    killer, after = module("killer", kill), module("after", "import sys; print(sys.modules['__main__'].__spec__.name)")
    assert not servers_of(os.getpid())
    executor.run([long, killer, after], slots=2, forks=True)
    assert [job.status for job in (long, killer, after)] == [0, 0, 0]
    assert long.log.read_text() == "begun\nwell\n" and killer.log.read_text() == "killed it\n"
    assert after.log.read_text() == "after\n"


def test_a_server_that_cannot_begin_costs_no_job(module: Modules, tmp_path: Path) -> None:
    (tmp_path / "socket.py").write_text("raise RuntimeError('not this one')")  # what the server needs, and jobs do not
    first, second = module("first", "print('well')"), module("second", "print('well')")
    executor.run([first, second], slots=2, forks=True)
    assert [first.status, second.status] == [0, 0] and second.log.read_text() == "well\n"
    assert "not this one" in (tmp_path / forks.LOG).read_text()


def test_an_import_that_starts_a_thread_ends_the_server(module: Modules, tmp_path: Path) -> None:
    thread = "import threading, time\nthreading.Thread(target=time.sleep, args=(60,), daemon=True).start()\n"
    (tmp_path / "sklearn").mkdir()
    (tmp_path / "sklearn/__init__.py").write_text(thread)
    command = [sys.executable, "-m", "evaluate.few_shot", "--help"]
    job = executor.Job("help", lambda: command, tmp_path / "log")
    status, said = ended(job, True)
    assert status == 0 and "usage" in said
    assert "has started a thread" in (tmp_path / forks.LOG).read_text()


def test_a_server_that_hangs_is_ended_with_the_job_that_waits_for_it(module: Modules, tmp_path: Path) -> None:
    (tmp_path / "sklearn").mkdir()
    (tmp_path / "sklearn/__init__.py").write_text("import time; time.sleep(600)")
    waits = executor.Job("waits", lambda: [sys.executable, "-m", "evaluate.few_shot", "--help"], tmp_path / "log")
    after = module("after", "print('well')")
    executor.run([waits, after], slots=1, silence_minutes=1 / 30, forks=True)
    assert waits.status == -signal.SIGTERM and "--task-timeout" in waits.log.read_text()
    assert after.status == 0 and not servers_of(os.getpid())


def test_with_more_threads_or_another_command_it_is_a_subprocess(
    module: Modules, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = executor.Job("code", lambda: [sys.executable, "-c", "print('well')"], tmp_path / "code.log")
    assert ended(code, True) == (0, "well\n")
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert ended(module("two", "import os; print(os.environ['OMP_NUM_THREADS'])"), True) == (0, "2\n")
    assert not (tmp_path / forks.LOG).exists()


RUN = """
import sys
from pathlib import Path
from evaluate.harness import executor
executor.GRACE_SECONDS = 1.0
folder = Path(sys.argv[1])
commands = [[sys.executable, "-m", *words.split()] for words in sys.argv[2:]]
jobs = [executor.Job(str(i), lambda i=i: commands[i], folder / f"{i}.log") for i in range(len(commands))]
try:
    executor.run(jobs, slots=len(jobs), forks=True)
except executor.Stopped as stop:
    sys.exit(stop.status)
"""
SLEEPS = "from evaluate.runtime.processes import end_with_parent\nend_with_parent()\n"
SLEEPS += "import time; print('up'); time.sleep(60)"
STUBBORN = "import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n"


def alive(pids: list[int]) -> list[int]:
    states = {pid: Path(f"/proc/{pid}/stat") for pid in pids}
    return [
        pid for pid, stat in states.items() if stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"
    ]


def working_in(folder: Path) -> list[str]:
    """The processes with a folder in their command lines."""
    listed = subprocess.run(["ps", "-wweo", "stat,args"], capture_output=True, text=True, check=True).stdout
    return [line for line in listed.splitlines() if str(folder) in line and line[0] != "Z"]


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGKILL], ids=lambda number: number.name
)
@pytest.mark.parametrize("begun", [True, False])
@pytest.mark.parametrize("stubborn", [False, True])
def test_nobody_outlives_the_launcher(
    number: signal.Signals, begun: bool, stubborn: bool, module: Modules, tmp_path: Path
) -> None:
    module("sleeps", (STUBBORN if stubborn else "") + SLEEPS)
    words = [f"sleeps {i} {tmp_path}" for i in range(3)] + ([] if begun else ["evaluate.segmentation --help"])
    launcher = subprocess.Popen([sys.executable, "-c", RUN, str(tmp_path), *words], cwd=ROOT)
    deadline = time.monotonic() + 60

    def others() -> list[int]:
        try:
            found = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
        except OSError:
            found = []
        return [int(pid) for pid in found]

    while time.monotonic() < deadline:
        if all("up" in path.read_text() for path in tmp_path.glob("?.log")) and len(others()) >= 4:
            break
        if not begun and len(others()) >= 1:  # a server that imports, or is about to
            break
        time.sleep(0.01)
    pids = others()
    assert pids
    launcher.send_signal(number)
    assert launcher.wait(30) == (-number if number == signal.SIGKILL else 128 + number)
    deadline = time.monotonic() + (12 if number == signal.SIGKILL else 2)
    while alive(pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not alive(pids)
    assert not working_in(tmp_path)


def test_a_pretraining_ends_with_its_launcher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    images = write_world(tmp_path / "data", train=40, val=1) / "imagenet/train"
    words = f"pretrain.train --preset mae_demo --set epochs=5000 --data {images} --out {tmp_path}/run --device cpu"
    launcher = subprocess.Popen([sys.executable, "-c", RUN, str(tmp_path), words], cwd=ROOT)
    while not (tmp_path / "run/batch.png").exists():  # of its first step
        assert launcher.poll() is None
        time.sleep(0.05)
    launcher.kill()
    launcher.wait()
    deadline = time.monotonic() + 30
    while (left := working_in(tmp_path)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not left


def test_what_ps_shows_of_a_job(module: Modules, tmp_path: Path) -> None:
    job = module("seen", "import subprocess, os; os.system(f'ps -wwo args= -p {os.getpid()}')", "--out", "x" * 300)
    assert ended(job, True)[1].strip() == " ".join(job.command())


PREPARED = """
import os, sys
from evaluate.harness import fork_server
fork_server.prepare(sys.argv[1])
print(*(name for name in ("torch", "timm", "sklearn", "mmdet", "mmseg", "tensorboard") if name in sys.modules))
print(sys.argv[1] in sys.modules, sorted(os.listdir("/proc/self/fd")), file=sys.stderr)
"""


@pytest.mark.parametrize(
    "name", dict.fromkeys([*fork_server.IMPORTS, *(f"evaluate.{node.task}" for node in plan.NODES)])
)
def test_what_is_imported_for_a_module(name: str) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PREPARED, name], cwd=ROOT, capture_output=True, text=True, check=True
    )
    dense = fork_server.needed(name) == fork_server.DENSE
    found = done.stdout.splitlines()[-1].split()
    assert {"torch", "timm"} <= set(found) and dense == ("mmdet" in found) == ("mmseg" in found)
    assert ("tensorboard" in found) == (name == "pretrain.train")
    assert done.stderr.splitlines()[-1] == "False ['0', '1', '2', '3']", "runpy warns of it, or a file is left open"


def test_beside_a_gpu_each_job_is_a_subprocess(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = []
    monkeypatch.setattr(executor, "run", lambda *arguments: told.append(arguments[-1]))
    monkeypatch.setattr(run_all, "make_toy_world", lambda out, seed: tmp_path / "world")
    monkeypatch.setattr(run_all.pretraining.Pretraining, "checkpoints", lambda self: {})
    monkeypatch.setattr(run_all, "report", lambda *arguments: 0)
    for gpu in (False, True):
        monkeypatch.setattr(devices, "has_unused_gpu", lambda gpu=gpu: gpu)
        assert run_all.main(["--out", str(tmp_path), "--device", "cpu", "--tasks", "knn"]) == 0
    assert told == [True, False]
