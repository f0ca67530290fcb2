"""The loop: resuming, several processes, damaged files, bad input."""

import json
import os
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pretrain import checkpoint, train
from pretrain.config import DEMO

TINY = ["--preset", "demo", "--device", "cpu", "--set", "batch_size=8", "--set", "epochs=3", "--set", "warmup_epochs=1"]


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images") / "n1"
    folder.mkdir()
    for i in range(24):
        Image.fromarray(np.random.default_rng(i).integers(0, 255, (36, 40, 3), dtype=np.uint8)).save(folder / f"{i:02d}.png")
    return folder.parent


def weights(out: Path) -> dict[str, torch.Tensor]:
    return torch.load(out / checkpoint.NAME, weights_only=True)["model"]


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def run(images: Path, out: Path, *options: str) -> int:
    return train.main(["--data", str(images), "--out", str(out), *TINY, *options])


@pytest.fixture(scope="module")
def unbroken(images, tmp_path_factory):
    out = tmp_path_factory.mktemp("unbroken")
    assert run(images, out) == 0
    return weights(out)


@pytest.mark.parametrize(("stop_after", "workers"), [(2, 0), (3, 1), (7, 2)])
def test_a_stopped_run_resumes_to_the_same_bits(images, unbroken, tmp_path, monkeypatch, stop_after, workers):
    step = train.Log.step

    def stop(self, number, *rest):
        step(self, number, *rest)
        if number == stop_after:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(train.Log, "step", stop)
    assert run(images, tmp_path) == train.EXIT_SAVED
    monkeypatch.undo()
    assert torch.load(tmp_path / checkpoint.NAME, weights_only=True)["step"] == stop_after
    assert run(images, tmp_path, "--workers", str(workers)) == 0
    assert same(weights(tmp_path), unbroken)


def test_a_damaged_checkpoint_falls_back_to_the_one_before(images, unbroken, tmp_path, capsys):
    assert run(images, tmp_path) == 0
    path = tmp_path / checkpoint.NAME
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert checkpoint.load(*checkpoint.newest(tmp_path))["step"] == 6
    assert run(images, tmp_path) == 0
    assert "damaged" in capsys.readouterr().out
    assert same(weights(tmp_path), unbroken)


def test_a_run_whose_checkpoints_are_all_damaged_does_not_start_from_scratch(images, tmp_path, capsys):
    assert run(images, tmp_path, "--init-only") == 0
    path = tmp_path / checkpoint.NAME
    path.write_bytes(path.read_bytes()[:-100])
    assert run(images, tmp_path) == 2
    assert "every checkpoint" in capsys.readouterr().err


def test_everything_that_defines_the_run_lies_beside_the_checkpoint(images, unbroken, tmp_path):
    assert run(images, tmp_path, "--init-only") == 0
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["batch_size"] == 8 and config["method"] == "siameseim" and config["embed_dim"] == DEMO.embed_dim
    assert not same(weights(tmp_path), unbroken)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--set", "colour=1"], "unknown setting 'colour=1'"),
        (["--set", "epochs=many"], "epochs takes a value like"),
        (["--set", "batch_size=4096"], "24 images do not fill one batch of 4096"),
        (["--set", "precision=fp16"], "needs a GPU"),
        (["--set", "method=moco"], "there is no method 'moco'"),
        (["--micro-batch", "3"], "does not split"),
    ],
)
def test_bad_settings_get_one_sentence(images, tmp_path, capsys, options, says):
    assert run(images, tmp_path, *options) == 2
    assert says in capsys.readouterr().err


def test_bad_images_are_named(tmp_path, capsys):
    assert run(tmp_path / "absent", tmp_path / "out") == 2
    assert "does not exist" in capsys.readouterr().err
    (tmp_path / "images").mkdir()
    for i in range(8):
        (tmp_path / "images" / f"{i}.png").write_bytes(b"no image")
    assert run(tmp_path / "images", tmp_path / "out") == 2
    assert "0.png cannot be read as an image" in capsys.readouterr().err
    Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(tmp_path / "images" / "0.png")
    assert run(tmp_path / "images", tmp_path / "out", "--workers", "1") == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "7 of 8 images cannot be read" in error


def test_another_config_does_not_continue_a_run(images, tmp_path, capsys):
    assert run(images, tmp_path) == 0
    assert run(images, tmp_path, "--set", "base_lr=0.1") == 2
    assert "another base_lr" in capsys.readouterr().err


def test_a_run_goes_on_under_a_setting_younger_than_itself(images, unbroken, tmp_path, monkeypatch, capsys):
    everything = train.PretrainConfig.to_json
    for young, status in (("num_views", 0), ("momentum", 2)):  # the demo has another momentum than the default
        monkeypatch.setattr(train.PretrainConfig, "to_json", lambda config, young=young: {k: v for k, v in everything(config).items() if k != young})
        assert run(images, tmp_path / young, "--init-only") == 0
        monkeypatch.undo()
        assert run(images, tmp_path / young) == status
    assert same(weights(tmp_path / "num_views"), unbroken)
    assert "another momentum" in capsys.readouterr().err


def test_schedule():
    config = replace(DEMO, epochs=10, warmup_epochs=2.0)
    assert [train.learning_rate(e, config) / config.lr for e in (0, 1, 2, 6, 10)] == pytest.approx([0, 0.5, 1, 0.5, 0], abs=1e-12)


@pytest.mark.parametrize(
    ("option", "value", "says"),
    [
        ("--keep", "0", "at least 1, not 0"),
        ("--monitor-epochs", "-1", "at least 0, not -1"),
        ("--micro-batch", "0", "at least 1, not 0"),
        ("--workers", "-1", "at least 0, not -1"),
        ("--save-minutes", "-1", "at least 0, not -1"),
        ("--save-minutes", "nan", "at least 0, not nan"),
    ],
)
def test_an_amount_out_of_range_is_named(images, tmp_path, capsys, option, value, says):
    with pytest.raises(SystemExit, match="2"):
        run(images, tmp_path, option, value)
    assert f"{option} is {says}" in capsys.readouterr().err
