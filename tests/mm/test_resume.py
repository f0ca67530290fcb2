"""A training killed at any moment ends with the weights of an unbroken one."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from evaluate.encoder import Encoder
from evaluate.mm import checkpoint

SCRIPT = """
import dataclasses, json, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from safetensors.torch import load_file
from evaluate import segmentation
from evaluate.encoder import Encoder, EncoderSpec
from evaluate.mm import hooks
from evaluate.task import Env
weights, world, out, workers = sys.argv[1:5]
encoder = Encoder(EncoderSpec.from_json(Path(weights).with_suffix(".json").read_text()), load_file(weights))
after_train = []
hooks.Progress.after_train = lambda self, runner: after_train.append(
    [float(value.double().abs().sum()) for value in runner.model.state_dict().values()])
config = dataclasses.replace(segmentation.PRESETS["demo"], iterations=15)
metrics = segmentation.run(encoder, config, Env(Path(world), Path(out), workers=int(workers)))
print(json.dumps([metrics, after_train[0]]))
"""


def start(encoder: Encoder, world: Path, folder: Path, name: str, workers: int) -> subprocess.Popen:
    weights = folder / "encoder.safetensors"
    save_file(encoder.model.state_dict(), weights)
    weights.with_suffix(".json").write_text(encoder.spec.to_json())
    (folder / name).mkdir(exist_ok=True)
    command = [sys.executable, "-c", SCRIPT, str(weights), str(world), str(folder / name), str(workers)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def test_killed_and_started_again(encoder: Encoder, world: Path, tmp_path: Path) -> None:
    """Killed after the second state, whose file is then cut short: goes on from the first; loading processes are on."""
    whole, errors = start(encoder, world, tmp_path, "whole", 0).communicate(timeout=120)
    assert whole, errors
    broken = start(encoder, world, tmp_path, "broken", 1)
    states = tmp_path / "broken" / "work" / "state"
    until = time.monotonic() + 120
    while not (states / "iter_6.pt").exists() and time.monotonic() < until and broken.poll() is None:
        time.sleep(0.002)
    broken.send_signal(signal.SIGKILL)
    broken.wait()
    newest = checkpoint.newest_first(states)[0]
    newest.write_bytes(newest.read_bytes()[:1000])
    again, errors = start(encoder, world, tmp_path, "broken", 1).communicate(timeout=120)
    assert "cannot be read" in errors and "goes on at iteration" in errors
    assert json.loads(again) == json.loads(whole)


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
