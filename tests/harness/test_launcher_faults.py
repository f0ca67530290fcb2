"""What may befall the launcher's machine: a GPU that is gone, a disk that fills. Each is one sentence."""

import subprocess
import sys
import time
import types
from pathlib import Path

import pytest

from evaluate.harness import executor, logs, watch
from evaluate.runtime.progress import Told, steady

LOST = "print('RuntimeError: CUDA error: unknown error', flush=True); raise SystemExit(1)"
SEEN = "import os; print(os.environ['CUDA_VISIBLE_DEVICES'])"


def job(folder: Path, name: str, code: str, slots: int = 1) -> executor.Job:
    return executor.Job(name, lambda: [sys.executable, "-c", code], folder / f"{name}.log", slots=slots)


def test_a_gpu_that_is_gone_is_named_and_not_given_again(tmp_path: Path) -> None:
    first, *others = [job(tmp_path, "lost", LOST), *(job(tmp_path, f"job{i}", SEEN) for i in range(4))]
    both = job(tmp_path, "both", SEEN, slots=2)
    executor.run([first, both, *others], slots=2, gpus=["4", "5"])
    said = logs.why(first.log, first.status or 0)
    assert first.status == 1 and "GPU 4 no longer answers (CUDA error: unknown error)" in said
    assert "start the same command again" in said and "\n" not in said
    assert both.status == 1 and "not run: GPU 4 no longer answers" in logs.last_line(both.log)
    assert [logs.last_line(one.log) for one in others] == ["5"] * 4


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("torch.AcceleratorError: CUDA error: unknown error\nmore", "CUDA error: unknown error"),
        ("Unable to determine the device handle: GPU is lost.", "GPU is lost."),
        ("NVRM: Xid (PCI:0000:3b:00): 79, GPU has fallen off the bus.", "Xid (PCI:0000:3b:00): 79"),
        ("CUDA error: an illegal memory access was encountered", ""),
        ("epoch 3: loss 0.3", ""),
    ],
)
def test_what_the_driver_says_of_a_lost_gpu(text: str, found: str, tmp_path: Path) -> None:
    (tmp_path / "log").write_text(text)
    said = logs.lost_gpu(tmp_path / "log")
    assert found in said and bool(found) == bool(said)


FULL = """
import resource, signal, sys
import run_all
from results.atomic import atomic_write
from pathlib import Path
def fill(*_):
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
    with atomic_write(Path(sys.argv[1]) / "table.csv") as written:
        written.write_text(5000 * "x")
run_all.make_toy_world = fill
sys.exit(run_all.main(["--out", sys.argv[1]]))
"""


def test_a_disk_without_room_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "table.csv").write_text("earlier")
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(tmp_path)], cwd=executor.ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert "cannot be written" in done.stderr and "make room and start the same command again" in done.stderr
    assert (tmp_path / "table.csv").read_text() == "earlier"


def test_a_clock_that_jumps_changes_no_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    at_work = watch.Watch({"mine/knn": tmp_path / "log"}, tmp_path)
    at_work.started("mine/knn", "slot 0")
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + 86400)
    said = watch.news(at_work.launch, {"mine/knn": Told("epoch", 3, 9, "", 600.0, steady())}, tmp_path)
    at_work.ended("mine/knn", 0)
    assert "epoch 3/9" in said[0] and " ago" not in said[0] and " min" in said[0] and " d " not in said[0]
    assert (at_work.launch.tasks[0].seconds or 0) < 3600


def test_a_job_that_a_full_disk_left_without_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "log").touch()
    assert logs.why(tmp_path / "log", 1) == "its process ended with status 1"
    monkeypatch.setattr(logs.shutil, "disk_usage", lambda folder: types.SimpleNamespace(free=100))
    assert (
        logs.why(tmp_path / "log", 1) == f"the disk of {tmp_path} is full; make room and start the same command again"
    )
