"""Out of memory ends a task or a pretraining in one sentence that names the setting and what it changes."""

import types
from dataclasses import replace

import pytest
import torch

from evaluate import finetune, knn
from evaluate.harness import task
from evaluate.runtime.env import Env
from pretrain import budget, train
from tests.pretrain.runs import write_images

TOLD = "CUDA out of memory. Tried to allocate 9 GiB. GPU 0 has a total capacity of 39.39 GiB of which 1 GiB is free."


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (replace(finetune.PRESETS["demo"]), "(a total capacity of 39.39 GiB) does not hold a micro-batch"),
        (replace(knn.PRESETS["demo"]), "is too small for this encoder; take a larger GPU"),
    ],
)
def test_a_task(config, says, tmp_path):
    def run(encoder, config, env):
        raise torch.OutOfMemoryError(TOLD)

    module, entry = types.SimpleNamespace(reads=lambda config: (), run=run), {"task": "x", "config": {}}
    entry |= {"paper_config": {}, "protocol": {}, "immaterial": {}, "rests_on": {}, "metrics": {}, "sizes": {}}
    assert task.measure(module, None, config, Env(tmp_path, tmp_path), entry) == 2
    assert entry["status"] == "failed" and says in entry["reason"]


@pytest.mark.parametrize(
    ("preset", "options", "taken", "paper"),
    [
        ("demo", [], 8, 4096),
        ("demo", ["--micro-batch", "4"], 4, 4096),
        ("demo", ["--minutes", "1"], 8, 4096),
        ("simsiam_demo", [], 8, 512),
    ],
)
def test_a_pretraining(tmp_path, monkeypatch, capsys, preset, options, taken, paper):
    def accumulate(*_):
        raise torch.OutOfMemoryError(TOLD)

    monkeypatch.setattr(train, "accumulate", accumulate)
    monkeypatch.setattr(budget, "accumulate", accumulate)
    images = write_images(tmp_path / "images")
    start = ["--data", str(images), "--out", str(tmp_path), "--preset", preset, "--device", "cpu"]
    assert train.main([*start, "--set", "batch_size=8", *options]) == 1
    said = capsys.readouterr().err.strip()
    assert "(a total capacity of 39.39 GiB) does not hold a step with micro_batch" in said
    assert f"micro_batch {taken}, and the paper's value is {paper} over all processes" in said
    assert "a smaller --micro-batch is never chosen for you, since BatchNorm and the loss's correlation" in said
    assert "\n" not in said
