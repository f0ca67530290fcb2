"""The loop: resuming, several processes, damaged files, bad input."""

import gc
import json
import multiprocessing
import os
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import get_worker_info

from pretrain import checkpoint, train
from pretrain.data import loader
from pretrain.data.images import DataError
from pretrain.methods import presets, read_config
from pretrain.methods.siameseim import DEMO
from tests.pretrain.runs import write_images

TINY = ["--preset", "demo", "--device", "cpu", "--set", "batch_size=8", "--set", "epochs=3", "--set", "warmup_epochs=1"]


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images") / "n1"
    folder.mkdir()
    for i in range(24):
        Image.fromarray(np.random.default_rng(i).integers(0, 255, (36, 40, 3), dtype=np.uint8)).save(
            folder / f"{i:02d}.png"
        )
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
def test_a_stopped_run_resumes_to_the_same_bits(images, unbroken, tmp_path, monkeypatch, capsys, stop_after, workers):
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
    assert f"goes on at step {stop_after}, from {tmp_path / checkpoint.NAME}" in capsys.readouterr().out
    assert same(weights(tmp_path), unbroken)


def test_a_damaged_checkpoint_falls_back_to_the_one_before(images, unbroken, tmp_path, capsys):
    assert run(images, tmp_path, "--save-minutes", "0") == 0
    path = tmp_path / checkpoint.NAME
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert checkpoint.load(*checkpoint.newest(tmp_path))["step"] == 8
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
        (["--set", "colour=1"], "unknown setting 'colour'"),
        (["--set", "epochs=many"], "setting 'epochs' is a whole number above 0, not 'many'"),
        (["--set", "batch_size=4096"], "24 images do not fill one batch of 4096"),
        (["--set", "precision=fp16"], "needs a GPU"),
        (["--set", "method=moco"], "there is no method 'moco'"),
        (["--micro-batch", "3"], "does not split"),
        (["--set", "method=mae"], "a preset chooses the method"),
        (["--set", "epochs=2.7"], "setting 'epochs' is a whole number above 0, not 2.7"),
        (["--set", "seed=true"], "setting 'seed' is a whole number"),
        (["--set", "embed_dim=384.9"], "setting 'embed_dim' is a whole number above 0, not 384.9"),
        (["--set", "betas=[0.9]"], "setting 'betas' is a list of 2 numbers from 0 on and below 1, not [0.9]"),
        (["--set", "base_lr=NaN"], "setting 'base_lr' is finite"),
        (["--set", "lr=NaN"], "unknown setting 'lr'"),
        (["--set", "flip_probability=7"], "setting 'flip_probability' is a number from 0 to 1, not 7"),
        (["--set", "img_size=0"], "setting 'img_size' is a whole number above 0, not 0"),
        (["--set", "num_masked=16"], "num_masked 16 must lie between 0 and the 16 patches"),
        (["--set", "epochs"], "--set takes NAME=VALUE, for example epochs=400, not 'epochs'"),
        (["--preset", "dome"], "there is no preset 'dome'; the presets are both_losses, byol_1000ep"),
        (["--preset", "demo+dome"], "there is no preset 'dome'"),
        (["--preset", "demo+mae_paper"], "--preset demo+mae_paper: mae_paper is of mae, demo of siameseim"),
        (["--config", "absent.json"], "--config absent.json holds no settings of a run"),
    ],
)
def test_bad_settings_get_one_sentence(images, tmp_path, capsys, options, says):
    chosen = ["--device", "cpu", "--set", "batch_size=8"] if "--config" in options else TINY
    assert train.main(["--data", str(images), "--out", str(tmp_path), *chosen, *options]) == 2
    error = capsys.readouterr().err
    assert says in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("device", "says"), [("gpu", "auto, cpu, cuda or cuda:N"), ("cuda:x", "auto, cpu"), ("cuda:999", "cannot be used")]
)
def test_a_device_that_cannot_be_used_is_named(images, tmp_path, capsys, device, says):
    assert train.main(["--data", str(images), "--out", str(tmp_path), "--preset", "demo", "--device", device]) == 2
    error = capsys.readouterr().err
    assert says in error and error.count("\n") == 1


@pytest.mark.parametrize("asked", ["cuda:1", "cuda"])
def test_a_gpu_is_the_one_asked_for(images, tmp_path, monkeypatch, asked):
    current, found = [], []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    monkeypatch.setattr(train, "train", lambda config, data, out, execution, _: found.append(execution.device) or out)
    assert train.main(["--data", str(images), "--out", str(tmp_path), "--preset", "demo", "--device", asked]) == 0
    assert found == [asked] and current == [asked] * (":" in asked)


