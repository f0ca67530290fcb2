"""Commands whose output nobody reads to its end, as behind ``| head``."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from results.ending import EXIT_UNREAD

ROOT = Path(__file__).resolve().parents[2]
ALL = ["run_all.py", "--ckpt", "{file}", "--data-root", "{folder}", "--dry-run", "--device", "cpu"]


@pytest.mark.parametrize(
    "command",
    [
        ALL,
        ["-c", "from results.ending import leave; leave(lambda: print('said') or 0)"],
    ],
    ids=["run_all", "at the end"],
)
def test_a_closed_pipe_ends_a_command_in_silence(command: list[str], tmp_path: Path) -> None:
    (tmp_path / "x.pth").touch()
    (tmp_path / "imagenet" / "train").mkdir(parents=True)
    command = [part.format(file=tmp_path / "x.pth", folder=tmp_path) for part in command]
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, *command], cwd=ROOT, stdout=writing, stderr=subprocess.PIPE, text=True, timeout=120
    )
    os.close(writing)
    assert done.stderr == "", command
    assert done.returncode == EXIT_UNREAD
