"""The heads that are kept are those that were measured: their logits give the probabilities that the tasks left."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open

from evaluate import few_shot, linear_probe, sweep
from evaluate.classification import features
from evaluate.classification.head_sweep import HeadInputs
from evaluate.classification.softmax_regression import centre_rows
from evaluate.data import imagenet, loader
from evaluate.encoder import Encoder
from evaluate.runtime.env import Env
from results import predictions
from tests.factories import PROBE, environment, resnet, vit
from tests.worlds import WNIDS, in_order, write_world


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_world(tmp_path_factory.mktemp("world"))


def read(folder: Path) -> tuple[torch.Tensor, torch.Tensor, dict[str, Any]]:
    with safe_open(folder / "head.safetensors", "pt") as file:
        return file.get_tensor("weight"), file.get_tensor("bias"), json.loads(file.metadata()["about"])


def require_measured(env: Env, encoder: Encoder, inputs: torch.Tensor) -> None:
    weight, bias, about = read(env.out_dir)
    assert about["classes"] == list(WNIDS) and about["encoder"] == encoder.fingerprint and about["input"]
    answers = predictions.answers_of(predictions.load(env.out_dir))
    assert answers is not None
    probabilities = (inputs.float() @ weight.T + bias).softmax(1).detach().numpy()
    told = np.take_along_axis(probabilities, answers.top.astype(int), 1)
    assert told == pytest.approx(answers.probabilities.astype(float), abs=1e-3) and told.std() > 0.01


def tokens_of(env: Env, encoder: Encoder, kind: str, config: Any) -> torch.Tensor:
    found = features.extract(encoder, imagenet.val_set(env.data_root), features.test_crop(encoder, config), env)
    return found.require_tokens(kind)


@pytest.mark.parametrize("kind", ["mean", "cls", "resnet", "no norm"])
def test_the_linear_probes_head(data: Path, tmp_path: Path, kind: str) -> None:
    encoder = resnet() if kind == "resnet" else vit(pooling="cls" if kind == "cls" else "mean")
    env = environment(data, tmp_path, "linear_probe")
    config = replace(PROBE, epochs=2, batch_norm=kind != "no norm")
    linear_probe.run(encoder, config, env)
    pooling = "cls" if kind == "cls" else "mean"
    tokens = tokens_of(env, encoder, pooling, config)
    require_measured(env, encoder, features.probe_input(encoder, pooling, tokens))


def test_the_few_shot_head(data: Path, tmp_path: Path) -> None:
    env, config = environment(data, tmp_path, "few_shot"), replace(few_shot.PRESETS["demo"], shots=3, seeds=2)
    few_shot.run(vit(), config, env)
    rows = centre_rows(tokens_of(env, vit(), "cls", config).double().numpy())
    require_measured(env, vit(), torch.from_numpy(rows))


def test_the_sweeps_chosen_head(data: Path, tmp_path: Path) -> None:
    env, config = environment(data, tmp_path, "sweep"), replace(sweep.PRESETS["demo"], epochs=2)
    sweep.run(vit(), config, env)
    val, crop = imagenet.val_set(data), features.test_crop(vit(), config)
    pixels = torch.cat([part for part, _ in loader.batches(loader.Images(val, crop), in_order(len(val), 64))])
    inputs = HeadInputs(vit(), config.blocks, config.poolings).of_pixels(pixels, "fp32", "cpu")
    require_measured(env, vit(), inputs[env.notes["protocol"]["pooling"]])
