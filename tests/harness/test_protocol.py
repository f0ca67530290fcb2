"""What records say beside their numbers, from whole runs of tasks, so that tables mark the right cells only."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from evaluate import finetune, knn, linear_probe
from evaluate.classification import classifier
from evaluate.data import published_counts
from evaluate.harness import estimate, plan, protocol, task
from evaluate.runtime.errors import UserError
from evaluate.runtime.settings import as_json
from results import marks
from tests.factories import mae_state, save_classifier
from tests.worlds import write_world

SHORT = {"epochs": "2", "warmup_epochs": "1", "batch_size": "32", "micro_batch": "32"}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_world(tmp_path_factory.mktemp("world"), train=12, val=6)


@pytest.fixture(scope="module")
def out(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Records of a short fine-tuning, and of what is measured on its classifier."""
    folder = tmp_path_factory.mktemp("out")
    torch.save({"model": mae_state()}, folder / "mine.pth")
    assert measure(folder, world, "finetune", **SHORT) == 0
    path = next(folder.glob("mine/finetune-*/classifier.safetensors"))
    assert measure(folder, world, "robustness", "--input", f"classifier={path}") == 0
    return folder


def measure(folder: Path, world: Path, name: str, *options: str, **settings: str) -> int:
    common = [
        "--ckpt",
        str(folder / "mine.pth"),
        "--data-root",
        str(world),
        "--out",
        str(folder),
        "--preset",
        "demo",
        "--device",
        "cpu",
    ]
    return task.main(
        name, [*common, *(part for item in settings.items() for part in ("--set", "=".join(item))), *options]
    )


def record_of(folder: Path, node: str) -> dict[str, Any]:
    (path,) = (folder / "records").glob(f"mine-{node}-*.json")
    return json.loads(path.read_text())


def test_robustness_rests_on_the_fine_tuning_and_carries_its_marks(out: Path) -> None:
    tuned, robust = record_of(out, "finetune"), record_of(out, "robustness")
    made = robust["rests_on"]["finetune"]
    for field in ("config", "paper_config", "limit", "seed", "toy_data"):
        assert made[field] == tuned[field], field
    assert made["node"] == "finetune" and made["images_evaluated"] == {"train": 48}
    assert made["immaterial"] == tuned["immaterial"][""]
    assert made["subset"] == {"train": tuned["subset"]["train"]}
    own = marks.differences(tuned, "top1")
    for metric in ("imagenet_a_top1", "imagenet_r_top1", "imagenet_sketch_top1", "imagenet_c"):
        assert own[0] in marks.differences(robust, metric), metric
    assert own[0].startswith("finetune: img_size 32; paper: 224") and "epochs 2; paper: 100" in own[0]
    assert not any(
        text.startswith("robustness: ") and "paper:" in text for text in marks.differences(robust, "imagenet_c")
    )


def test_the_same_classifier_is_written_again_byte_by_byte(out: Path, world: Path, tmp_path: Path) -> None:
    torch.save({"model": mae_state()}, tmp_path / "mine.pth")
    assert measure(tmp_path, world, "finetune", **SHORT) == 0
    first, second = (next(folder.glob("mine/finetune-*/classifier.safetensors")) for folder in (out, tmp_path))
    assert first.read_bytes() == second.read_bytes(), "a time or a path went into it, and a record's key with it"


def test_a_classifier_may_not_say_how_it_was_made(tmp_path: Path) -> None:
    path = tmp_path / "classifier.safetensors"
    save_classifier(path)
    assert classifier.how_made(path) == {}
    for content in (b"", path.read_bytes()[:50], b'\x10\0\0\0\0\0\0\0{"a": 1}       '):
        path.write_bytes(content)
        with pytest.raises(UserError, match="is not a classifier"):
            classifier.how_made(path)


def test_every_set_is_counted_and_held_against_the_published(out: Path) -> None:
    robust = record_of(out, "robustness")
    assert robust["sizes"]["imagenet_c"] == {"images": 300, "classes": 4} and robust["sizes"]["val"] == {
        "images": 24,
        "classes": 4,
    }
    assert robust["subset"]["imagenet_a"] == "imagenet_a has 6 images; published: 7,500 · 2 classes; published: 200"
    assert set(robust["subset"]) == {"val", "imagenet_a", "imagenet_r", "imagenet_sketch", "imagenet_c"}
    for name, (images, classes) in published_counts.PUBLISHED.items():
        assert published_counts.differences({name: {"images": images, "classes": classes}}) == {}
        assert f"{name} has {images - 1:,} images; published: {images:,}" in str(
            published_counts.differences({name: {"images": images - 1, "classes": classes}})
        )
        assert "classes; published" in str(
            published_counts.differences({name: {"images": images, "classes": classes - 1}})
        )


def test_a_limit_does_not_change_what_a_set_has(out: Path, world: Path, tmp_path: Path) -> None:
    torch.save({"model": mae_state()}, tmp_path / "mine.pth")
    for name in ("knn", "few_shot", "sweep"):
        settings = (
            {"epochs": "1", "batch_size": "16", "micro_batch": "16", "held_out": "0.3"} if name == "sweep" else {}
        )
        assert measure(tmp_path, world, name, "--limit", "20", **settings) == 0
        entry = record_of(tmp_path, name)
        assert entry["sizes"]["val"] == {"images": 24, "classes": 4}
        assert entry["sizes"]["1percent" if name == "few_shot" else "train"]["images"] == (
            24 if name == "few_shot" else 48
        )


