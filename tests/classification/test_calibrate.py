"""Calibration: a fine-tuned checkpoint in the official layout gives what it gave, and a changed one, or other pixels,
do not.
"""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from evaluate import calibrate, finetune
from evaluate.classification import classifier
from tests.factories import environment, vit
from tests.worlds import write_world

SIZE = ["--img-size", "32", "--resize", "32", "--device", "cpu"]


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, float]:
    """The data, a checkpoint that our own fine-tuning made in the official layout, and its top-1."""
    root = write_world(tmp_path_factory.mktemp("data"))
    env = environment(root, tmp_path_factory.mktemp("out"), "finetune")
    config = replace(finetune.PRESETS["demo"], epochs=12, warmup_epochs=2, batch_size=16, micro_batch=16, base_lr=0.03)
    top1 = finetune.run(vit(), config, env)["top1"]
    model = classifier.load(env.out_dir / "classifier.safetensors", vit())[0]
    path = env.out_dir / "mae_finetuned_vit_base.pth"
    said = {"num_heads": 2, "mean": [0.5] * 3, "std": [0.25] * 3}
    torch.save(
        {"model": {name: value.detach() for name, value in model.named_timm_parameters()}, "epoch": 99, "config": said},
        path,
    )
    return root, path, top1


def run(released: tuple[Path, Path, float], *options: str, ckpt: Path | None = None) -> int:
    return calibrate.main(["--ckpt", str(ckpt or released[1]), "--data-root", str(released[0]), *SIZE, *options])


def test_the_same_weights_on_the_same_data_are_reproduced(
    released: tuple[Path, Path, float], capsys: pytest.CaptureFixture[str]
) -> None:
    top1 = released[2]
    assert run(released, "--expected", str(top1)) == 0
    text = capsys.readouterr().out
    assert text.startswith("REPRODUCED") and f"top-1 {top1:.3f} on 60 images" in text
    assert run(released, "--expected", str(top1 - 0.1)) == 0, "the tolerance is 0.1 points"
    assert run(released, "--expected", str(top1 - 0.2)) == 1
    capsys.readouterr()
    assert run(released, "--expected", str(top1), "--json") == 0
    assert json.loads(capsys.readouterr().out)["measured"] == pytest.approx(top1)


def test_the_expected_number_goes_by_the_name(
    released: tuple[Path, Path, float], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(released) == 1
    assert "expected 83.664" in capsys.readouterr().out


def test_other_weights_and_other_pixels_are_not_reproduced(
    released: tuple[Path, Path, float], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, path, top1 = released
    assert run(released, "--expected", str(top1), "--resize", "64") == 1
    content = torch.load(path, weights_only=True)
    content["model"]["head.weight"] = content["model"]["head.weight"].roll(1, dims=0)
    content["model"]["head.bias"] = content["model"]["head.bias"].roll(1, dims=0)
    wrong = tmp_path / "shifted.pth"
    torch.save(content, wrong)
    capsys.readouterr()
    assert run(released, "--expected", str(top1), ckpt=wrong) == 1
    assert capsys.readouterr().out.startswith("NOT REPRODUCED")


def test_a_part_of_val_widens_the_tolerance_and_says_so(
    released: tuple[Path, Path, float], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(released, "--expected", str(released[2]), "--limit", "20") == 0
    assert "only a part of val" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda model: model.pop("head.weight"), "lacks fc_norm or head"),
        (lambda model: model.update({"head.bias": torch.zeros(7)}), r"head.bias has shape (7,), expected (4,)"),
        (
            lambda model: model.update({"head.weight": torch.zeros(9, 24), "head.bias": torch.zeros(9)}),
            "has 9 classes, but imagenet/train has",
        ),
    ],
)
def test_files_that_are_refused(
    change, says: str, released: tuple[Path, Path, float], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = torch.load(released[1], weights_only=True)
    change(content["model"])
    torch.save(content, tmp_path / "other.pth")
    assert run(released, "--expected", "80", ckpt=tmp_path / "other.pth") == 2
    error = capsys.readouterr().err
    assert says in error and error.count("\n") == 1


def test_an_unknown_name_needs_the_expected_number(
    released: tuple[Path, Path, float], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(released, ckpt=tmp_path / "mine.pth") == 2
    assert "--expected" in capsys.readouterr().err
    assert run(released, "--expected", "80", ckpt=tmp_path / "mine.pth") == 2
    assert "does not exist" in capsys.readouterr().err
    assert calibrate.main(["--ckpt", str(released[1]), "--data-root", str(tmp_path)]) == 3
