"""A training killed at any moment ends with the weights of an unbroken one."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from evaluate import segmentation
from evaluate.encoder import Encoder
from evaluate.mm import checkpoint, hooks
from evaluate.task import Env

SCRIPT = """
import json, sys
from pathlib import Path
import torch
from safetensors.torch import load_file
from evaluate.encoder import Encoder, EncoderSpec
from tests.mm.test_resume import trained
torch.set_num_threads(1)
weights, world, out = map(Path, sys.argv[1:4])
encoder = Encoder(EncoderSpec.from_json(weights.with_suffix(".json").read_text()), load_file(weights))
print(json.dumps(trained(encoder, world, out, workers=1)))
"""


def trained(encoder: Encoder, world: Path, out: Path, workers: int) -> list:
    """The metrics, and the sum of magnitudes of every tensor of the trained model."""
    sums: list[float] = []

    def after_train(self: hooks.Progress, runner: Any) -> None:
        sums.extend(float(value.double().abs().sum()) for value in runner.model.state_dict().values())

    hooks.Progress.after_train = after_train
    try:
        config = dataclasses.replace(segmentation.PRESETS["demo"], iterations=15)
        return [segmentation.run(encoder, config, Env(world, out, workers=workers)), sums]
    finally:
        del hooks.Progress.after_train


def start(encoder: Encoder, world: Path, folder: Path, name: str) -> subprocess.Popen:
    weights = folder / "encoder.safetensors"
    save_file(encoder.model.state_dict(), weights)
    weights.with_suffix(".json").write_text(encoder.spec.to_json())
    (folder / name).mkdir(exist_ok=True)
    command = [sys.executable, "-c", SCRIPT, str(weights), str(world), str(folder / name)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def test_killed_and_started_again(encoder: Encoder, world: Path, tmp_path: Path) -> None:
    """Killed after the second state, whose file is then cut short: goes on from the first; loading processes are on."""
    broken = start(encoder, world, tmp_path, "broken")
    states = tmp_path / "broken" / "work" / "state"
    until = time.monotonic() + 120
    while not (states / "iter_6.pt").exists() and time.monotonic() < until and broken.poll() is None:
        time.sleep(0.002)
    broken.send_signal(signal.SIGKILL)
    broken.wait()
    newest = checkpoint.newest_first(states)[0]
    newest.write_bytes(newest.read_bytes()[:1000])
    again, errors = start(encoder, world, tmp_path, "broken").communicate(timeout=120)
    assert "cannot be read" in errors and "goes on at iteration" in errors
    assert json.loads(again) == trained(encoder, world, tmp_path, workers=0)


def test_two_states_are_kept_and_others_ignored(tmp_path: Path) -> None:
    for iteration in (5, 10, 15):
        checkpoint.save(tmp_path, iteration, {"identity": "a", "iteration": iteration})
    assert [path.name for path in checkpoint.newest_first(tmp_path)] == ["iter_15.pt", "iter_10.pt"]
    assert checkpoint.load(tmp_path, "a")["iteration"] == 15
    assert checkpoint.load(tmp_path, "b") is None
    torch.save({"identity": "a", "iteration": 20, "code": dataclasses.field}, tmp_path / "iter_20.pt")
    assert checkpoint.load(tmp_path, "a")["iteration"] == 15, "a state that would run code was opened"


@pytest.mark.parametrize("size", [0, 10, 200])
def test_a_truncated_state_is_passed_over(tmp_path: Path, size: int, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint.save(tmp_path, 1, {"identity": "a", "iteration": 1})
    checkpoint.save(tmp_path, 2, {"identity": "a", "iteration": 2})
    path = tmp_path / "iter_2.pt"
    path.write_bytes(path.read_bytes()[:size])
    assert checkpoint.load(tmp_path, "a")["iteration"] == 1
    assert "iter_2.pt" in capsys.readouterr().err
