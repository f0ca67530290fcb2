"""A quick look at a checkpoint: which tasks, on how many images, and what its numbers tell."""

import json
from pathlib import Path

import pytest
import torch

import run_all
from evaluate.checkpoints import formats
from evaluate.harness import estimate, options, quick
from evaluate.harness.cost import VIT_B
from evaluate.runtime.errors import UserError
from tests.checkpoints.tiny_files import checkpoint_of
from tests.worlds import write_world


def arguments(out: Path, *more: str):
    root = write_world(out / "data") if not (out / "data").exists() else out / "data"
    return options.parse(["--ckpt", "x.pth", "--data-root", str(root), "--out", str(out / "out"), "--quick", *more], "")


def test_on_a_gpu_it_is_an_hour_of_all_images(tmp_path: Path) -> None:
    own = arguments(tmp_path)
    said = quick.fill_in(own, 8, {"x": None})
    assert (own.tasks, own.budget, own.limit) == ("knn,few_shot,linear_fast", "1h", None)
    assert "all images, for 1h of a GPU" in said


def test_on_a_cpu_it_is_as_many_images_as_half_an_hour_pays_for(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(estimate, "_count", lambda root, part: estimate.PUBLISHED[part])
    own = arguments(tmp_path)
    speed = estimate.Speed(1000.0, 300.0, 10.0, False, "measured")
    own.out.mkdir()
    estimate.keep(speed, own.out)
    said = quick.fill_in(own, 0, {"x": VIT_B})
    # a ViT-B's pass has 35 GFLOP: 0.035 s an image. kNN and LIN fast read train and val each, 1 % its list and val:
    # about five times the limit, so 1,800 s less three starts pay for a limit of 10,000
    assert own.limit == 10_000 and own.budget is None and "10,000 images of each set" in said
    assert json.loads((own.out / quick.FILE).read_text()) == {"limit": 10_000}
    two = arguments(tmp_path, "--dry-run")
    two.out = tmp_path / "two"
    two.out.mkdir()
    estimate.keep(speed, two.out)
    quick.fill_in(two, 0, {"x": VIT_B, "y": VIT_B})
    assert two.limit == 2_000 and not (two.out / quick.FILE).exists(), "5,000 of two rows take 1,814 s"


def test_rows_that_come_later_are_measured_on_the_same_images(tmp_path: Path) -> None:
    own = arguments(tmp_path)
    own.out.mkdir()
    (own.out / quick.FILE).write_text(json.dumps({"limit": 77}))
    quick.fill_in(own, 0, {"x": None})
    assert own.limit == 77
    other = arguments(tmp_path, "--budget", "1h")
    quick.fill_in(other, 0, {"x": None})
    assert other.limit is None, "another budget asks for another number of images; an hour pays for all of this world"
    (own.out / quick.FILE).write_text(json.dumps({"limit": 77}))
    (own.out / quick.FILE).write_text('{"limit": "many"}')
    again = arguments(tmp_path)
    quick.fill_in(again, 0, {"x": None})
    assert again.limit is None, "all images of this small world cost minutes; the damaged file is no limit"


def test_what_the_user_says_is_kept(tmp_path: Path) -> None:
    own = arguments(tmp_path, "--limit", "40", "--tasks", "knn")
    quick.fill_in(own, 0, {"x": None})
    assert (own.tasks, own.limit, own.budget, own.set) == ("knn", 40, "30m", [])
    few = arguments(tmp_path, "--limit", "40")
    quick.fill_in(few, 0, {"x": None})
    assert few.set == ["linear_fast.preset=small_set"], "a batch of 16,384 would be one step an epoch"
    few = arguments(tmp_path, "--limit", "40", "--set", "linear_fast.preset=paper")
    quick.fill_in(few, 0, {"x": None})
    assert few.set == ["linear_fast.preset=paper"]
    own = arguments(tmp_path, "--budget", "2h")
    quick.fill_in(own, 1, {"x": None})
    assert own.budget == "2h"


@pytest.mark.parametrize(
    ("options", "says"), [(("--sets", "cifar10"), "without it"), (("--probe",), "first --dry-run")]
)
def test_what_does_not_go_with_it(tmp_path: Path, options: tuple[str, ...], says: str) -> None:
    with pytest.raises(UserError, match=says):
        quick.fill_in(arguments(tmp_path, *options), 0, {"x": None})


def test_it_looks_at_a_checkpoint(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match="goes with --ckpt"):
        quick.fill_in(options.parse(["--quick"], ""), 0, {})
    assert run_all.main(["--quick"]) == 2 and "goes with --ckpt" in capsys.readouterr().err


def test_the_advice_is_of_the_published_pretrainings() -> None:
    assert "LIN ranks as FT" in quick.advice({"ViT-B/16", "ViT (width 48, depth 3, 3 heads)/8"})
    assert quick.advice({"ViT-S/16"}) == ""


def test_a_quick_look_from_the_file_to_the_advice(tmp_path: Path, monkeypatch, capsys) -> None:
    torch.save(checkpoint_of(next(known for known in formats.FORMATS if known.name == "simsiam")), tmp_path / "x.pth")
    root = write_world(tmp_path / "data")
    command = ["--ckpt", f"mine={tmp_path / 'x.pth'}", "--data-root", str(root), "--out", str(tmp_path / "out")]
    sizes = [f"{task}.{name}" for task in ("knn", "few_shot", "linear_probe") for name in ("img_size=32", "resize=36")]
    command += [part for size in sizes for part in ("--set", size)]
    monkeypatch.setattr(quick, "advice", lambda architectures: f"told of {architectures}")
    assert run_all.main([*command, "--quick", "--device", "cpu"]) == 0
    said = capsys.readouterr().out
    assert "--quick: knn, few_shot, linear_fast on all images, for 30m of a core" in said
    row = next(line for line in said.splitlines() if line.startswith("| mine"))
    assert sum(cell.strip()[:1].isdigit() for cell in row.split("|")) == 3
    assert said.rstrip().endswith("told of {'ResNet-(bottleneck, 1-1-1-1) (cardinality 1, base width 8)'}")
