"""Bad input of the dense tasks, through the tasks: a sentence that names the file, or what COCO's own tools do."""

import contextlib
import copy
import dataclasses
import functools
import io
import json
import shutil
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as rle
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from evaluate import detection, segmentation
from evaluate.encoder.model import Encoder
from evaluate.harness.task import main
from evaluate.mm.detections import Detections
from evaluate.mm.metrics import average_precision
from evaluate.runtime import shared_memory
from evaluate.runtime.env import Env
from evaluate.runtime.errors import UserError
from tests.factories import mae_state

COCO_FILES = {split: f"coco/annotations/instances_{split}2017.json" for split in ("train", "val")}
LVIS_FILES = {split: f"lvis/lvis_v1_{split}.json" for split in ("train", "val")}


def changed(world: Path, root: Path, file: str, change: Callable[[dict[str, Any]], None]) -> Path:
    """A copy of the dense world whose file ``file`` was changed; pictures are links."""
    (root / "coco").mkdir(parents=True)
    shutil.copytree(world / "lvis", root / "lvis")
    shutil.copytree(world / "coco/annotations", root / "coco/annotations")
    for split in ("train2017", "val2017"):
        (root / "coco" / split).symlink_to(world / "coco" / split)
    content = json.loads((root / file).read_text())
    change(content)
    (root / file).write_text(json.dumps(content))
    return root


def detect(encoder: Encoder, root: Path, out: Path, **changes: Any) -> tuple[dict[str, float], Env]:
    out.mkdir(parents=True, exist_ok=True)
    env = Env(root, out, limit=changes.pop("limit", None), workers=changes.pop("workers", 0))
    return detection.run(
        encoder, dataclasses.replace(detection.PRESETS["demo"], **{"iterations": 2, **changes}), env
    ), env


def unlist_image(content: dict[str, Any]) -> None:
    gone = content["annotations"][0]["image_id"]
    content["images"] = [image for image in content["images"] if image["id"] != gone]


def out_of_range(content: dict[str, Any]) -> None:
    content["annotations"][3]["category_id"] = 9999


def without_box(content: dict[str, Any]) -> None:
    del content["annotations"][2]["bbox"]


def without_outline(content: dict[str, Any]) -> None:
    del content["annotations"][2]["segmentation"]


def two_points(content: dict[str, Any]) -> None:
    content["annotations"][1]["segmentation"] = [[10.0, 10.0, 20.0, 20.0]]


def crowds_only(content: dict[str, Any]) -> None:
    for annotation in content["annotations"]:
        annotation["iscrowd"] = 1


def nothing(content: dict[str, Any]) -> None:
    content["annotations"] = []


SENTENCES = {
    "an annotation's image is missing": (unlist_image, "which the file does not list"),
    "a category out of range": (out_of_range, "category 9999, which the file does not list"),
    "no box": (without_box, "has no bbox"),
    "no outline": (without_outline, "has no segmentation"),
    "two points": (two_points, "annotation 2 has an outline of fewer than three points"),
    "crowds only": (crowds_only, "no image with an object that can be"),
    "no objects at all": (nothing, "no image with an object that can be"),
}


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize(("change", "sentence"), SENTENCES.values(), ids=SENTENCES)
@pytest.mark.parametrize("dataset", ["coco", "lvis"])
def test_a_sentence_names_the_file(
    dataset: str, change: Any, sentence: str, split: str, encoder: Encoder, world: Path, tmp_path: Path
) -> None:
    if change is two_points and split == "train":
        pytest.skip("left out of the training, see below")
    file = (COCO_FILES if dataset == "coco" else LVIS_FILES)[split]
    root = changed(world, tmp_path / "world", file, change)
    with pytest.raises(UserError) as raised:
        detect(encoder, root, tmp_path / "out", dataset=dataset)
    assert str(root / file) in str(raised.value) and sentence in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_picture_that_is_missing(split: str, encoder: Encoder, world: Path, tmp_path: Path) -> None:
    def rename(content: dict[str, Any]) -> None:
        content["images"][0]["file_name"] = "gone.jpg"

    root = changed(world, tmp_path / "world", COCO_FILES[split], rename)
    with pytest.raises(UserError) as raised:
        detect(encoder, root, tmp_path / "out", limit=1)
    assert "lists 1 pictures that are not there" in str(raised.value) and f"{split}2017/gone.jpg" in str(raised.value)
    assert COCO_FILES[split] in str(raised.value) and "\n" not in str(raised.value)


