"""A run takes about the minutes that it was given, and keeps its epochs when it is started again."""

import json
import re
import time
from dataclasses import replace
from pathlib import Path

import pytest

from pretrain import budget, train
from pretrain.methods import mae
from tests.pretrain.runs import write_images


def test_the_minutes_are_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images, out = write_images(tmp_path / "images"), tmp_path / "out"
    command = ["--data", str(images), "--out", str(out), "--preset", "mae_demo", "--device", "cpu"]
    command += ["--monitor-epochs", "0", "--set", "batch_size=8", "--set", "warmup_epochs=2", "--minutes", "0.1"]
    begun = time.monotonic()
    assert train.main(command) == 0
    assert time.monotonic() - begun < 60, "six seconds of training, and the start"
    said = re.search(r"pretrain: (\d+) epochs fit into 0.1 minutes", capsys.readouterr().out)
    config = json.loads((out / "config.json").read_text())
    assert said and config["epochs"] == int(said.group(1)) > 5
    assert config["warmup_epochs"] == pytest.approx(2 * config["epochs"] / 16), "the warm-up keeps its share"
    assert train.main(command[:-1] + ["5"]) == 0, "a run that stands keeps its epochs"
    assert json.loads((out / "config.json").read_text()) == config


def test_steps_are_timed_on_the_images_that_the_run_will_read(tmp_path: Path) -> None:
    config = replace(mae.DEMO, batch_size=8, cache_pixels=True)
    images, out = write_images(tmp_path / "images"), tmp_path / "out"
    budget.fit(config, 1, images, out, "cpu", 0, 8)
    assert {path.suffix for path in (out / "pixels").iterdir()} == {".bin", ".npz"}


@pytest.mark.parametrize("options", [["--minutes", "0"], ["--minutes", "nan"], ["--minutes", "1", "--set", "epochs=3"]])
def test_minutes_that_make_no_sense(tmp_path: Path, options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        train.main(["--data", str(tmp_path), "--out", str(tmp_path / "out"), *options])
    assert ended.value.code == 2 and "--minutes" in capsys.readouterr().err
