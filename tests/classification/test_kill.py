"""A task's own command, killed by SIGKILL in the middle of an epoch and started again, gives the record of an unbroken
one.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.factories import mae_state
from tests.worlds import write_world

HERE = Path(__file__).parents[2]
CHANGES = ("seconds", "started_utc", "git", "checksum")  # of a record, from run to run
EPOCHS = {"finetune": 8, "linear_probe": 30, "sweep": 12}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("inputs")
    torch.save({"model": mae_state()}, folder / "mine.pth")
    return folder / "mine.pth", write_world(folder / "data", train=60)


def start(task: str, inputs: tuple[Path, Path], out: Path) -> subprocess.Popen:
    options = [
        "--ckpt",
        str(inputs[0]),
        "--data-root",
        str(inputs[1]),
        "--out",
        str(out),
        "--preset",
        "demo",
        "--device",
        "cpu",
    ]
    options += ["--set", f"epochs={EPOCHS[task]}", "--set", "batch_size=16", "--set", "micro_batch=8"]
    return subprocess.Popen(
        [sys.executable, "-m", f"evaluate.{task}", *options],
        cwd=HERE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def record_of(out: Path) -> dict:
    (path,) = (out / "records").glob("*.json")
    return {name: value for name, value in json.loads(path.read_text()).items() if name not in CHANGES}


@pytest.mark.slow
@pytest.mark.parametrize("task", EPOCHS)
def test_killed_and_started_again(task: str, inputs: tuple[Path, Path], tmp_path: Path) -> None:
    assert start(task, inputs, tmp_path / "whole").wait(timeout=240) == 0
    process = start(task, inputs, tmp_path / "broken")
    deadline, pattern = time.monotonic() + 240, f"broken/mine/{task}-*/training_state.pt"
    while not list(tmp_path.glob(pattern)) and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    (state,) = tmp_path.glob(pattern)
    assert not list((tmp_path / "broken/records").iterdir()), "it was not killed in the middle"
    assert torch.load(state, weights_only=True)["step"] < EPOCHS[task] * 15
    assert start(task, inputs, tmp_path / "broken").wait(timeout=240) == 0
    assert record_of(tmp_path / "broken") == record_of(tmp_path / "whole")
    names = ["predictions.npz", "curves.jsonl"] + (["classifier.safetensors"] if task == "finetune" else [])
    for name in names:
        whole, broken = (next((tmp_path / run / "mine").glob(f"{task}-*/{name}")) for run in ("whole", "broken"))
        assert whole.read_bytes() == broken.read_bytes()
    points = [json.loads(line) for line in whole.with_name("curves.jsonl").read_text().splitlines()]
    assert [point["epoch"] for point in points] == list(range(1, EPOCHS[task] + 1))
    assert 0 < points[-1]["loss"] < points[0]["loss"] < 3 and all(point["rate"] >= 0 for point in points)
    assert not state.exists()