def test_the_command_says_one_sentence(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = changed(world, tmp_path / "world", COCO_FILES["train"], out_of_range)
    torch.save({"model": mae_state()}, tmp_path / "mae.pth")
    arguments = [
        "--ckpt",
        str(tmp_path / "mae.pth"),
        "--data-root",
        str(root),
        "--out",
        str(tmp_path / "out"),
        "--preset",
        "demo",
    ]
    assert main("detection", arguments) == 2
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("evaluate.detection")]
    assert len(told) == 1 and COCO_FILES["train"] in told[0] and "9999" in told[0]
    (record,) = (tmp_path / "out/records").glob("*.json")
    assert json.loads(record.read_text())["status"] == "failed"


def oddities(content: dict[str, Any], two_points_more: bool) -> None:
    """Six images: crowds only, no objects, a box of one pixel, two points, run lengths beside polygons, a usual one.

    The two points are a whole outline, or follow a whole one where there are ``two_points_more``.
    """
    content["images"] = content["images"][:6]
    crowd, bare, tiny, two, mixed, plain = (image["id"] for image in content["images"])
    owned = {
        image: [a for a in content["annotations"] if a["image_id"] == image]
        for image in (crowd, bare, tiny, two, mixed, plain)
    }
    for annotation in owned[crowd]:
        annotation["iscrowd"] = 1
    owned[bare] = []
    x, y = 20.0, 30.0
    owned[tiny][0].update(bbox=[x, y, 1.0, 1.0], area=1.0, segmentation=[[x, y, x + 1, y, x + 1, y + 1, x, y + 1]])
    owned[two] = owned[two][:1]
    owned[two][0]["segmentation"] = owned[two][0]["segmentation"] * two_points_more + [[10.0, 10.0, 20.0, 20.0]]
    sizes = {image["id"]: (image["height"], image["width"]) for image in content["images"]}
    encoded = rle.merge(rle.frPyObjects(owned[mixed][0]["segmentation"], *sizes[mixed]))
    owned[mixed][0].update(segmentation={"size": encoded["size"], "counts": encoded["counts"].decode()})
    content["annotations"] = [annotation for annotations in owned.values() for annotation in annotations]


def test_odd_objects_are_trained_and_scored(encoder: Encoder, world: Path, tmp_path: Path) -> None:
    """Training leaves out images without anything to learn; all images are scored."""
    root = changed(world, tmp_path / "world", COCO_FILES["train"], functools.partial(oddities, two_points_more=False))
    content = json.loads((root / COCO_FILES["val"]).read_text())
    oddities(content, True)
    (root / COCO_FILES["val"]).write_text(json.dumps(content))
    metrics, env = detect(encoder, root, tmp_path / "out", iterations=3)
    assert env.notes["images_evaluated"] == {"coco": 6}
    assert {"box_ap", "mask_ap"} <= set(metrics) and all(0 <= value <= 100 for value in metrics.values())


def test_odd_objects_are_scored_as_cocos_own_tools_do(world: Path) -> None:
    """Detections where the truth is, some moved, beside pycocotools on the same file."""
    truth = json.loads((world / COCO_FILES["val"]).read_text())
    oddities(truth, True)
    with contextlib.redirect_stdout(io.StringIO()):
        theirs = COCO()
        theirs.dataset = copy.deepcopy(truth)
        theirs.createIndex()
        found = []
        for number, annotation in enumerate(truth["annotations"]):
            mask = theirs.annToMask(annotation)
            box = np.array(annotation["bbox"]) + (number % 3, 0, 0, 0)
            found.append(
                {
                    "image_id": annotation["image_id"],
                    "category_id": annotation["category_id"],
                    "score": 1 - number / 100,
                    "bbox": box.tolist(),
                    "segmentation": rle.encode(np.asfortranarray(np.roll(mask, number % 3, 1))),
                }
            )
        images = [image["id"] for image in truth["images"]]
        ours = average_precision(truth, Detections.of(found), images, lvis=False, max_detections=100)
        for kind, name, field in (("bbox", "box_ap", "bbox"), ("segm", "mask_ap", "segmentation")):
            results = [
                {key: d[key] for key in ("image_id", "category_id", "score", field)} for d in copy.deepcopy(found)
            ]
            evaluation = COCOeval(theirs, theirs.loadRes(results), kind)
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
            assert 20 < ours[name] < 100 and abs(ours[name] - 100 * evaluation.stats[0]) < 1e-9