def completed(module: Any, node: str, told: list[str], resolved: str = "fp32", **settings: Any) -> list[str]:
    """The marks of a full measurement with these settings."""
    paper = plan.paper_config(next(known for known in plan.NODES if known.name == node))
    entry = {
        "task": node,
        "config": as_json(replace(paper, **settings)),
        "paper_config": as_json(paper),
        "limit": None,
        "sizes": {},
        "protocol": {"precision": resolved},
        "immaterial": {"": told},
    }
    protocol.complete(entry)
    return marks.differences(entry, "top1")


@pytest.mark.parametrize(
    ("module", "node", "settings", "resolved", "marked"),
    [
        (finetune, "finetune", {"precision": "fp32"}, "fp32", False),
        (finetune, "finetune", {"precision": "fp16"}, "fp16", False),
        (finetune, "finetune", {"precision": "bf16"}, "bf16", True),
        (knn, "knn", {"precision": "auto"}, "fp32", False),
        (knn, "knn", {"precision": "auto"}, "fp16", True),
        (knn, "knn", {"precision": "fp16"}, "fp16", True),
        (knn, "knn", {"max_unreadable_images": 7}, "fp32", False),
        (linear_probe, "linear_probe", {"max_unreadable_images": 7, "precision": "fp16"}, "fp16", False),
        (linear_probe, "linear_probe", {"epochs": 50}, "fp16", True),
    ],
)
def test_the_precision_that_a_protocol_allows_is_no_other(
    module: Any, node: str, settings: dict, resolved: str, marked: bool
) -> None:
    assert bool(completed(module, node, [], resolved, **settings)) == marked


@pytest.mark.parametrize(
    ("name", "settings", "immaterial"),
    [
        ("finetune", {**SHORT, "micro_batch": "8"}, True),  # the demo mixes nothing, and a ViT has no BatchNorm
        ("finetune", {**SHORT, "micro_batch": "8", "mixup": "0.8"}, False),
        ("finetune", {**SHORT, "micro_batch": "8", "cutmix": "1.0"}, False),
        (
            "finetune",
            {**SHORT, "micro_batch": "64", "mixup": "0.8"},
            True,
        ),  # a step of 32 images is cut as little as with the paper's 128
        ("linear_probe", {**SHORT, "micro_batch": "8"}, False),
        ("linear_probe", {**SHORT, "micro_batch": "8", "batch_norm": "false"}, True),
        ("sweep", {"epochs": "1", "batch_size": "32", "micro_batch": "8"}, True),
    ],
)
def test_micro_batches_matter_to_batch_norm_and_mixup_alone(
    name: str, settings: dict, immaterial: bool, world: Path, tmp_path: Path
) -> None:
    torch.save({"model": mae_state()}, tmp_path / "mine.pth")
    assert measure(tmp_path, world, name, **settings) == 0
    entry = record_of(tmp_path, name)
    assert ("micro_batch" in entry["immaterial"][""]) == immaterial
    assert any("micro_batch" in text for text in marks.differences(entry, "top1")) != immaterial


def test_what_is_measured_beside_a_column_does_not_mark_it(world: Path, tmp_path: Path) -> None:
    torch.save({"model": mae_state()}, tmp_path / "mine.pth")
    assert measure(tmp_path, world, "knn", neighbors="[20, 5]") == 0
    assert measure(tmp_path, world, "few_shot", max_iterations="5000") == 0
    for name in ("knn", "few_shot"):
        assert not any(
            "neighbors" in text or "max_iterations" in text
            for text in marks.differences(record_of(tmp_path, name), "top1")
        )


def test_a_record_has_the_estimate_and_the_memory_of_its_task(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save({"model": mae_state()}, tmp_path / "mine.pth")
    measured = estimate.Speed(80.0, 24.0, 4.0, False, "measured")
    estimate.keep(measured, tmp_path)
    assert measure(tmp_path, world, "knn") == 0
    entry = record_of(tmp_path, "knn")
    images = 4 * (12 + 6)  # of four classes in train and val; at 24 a second slower than the operations
    assert entry["estimate"]["seconds"] == pytest.approx(4 + images / 24, abs=0.1)
    assert entry["estimate"]["source"] == "measured" and 0.7 * 2**30 <= entry["estimate"]["memory"] < 2**31
    assert 2**27 < entry["memory"]["process"] < 2**36 and "gpu" not in entry["memory"]
    monkeypatch.setattr(knn, "cost", lambda *_: 1 / 0)
    assert measure(tmp_path, world, "knn", "--seed", "1") == 0  # a number is not lost for want of an estimate
    fields = [json.loads(path.read_text()) for path in (tmp_path / "records").glob("mine-knn-*.json")]
    assert sorted(len(one["estimate"]) for one in fields) == [0, 3]
