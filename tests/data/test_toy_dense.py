"""The dense toy sets lie as the real ones do."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from evaluate.data import layouts, toy_dense


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dense")
    toy_dense.make(folder, seed=0)
    return folder


def read(root: Path, name: str) -> dict:
    return json.loads((root / name).read_text())


def test_every_path_of_the_layouts_is_there(root: Path) -> None:
    for name in ("coco", "lvis", "ade20k"):
        assert all((root / part).exists() for part in layouts.LAYOUTS[name]), name


def test_coco(root: Path) -> None:
    content = read(root, "coco/annotations/instances_train2017.json")
    assert [c["id"] for c in content["categories"]] == [1, 3, 8, 15]
    assert any(a["iscrowd"] for a in content["annotations"])
    for image in content["images"]:
        with Image.open(root / "coco/train2017" / image["file_name"]) as picture:
            assert picture.size == (image["width"], image["height"])
    assert len({a["id"] for a in content["annotations"]}) == len(content["annotations"])


def test_lvis_frequencies_are_what_they_say(root: Path) -> None:
    content = read(root, "lvis/lvis_v1_train.json")
    bounds = {"r": (1, 10), "c": (11, 100), "f": (101, 10**6)}
    for category in content["categories"]:
        held = len({a["image_id"] for a in content["annotations"] if a["category_id"] == category["id"]})
        low, high = bounds[category["frequency"]]
        assert held == category["image_count"] and low <= held <= high
    assert {c["frequency"] for c in content["categories"]} == {"r", "c", "f"}
    for image in content["images"]:
        present = {a["category_id"] for a in content["annotations"] if a["image_id"] == image["id"]}
        assert not present & set(image["neg_category_ids"]) and set(image["not_exhaustive_category_ids"]) <= present
        assert "file_name" not in image and image["coco_url"].endswith(f"train2017/{image['id']:012d}.jpg")


def test_ade20k(root: Path) -> None:
    for split in ("training", "validation"):
        names = sorted(path.stem for path in (root / "ade20k/images" / split).iterdir())
        assert names == sorted(path.stem for path in (root / "ade20k/annotations" / split).iterdir())
        labels = np.array(Image.open(root / "ade20k/annotations" / split / f"{names[0]}.png"))
        assert labels.dtype == np.uint8 and labels.max() <= 7 and (labels == 0).any()


def test_the_seed_is_the_world(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        toy_dense.make(tmp_path / name, seed, train_images=3, val_images=2)
    files = sorted(path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*.*"))
    assert all((tmp_path / "a" / path).read_bytes() == (tmp_path / "b" / path).read_bytes() for path in files)
    assert any((tmp_path / "a" / path).read_bytes() != (tmp_path / "c" / path).read_bytes() for path in files)


def test_run_lengths() -> None:
    assert toy_dense.run_lengths(np.array([[0, 1], [1, 1]], bool)) == [1, 3]
    assert toy_dense.run_lengths(np.array([[1, 0], [1, 0]], bool)) == [0, 2, 2]
    assert sum(toy_dense.run_lengths(np.random.default_rng(0).random((7, 5)) < 0.5)) == 35
