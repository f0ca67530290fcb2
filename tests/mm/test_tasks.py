"""Both tasks train and evaluate for real, if briefly; the same seed gives the same numbers."""

import dataclasses
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from evaluate import detection, segmentation
from evaluate.encoder.model import Encoder
from evaluate.harness.task import main
from evaluate.runtime import training_state
from evaluate.runtime.env import Env
from evaluate.runtime.errors import Skip, UserError
from evaluate.runtime.settings import override
from results import marks
from tests.factories import mae_state, tiny_encoder, tiny_pyramid, tiny_resnet


def run(module, encoder: Encoder, world: Path, folder: Path, **changes) -> tuple[dict, Env]:
    folder.mkdir(parents=True, exist_ok=True)
    env = Env(
        world, folder, seed=changes.pop("seed", 0), workers=changes.pop("workers", 0), limit=changes.pop("limit", None)
    )
    metrics = module.run(encoder, dataclasses.replace(module.PRESETS["demo"], **changes), env)
    return metrics, env


@pytest.mark.parametrize("dataset", ["coco", "lvis"])
def test_detection(
    dataset: str, encoder: Encoder, world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    metrics, env = run(detection, encoder, world, tmp_path / "a", dataset=dataset, iterations=6, limit=6)
    expected = {"box_ap", "mask_ap", "box_ap50", "mask_ap50", "box_ap75", "mask_ap75"}
    if dataset == "lvis":
        expected |= {f"{name}_{group}" for name in ("box_ap", "mask_ap") for group in ("rare", "common", "frequent")}
    assert set(metrics) <= expected and {"box_ap", "mask_ap"} <= set(metrics)
    assert all(0 <= value <= 100 for value in metrics.values())
    assert env.notes["images_asked"] == env.notes["images_evaluated"] == {dataset: 6}
    drawn = env.notes["resamples"]
    assert {"box_ap", "mask_ap"} <= set(drawn) <= set(metrics) and {len(values) for values in drawn.values()} == {200}
    assert env.notes["standard_error"] == {
        name: pytest.approx(np.std(values, ddof=1)) for name, values in drawn.items()
    }
    assert env.notes["protocol"]["framework"] == "mmdet"
    assert capsys.readouterr().out == "" and (tmp_path / "a" / f"{dataset}.log").stat().st_size > 1000


def test_segmentation_is_repeatable(encoder: Encoder, world: Path, tmp_path: Path) -> None:
    """Also with loading processes, and whatever an earlier run has left in its folder."""
    first, env = run(segmentation, encoder, world, tmp_path / "a", iterations=3)
    training_state.clear(tmp_path / "a")  # as the harness does; otherwise the second would only test
    again, _ = run(segmentation, encoder, world, tmp_path / "a", iterations=3, workers=1)
    other, _ = run(segmentation, encoder, world, tmp_path / "b", iterations=3, seed=1, micro_batch=2)
    assert first == again != other
    assert set(first) == set(env.notes["resamples"]) == set(env.notes["standard_error"]) == {"miou", "aacc"}
    assert env.notes["images_evaluated"] == {"ade20k": 8}


@pytest.mark.parametrize("module", [detection, segmentation], ids=["coco", "ade20k"])
@pytest.mark.parametrize("make", [tiny_resnet, tiny_pyramid], ids=["resnet", "pyramid"])
def test_maps_at_four_strides(make: Callable[[], Encoder], module, world: Path, tmp_path: Path) -> None:
    metrics, _ = run(module, make(), world, tmp_path, iterations=3, limit=4)
    assert all(0 <= value <= 100 for value in metrics.values())


@pytest.mark.parametrize("module", [detection, segmentation], ids=["coco", "ade20k"])
def test_an_encoder_without_maps_is_skipped(module, world: Path, tmp_path: Path) -> None:
    encoder = tiny_pyramid()
    encoder.spec = dataclasses.replace(encoder.spec, maps=())
    with pytest.raises(Skip, match="the encoder test_convnext gives no maps at strides 4, 8, 16 and 32"):
        run(module, encoder, world, tmp_path)


@pytest.mark.parametrize("module", [detection, segmentation], ids=["coco", "ade20k"])
def test_patches_of_14_px_and_registers(module, world: Path, tmp_path: Path) -> None:
    """The record says what the published protocol does not have, and the cell carries it as a mark."""
    encoder = tiny_encoder(patch_size=14, img_size=56, registers=2)
    metrics, env = run(module, encoder, world, tmp_path, iterations=2, limit=4)
    assert all(0 <= value <= 100 for value in metrics.values())
    protocol, side = env.notes["protocol"], 96 if module is detection else 64
    padded = {96: 112, 64: 84}[side]
    assert (protocol["padded_to"], protocol["registers"]) == (padded, 2)
    (mark,) = marks.differences({"task": "a task", "protocol": protocol, "toy_data": True}, "miou")
    assert f"pictures padded to {padded} px, a multiple of two patches of 14 px; paper: as they are" in mark
    assert ("every window sees" in mark) == (module is detection)
    if module is detection:
        assert protocol["strides"] == [3.5, 7, 14, 28]


def test_detection_takes_beit(world: Path, tmp_path: Path) -> None:
    beit = tiny_encoder(rel_pos_bias=True, layer_scale=True, pos_embed=False, final_norm=False)
    metrics, _ = run(detection, beit, world, tmp_path, iterations=2, limit=2)
    assert all(0 <= value <= 100 for value in metrics.values())


def test_a_loss_that_is_no_number_ends_the_training(encoder: Encoder, world: Path, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="not finite"):
        run(segmentation, encoder, world, tmp_path, iterations=8, lr=1e12)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_picture_is_one_sentence(encoder: Encoder, world: Path, tmp_path: Path, workers: int) -> None:
    root = tmp_path / "world"
    shutil.copytree(world / "coco", root / "coco")
    picture = sorted((root / "coco/train2017").iterdir())[0]
    picture.write_bytes(picture.read_bytes()[:-400])  # its header, which is looked at before, is whole
    with pytest.raises(UserError) as raised:
        run(detection, encoder, root, tmp_path / "out", iterations=5, limit=1, workers=workers)
    assert f"the image {picture} named by" in str(raised.value) and "\n" not in str(raised.value)


def test_absent_data_and_packages_are_skipped(
    encoder: Encoder, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save({"model": mae_state()}, tmp_path / "mae.pth")
    command = [
        "--ckpt",
        str(tmp_path / "mae.pth"),
        "--data-root",
        str(tmp_path),
        "--out",
        str(tmp_path / "a"),
        "--set",
        "dataset=lvis",
    ]
    assert main("detection", command) == 3
    (record,) = (json.loads(path.read_text()) for path in (tmp_path / "a/records").glob("*.json"))
    assert record["status"] == "skipped" and "lvis" in record["reason"]
    monkeypatch.setitem(sys.modules, "mmcv.ops", None)
    with pytest.raises(Skip, match="uv sync"):
        run(segmentation, encoder, world, tmp_path / "b")


def test_contradictions_are_refused() -> None:
    with pytest.raises(UserError, match="coco, lvis, voc, not 'openimages'"):
        override(detection.PRESETS["paper"], {"dataset": "openimages"})
    with pytest.raises(UserError, match="'iterations' is a whole number above 0"):
        override(segmentation.PRESETS["paper"], {"iterations": "0"})
