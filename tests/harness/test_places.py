"""run_all.py works from any folder, and with its output anywhere."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import run_all
from pretrain import train
from tests.worlds import write_world

SCRIPT = Path(run_all.__file__).resolve()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose name has spaces and letters of other scripts: a checkpoint, a world, a link to another folder."""
    folder = tmp_path_factory.mktemp("places") / "mine & ours, данные 数据"
    write_world(folder / "the world", train=6, val=4)
    options = ["--preset", "demo", "--data", str(folder / "the world/imagenet/train"), "--init-only"]
    assert train.main([*options, "--out", str(folder / "a run")]) == 0
    (folder / "elsewhere").mkdir()
    (folder / "link").symlink_to("elsewhere", target_is_directory=True)
    return folder


@pytest.mark.parametrize(
    "out", ["out", "./a/b/../c", "with spaces and ünïcode 結果", "link", "link/new", "percent%20 $HOME 'quoted'"]
)
def test_the_same_cell_wherever_it_lies(place: Path, out: str) -> None:
    command = [sys.executable, str(SCRIPT), "--ckpt", "a run/checkpoint.pth", "--data-root", "the world", "--out", out]
    command += ["--tasks", "knn", "--preset", "demo", "--device", "cpu"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    table = (Path(os.path.normpath(place / out)) / "table.csv").read_text()
    assert table.splitlines()[1].startswith("a run,") and not done.stderr.count("Traceback")
    expected = place / "expected.csv"
    if not expected.exists():
        expected.write_text(table)
    assert table == expected.read_text()
