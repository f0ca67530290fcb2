"""The pictures of the dense tasks: annotations are drawn on the objects, label maps in their colors."""

import dataclasses
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from evaluate import detection, segmentation
from evaluate.data import drawing
from evaluate.data.ade20k import class_names
from evaluate.data.coco import read_annotations
from evaluate.encoder.model import Encoder
from evaluate.mm import pictures
from evaluate.mm.metrics import VOCAP
from evaluate.runtime.env import Env


def run(module, encoder: Encoder, world: Path, folder: Path, **changes) -> dict:
    config = dataclasses.replace(module.PRESETS["demo"], iterations=2, **changes)
    return module.run(encoder, config, Env(world, folder, limit=5))


@pytest.mark.parametrize("dataset", ["coco", "lvis"])
def test_detections_stand_beside_the_annotations(
    dataset: str, encoder: Encoder, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pictures, "SCORE", 0.0)  # two iterations are sure of nothing
    drawn: list[tuple[Image.Image, list[drawing.Shape]]] = []
    draw = drawing.instances
    monkeypatch.setattr(
        drawing, "instances", lambda image, shapes: drawn.append((image, shapes)) or draw(image, shapes)
    )
    run(detection, encoder, world, tmp_path, dataset=dataset)
    index = json.loads((tmp_path / "pictures/detections.json").read_text())["pictures"]
    assert [entry["part"] for entry in index] == ["truth", "result"] * 5
    assert len({entry["subject"] for entry in index}) == 5
    for entry, (image, shapes) in zip(index, drawn, strict=True):
        with Image.open(tmp_path / "pictures" / entry["file"]) as small:
            assert max(small.size) == 240 and abs(small.width / small.height - image.width / image.height) < 0.05
        assert str(len(shapes)) in entry["caption"] or "nothing" in entry["caption"]
        if entry["part"] == "result":
            assert len(shapes) <= pictures.OBJECTS
            assert [shape.score for shape in shapes] == sorted([shape.score for shape in shapes], reverse=True)
        for shape in shapes:
            assert shape.mask is not None and shape.mask.shape == image.size[::-1]
            if entry["part"] == "truth":  # the box is the mask's
                ys, xs = np.nonzero(shape.mask)
                extent = (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)
                assert np.abs(np.subtract(extent, shape.box)).max() < 2
    if dataset == "coco":
        content = read_annotations(world / "coco/annotations/instances_val2017.json")
        count = sum(a["image_id"] in [image["id"] for image in content["images"][:5]] for a in content["annotations"])
        assert sum(len(shapes) for _, shapes in drawn[::2]) == count


def test_pascal_voc_has_boxes_alone(world: Path) -> None:
    metric = VOCAP(str(world / "VOCdevkit"), "2007/test")
    first = metric.ground_truth["annotations"][0]
    x, y, width, height = first["bbox"]
    shape = pictures._annotated(first, {first["category_id"]: 0}, ["a"], None)
    assert shape == drawing.Shape("a", 0, (x, y, x + width, y + height))


def test_annotated_objects_are_tinted_where_their_texture_is(world: Path) -> None:
    """The toy objects differ from their plain ground: what is drawn covers what differs."""
    content = read_annotations(world / "coco/annotations/instances_val2017.json")
    labels = {category["id"]: label for label, category in enumerate(content["categories"])}
    names = [category["name"] for category in content["categories"]]
    for entry in content["images"]:
        with Image.open(world / "coco/val2017" / entry["file_name"]) as file:
            image = file.convert("RGB")
        own = [a for a in content["annotations"] if a["image_id"] == entry["id"] and not a.get("iscrowd", 0)]
        shapes = [pictures._annotated(a, labels, names, image.size) for a in own]
        shown = np.asarray(drawing.instances(image, shapes)).astype(int)
        plain = np.asarray(drawing.fitted(image)).astype(int)
        for shape in shapes:
            mask = Image.fromarray(shape.mask).resize(plain.shape[1::-1])
            others = sum(other.mask.astype(int) for other in shapes) > 1
            inside = np.asarray(mask) & ~np.asarray(Image.fromarray(others).resize(plain.shape[1::-1]))
            color = np.array(drawing.color(shape.number))
            blend = (1 - drawing.COVER) * plain + drawing.COVER * color
            near = np.abs(shown - blend).max(axis=2) <= 12
            assert near[inside].mean() > 0.6  # the rest is below boxes and names


def test_segmentations_have_the_colors_of_their_labels(encoder: Encoder, world: Path, tmp_path: Path) -> None:
    run(segmentation, encoder, world, tmp_path)
    index = json.loads((tmp_path / "pictures/segmentations.json").read_text())
    assert [entry["part"] for entry in index["pictures"]] == ["image", "truth", "result"] * 5
    legend, names = dict(index["legend"]), class_names(world / "ade20k")
    for entry in index["pictures"]:
        if entry["part"] == "image":
            continue
        with Image.open(tmp_path / "pictures" / entry["file"]) as file:
            shown = np.asarray(file.convert("RGB"))
        if entry["part"] == "truth":
            with Image.open(world / "ade20k/annotations/validation" / f"{Path(entry['subject']).stem}.png") as file:
                labels = np.asarray(file).astype(int) - 1
            for y, x in itertools.product(*(range(20, side, 50) for side in shown.shape[:2])):
                down, across = (own / seen for own, seen in zip(labels.shape, shown.shape, strict=False))
                label = labels[int((y + 0.5) * down), int((x + 0.5) * across)]
                name = names[label] if label >= 0 else "not labeled"
                assert "#{:02x}{:02x}{:02x}".format(*shown[y, x]) == legend[name]
        found = {"#{:02x}{:02x}{:02x}".format(*color) for color in np.unique(shown.reshape(-1, 3), axis=0)}
        assert found <= set(legend.values())


@pytest.mark.parametrize("module", [detection, segmentation])
def test_a_failure_to_draw_costs_no_number(
    module, encoder: Encoder, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    def broken(*_: object) -> None:
        raise OSError("no room")

    monkeypatch.setattr(pictures, "_answers", broken)
    assert run(module, encoder, world, tmp_path)
    assert "warning: no pictures of" in capsys.readouterr().err and not (tmp_path / "pictures").exists()
