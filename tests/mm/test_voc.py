"""PASCAL VOC: its files are read as they are, and AP equals the rules of 2007 written as loops."""

from pathlib import Path

import numpy as np
import pytest

from evaluate.data.voc import CLASSES, read_voc
from evaluate.mm.datasets import VOCSet
from evaluate.mm.metrics import LEVELS, THRESHOLDS, VOCAP, class_outcomes
from evaluate.mm.resampling import precision
from evaluate.runtime.errors import UserError
from tests.worlds import make_voc, xml


def test_the_files_are_read(world: Path, tmp_path: Path) -> None:
    root = make_voc(tmp_path, world) / "VOCdevkit"
    train = read_voc(root, ["2007/trainval", "2012/trainval"])
    assert len(train["images"]) == 12 and len(train["categories"]) == 20
    assert [image["id"] for image in train["images"]] == list(range(12))
    data = VOCSet(str(root), str(root), "2007/trainval+2012/trainval", [], training=True)
    sample = data[len(data) - 1]
    assert "VOC2012" in sample["img_path"] and Path(sample["img_path"]).is_file()
    path = root / "VOC2007/Annotations"
    first = sorted(path.iterdir())[0]
    first.write_text(xml(50, 40, [("cat", 1, (1, 1, 50, 40))]))
    content = read_voc(root, [f"2007/{'test' if first.stem.startswith('test') else 'trainval'}"])
    read = [a for a in content["annotations"] if a["difficult"] and a["category_id"] == CLASSES.index("cat")]
    assert read[0]["bbox"] == [0, 0, 50, 40], "pixel 1 to pixel 50 is the whole width"
    for text in ("<annotation>", xml(5, 5, [("dragon", 0, (1, 1, 2, 2))]), xml(5, 5, [("cat", 0, ("x", 1, 2, 2))])):
        first.write_text(text)
        with pytest.raises(UserError, match=first.name):
            read_voc(root, ["2007/test", "2007/trainval"])
    with pytest.raises(UserError, match="VOC2010"):
        read_voc(root, ["2010/test"])


def reference(truth: dict, difficult: dict, found: list, threshold: float) -> float:
    """The rules, one detection at a time."""
    asked = sum(not flag for flags in difficult.values() for flag in flags)
    taken, hits, points = set(), 0, []
    errors = 0
    for image, _, box in sorted(found, key=lambda entry: -entry[1]):
        overlaps = []
        for other in truth.get(image, []):
            width = min(box[2], other[2]) - max(box[0], other[0]) + 1
            height = min(box[3], other[3]) - max(box[1], other[1]) + 1
            shared = max(width, 0) * max(height, 0)
            areas = [(b[2] - b[0] + 1) * (b[3] - b[1] + 1) for b in (box, other)]
            overlaps.append(shared / (sum(areas) - shared))
        owner = int(np.argmax(overlaps)) if overlaps else None
        if owner is None or overlaps[owner] <= threshold:
            errors += 1
        elif difficult[image][owner]:
            pass
        elif (image, owner) in taken:
            errors += 1
        else:
            taken.add((image, owner))
            hits += 1
        points.append((hits / asked, hits / max(hits + errors, 1)))
    return sum(max([p for r, p in points if r >= level], default=0.0) for level in np.arange(0, 1.1, 0.1)) / 11


@pytest.mark.parametrize("seed", range(3))
def test_precision_equals_the_rules(seed: int) -> None:
    generator = np.random.default_rng(seed)
    truth, difficult, found = {}, {}, []
    for image in range(8):
        count = int(generator.integers(0, 4))
        corners = generator.uniform(1, 60, (count, 2))
        truth[image] = np.concatenate([corners, corners + generator.uniform(8, 40, (count, 2))], 1)
        difficult[image] = generator.random(count) < 0.3
        for box in truth[image]:
            for _ in range(int(generator.integers(0, 3))):
                found.append((image, float(generator.random()), box + generator.normal(0, 2, 4)))
        found.append((image, float(generator.random()), np.array([3.0, 3.0, 20.0, 20.0])))
    outcomes = class_outcomes(truth, difficult, found, range(8))
    (ours,) = precision(outcomes, np.ones((1, 8), np.int64), LEVELS)
    assert ours == pytest.approx([reference(truth, difficult, found, threshold) for threshold in THRESHOLDS])
    assert 0 < ours[0] < 1


def test_perfect_none_and_part(world: Path, tmp_path: Path) -> None:
    root = make_voc(tmp_path, world) / "VOCdevkit"
    metric = VOCAP(str(root), "2007/test")
    content = read_voc(root, ["2007/test"])

    def result(image: dict, keep: bool) -> tuple:
        own = [a for a in content["annotations"] if a["image_id"] == image["id"] and keep]
        boxes = np.array(
            [
                [a["bbox"][0] + 1, a["bbox"][1] + 1, a["bbox"][0] + a["bbox"][2], a["bbox"][1] + a["bbox"][3]]
                for a in own
            ]
        )
        return image["id"], boxes.reshape(-1, 4), np.ones(len(own)), np.array([a["category_id"] for a in own])

    perfect = metric.compute_metrics([result(image, True) for image in content["images"]])
    assert perfect == {
        "box_ap": pytest.approx(100),
        "box_ap50": pytest.approx(100),
        "box_ap75": pytest.approx(100),
        "images": 6,
    }
    assert metric.compute_metrics([result(image, False) for image in content["images"]])["box_ap"] == 0
    with pytest.raises(RuntimeError, match="5 images"):
        metric.compute_metrics([result(image, True) for image in content["images"][1:]])
    for path in (root / "VOC2007/Annotations").iterdir():
        path.write_text(xml(90, 90, []))
    with pytest.raises(UserError, match="none of the tested images has an annotated object"):
        VOCAP(str(root), "2007/test").compute_metrics([result(image, False) for image in content["images"]])