@pytest.mark.parametrize("written", ["config.json", checkpoint.NAME])
def test_a_written_config_runs_again(images, unbroken, tmp_path, written):
    assert run(images, tmp_path / "first", "--init-only") == 0
    common = ["--data", str(images), "--device", "cpu", "--config", str(tmp_path / "first" / written)]
    assert train.main([*common, "--out", str(tmp_path / "again")]) == 0
    assert same(weights(tmp_path / "again"), unbroken)
    assert (tmp_path / "again/config.json").read_text() == (tmp_path / "first/config.json").read_text()
    assert train.main([*common, "--out", str(tmp_path / "other"), "--set", "epochs=1", "--init-only"]) == 0
    assert json.loads((tmp_path / "other/config.json").read_text())["epochs"] == 1


def test_a_dry_run_prints_the_settings_and_writes_nothing(images, tmp_path, capsys):
    assert run(images, tmp_path / "out", "--dry-run", "--preset", "demo+random_mask") == 0
    said = json.loads(capsys.readouterr().out)
    assert said["mask"] == "random" and said["batch_size"] == 8 and not (tmp_path / "out").exists()


def test_config_and_preset_are_not_given_together(images, tmp_path, capsys):
    assert run(images, tmp_path, "--init-only") == 0
    assert run(images, tmp_path / "again", "--config", str(tmp_path / "config.json")) == 2
    assert "give --config or --preset, not both" in capsys.readouterr().err


OLD = {
    "decoder_depth": 8,
    "mask_ratio": 0.75,
    "norm_pix_loss": True,
}  # MAE's, in SiameseIM's config before each had its own


def test_a_run_goes_on_that_holds_the_settings_of_all_methods(images, unbroken, tmp_path, monkeypatch):
    everything = train.PretrainConfig.to_json
    monkeypatch.setattr(train.PretrainConfig, "to_json", lambda config: {**everything(config), **OLD})
    assert run(images, tmp_path, "--init-only") == 0
    monkeypatch.undo()
    assert json.loads((tmp_path / "config.json").read_text())["mask_ratio"] == 0.75
    assert read_config(tmp_path / "config.json") == read_config(tmp_path / checkpoint.NAME)
    assert run(images, tmp_path) == 0
    assert same(weights(tmp_path), unbroken)


def test_another_method_does_not_continue_a_run(images, tmp_path, capsys):
    assert run(images, tmp_path, "--init-only") == 0
    options = ["--preset", "mae_demo", *TINY[2:]]
    assert train.main(["--data", str(images), "--out", str(tmp_path), *options]) == 2
    assert "holds a run with another method" in capsys.readouterr().err


def test_help_lists_every_setting_of_every_method(capsys):
    with pytest.raises(SystemExit):
        train.main(["--help"])
    text = capsys.readouterr().out
    for preset in ("paper", "mae_paper"):
        for name, value in presets()[preset].to_json().items():
            assert f"  {name} = {json.dumps(value)}\n" in text


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


@pytest.mark.parametrize("where", ["in the loop", "in a loading process"])
def test_a_run_that_fails_leaves_no_loading_process(where, tmp_path, monkeypatch):
    """Python waits for them at its exit, and they do not hear its SIGTERM."""
    images, whole = write_images(tmp_path / "images", 8), loader.Draws.__getitem__

    def fails(self: loader.Draws, drawn: tuple[int, list[int]]) -> loader.Loaded:
        if get_worker_info():
            raise DataError("nothing can be read any more")
        return whole(self, drawn)

    if where == "in the loop":  # too many cannot be read
        for path in sorted(images.rglob("*.png"))[1:]:
            path.write_bytes(b"no image")
    else:
        monkeypatch.setattr(loader.Draws, "__getitem__", fails)
    gc.disable()  # which might find and end them by chance
    try:
        assert run(images, tmp_path / "out", "--workers", "1") == 2
        assert not multiprocessing.active_children()
    finally:
        gc.enable()


def test_another_config_does_not_continue_a_run(images, tmp_path, capsys):
    assert run(images, tmp_path) == 0
    assert run(images, tmp_path, "--set", "base_lr=0.1") == 2
    assert "another base_lr" in capsys.readouterr().err


def test_a_run_goes_on_under_a_setting_younger_than_itself(images, unbroken, tmp_path, monkeypatch, capsys):
    everything = train.PretrainConfig.to_json
    for young, status in (("num_views", 0), ("momentum", 2)):  # the demo has another momentum than the default
        monkeypatch.setattr(
            train.PretrainConfig,
            "to_json",
            lambda config, young=young: {k: v for k, v in everything(config).items() if k != young},
        )
        assert run(images, tmp_path / young, "--init-only") == 0
        monkeypatch.undo()
        assert run(images, tmp_path / young) == status
    assert same(weights(tmp_path / "num_views"), unbroken)
    assert "another momentum" in capsys.readouterr().err


def test_schedule():
    config = replace(DEMO, epochs=10, warmup_epochs=2.0)
    assert [train.learning_rate(e, config) / config.lr for e in (0, 1, 2, 6, 10)] == pytest.approx(
        [0, 0.5, 1, 0.5, 0], abs=1e-12
    )


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
    assert f"{option}: must be {says}" in capsys.readouterr().err