def damage(path: Path, change: Callable[[np.ndarray], np.ndarray]) -> None:
    Image.fromarray(change(np.array(Image.open(path)))).save(path)


def high(labels: np.ndarray) -> np.ndarray:
    labels[3, 4] = 8  # the toy world has 7 classes
    return labels


LABELS = {
    "a label out of range": (high, "holds label 8, but there are 7 classes"),
    "another size": (lambda labels: labels[:-1], "pixels, but its image"),
    "colours": (lambda labels: np.stack([labels] * 3, 2), "one channel of labels"),
    "nothing but other": (np.zeros_like, "no labeled pixel"),
}


@pytest.mark.parametrize(
    ("name", "split", "workers"),
    [
        *((name, "training", 0) for name in list(LABELS)[:3]),
        *((name, "validation", 0) for name in LABELS),
        ("another size", "training", 1),
    ],
)
def test_a_label_map_is_named(
    name: str, split: str, workers: int, encoder: Encoder, world: Path, tmp_path: Path
) -> None:
    change, sentence = LABELS[name]
    root = tmp_path / "world"
    shutil.copytree(world / "ade20k", root / "ade20k")
    path = sorted((root / "ade20k/annotations" / split).iterdir())[0]
    damage(path, change)
    (tmp_path / "out").mkdir()
    config = dataclasses.replace(segmentation.PRESETS["demo"], iterations=1)
    with pytest.raises(UserError) as raised:
        segmentation.run(encoder, config, Env(root, tmp_path / "out", limit=1, workers=workers))
    assert sentence in str(raised.value) and "\n" not in str(raised.value)
    assert str(path if change is not np.zeros_like else root / "ade20k") in str(raised.value)


@pytest.mark.parametrize("folder", ["images", "annotations"])
@pytest.mark.parametrize("split", ["training", "validation"])
def test_a_picture_without_labels_and_the_reverse(
    folder: str, split: str, encoder: Encoder, world: Path, tmp_path: Path
) -> None:
    root = tmp_path / "world"
    shutil.copytree(world / "ade20k", root / "ade20k")
    gone = sorted((root / "ade20k" / folder / split).iterdir())[1]
    gone.unlink()
    (tmp_path / "out").mkdir()
    with pytest.raises(UserError) as raised:
        segmentation.run(encoder, segmentation.PRESETS["demo"], Env(root, tmp_path / "out"))
    assert f"{gone.stem} is not in both" in str(raised.value) and str(root / "ade20k") in str(raised.value)


def test_a_crop_without_a_label_is_no_error(encoder: Encoder, world: Path, tmp_path: Path) -> None:
    """All of a training picture is "other": its loss is 0, and the training goes on."""
    root = tmp_path / "world"
    shutil.copytree(world / "ade20k", root / "ade20k")
    damage(sorted((root / "ade20k/annotations/training").iterdir())[0], np.zeros_like)
    (tmp_path / "out").mkdir()
    config = dataclasses.replace(segmentation.PRESETS["demo"], iterations=1)
    metrics = segmentation.run(encoder, config, Env(root, tmp_path / "out", limit=1))
    assert np.isfinite(metrics["miou"])


def test_loading_processes_without_room_are_refused_before_they_start(
    encoder: Encoder, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_memory.shutil, "disk_usage", lambda folder: types.SimpleNamespace(free=1000, total=1000))
    with pytest.raises(UserError, match="2 loading processes put up to .* give --workers 0"):
        detect(encoder, world, tmp_path, workers=2)
    config = dataclasses.replace(segmentation.PRESETS["demo"], iterations=2)
    (tmp_path / "segmentation").mkdir()
    with pytest.raises(UserError, match="2 loading processes put up to .* give --workers 0"):
        segmentation.run(encoder, config, Env(world, tmp_path / "segmentation", workers=2))
