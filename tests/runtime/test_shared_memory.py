"""A /dev/shm that is too small for the loading processes is one sentence, before any of them starts."""

import subprocess
import sys
import types
from pathlib import Path

import pytest

from evaluate.runtime import shared_memory
from evaluate.runtime.errors import UserError
from tests.pretrain.runs import TINY, write_images
from tests.worlds import write_world

ROOT = Path(__file__).resolve().parents[2]
SMALL = """
mount -t tmpfs -o size=64k tmpfs /dev/shm || exit 99
exec "$@"
"""


def on_a_small_one(*command: str) -> subprocess.CompletedProcess[str]:
    line = ["unshare", "--mount", "bash", "-c", SMALL, "small", sys.executable, "-m", *command]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=300)
    if done.returncode in (1, 99) and ("unshare" in done.stderr or "mount" in done.stderr):
        pytest.skip("another /dev/shm can be mounted by root alone")
    return done


def test_pretraining_and_a_task_say_how_many_processes_have_room(tmp_path: Path) -> None:
    images, out = write_images(tmp_path / "images"), tmp_path / "out"
    pretrain = ["pretrain.train", *TINY, "--data", str(images), "--out", str(out)]
    done = on_a_small_one(*pretrain, "--workers", "2")
    assert done.returncode == 2, done.stderr
    assert (
        "/dev/shm has 0 MB for this process, and 2 loading processes" in done.stderr and "Traceback" not in done.stderr
    )
    assert on_a_small_one(*pretrain, "--workers", "0", "--init-only").returncode == 0
    world = write_world(tmp_path / "world")
    knn = ["evaluate.knn", "--preset", "demo", "--ckpt", str(out / "checkpoint.pth"), "--data-root", str(world)]
    done = on_a_small_one(*knn, "--out", str(tmp_path / "table"), "--workers", "2", "--device", "cpu")
    assert done.returncode == 2, done.stderr
    assert "loading processes put up to 1 MB there; give --workers 0" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("batch", "workers", "local", "free", "said"),
    [
        (10e6, 4, None, 80e6, ""),
        (10e6, 5, None, 80e6, "5 loading processes put up to 100 MB there; give --workers 4"),
        (10e6, 4, "2", 80e6, "4 loading processes put up to 80 MB there; give --workers 2"),
        (10e6, 2, "2", 45e6, ""),  # the other process has taken its part already
        (10e6, 0, None, 1e6, ""),
    ],
)
def test_what_is_needed(batch: float, workers: int, local: str | None, free: float, said: str, monkeypatch) -> None:
    monkeypatch.setattr(shared_memory.shutil, "disk_usage", lambda folder: types.SimpleNamespace(free=free, total=80e6))
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    if local:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", local)
    if not said:
        return shared_memory.check(batch, workers)
    with pytest.raises(UserError, match=said):
        shared_memory.check(batch, workers)
