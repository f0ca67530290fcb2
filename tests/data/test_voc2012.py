"""VOC 2012's segmentation in its published form: what is read of it, and what is refused."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from evaluate.data import check, dense_sets, layouts, toy_dense, voc2012
from evaluate.data.identity import DataIdentities
from evaluate.harness import cost, estimate, plan
from evaluate.runtime.errors import UserError
from tests.worlds import make_voc2012

SETS = ("voc2012", "voc2012_aug")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    toy_dense.make(tmp_path / "toy", 0, train_images=8, val_images=3)
    return make_voc2012(tmp_path, tmp_path / "toy")


def test_train_takes_further_label_maps_where_they_are_there(root: Path) -> None:
    images = dense_sets.of("voc2012", root)
    pictures, maps = images.pairs("training")
    val = (root / "ImageSets/Segmentation/val.txt").read_text().split()
    assert len(pictures) == 8 and not set(val) & set(pictures) and list(images.pairs("validation")[0]) == val
    assert [path.parent.name for path in maps.values()] == ["SegmentationClass"] * 6 + ["SegmentationClassAug"] * 2
    assert {name: path.stem for name, path in pictures.items()} == {name: name for name in maps}
    shutil.rmtree(root / "SegmentationClassAug")
    assert len(images.pairs("training")[0]) == 6


def test_labels_are_the_indices_of_the_palette(root: Path) -> None:
    images = dense_sets.of("voc2012", root)
    assert images.form.none == 255 and images.classes[0] == "background" and len(images.classes) == 21
    _, maps = images.pairs("validation")
    for name, path in maps.items():
        with Image.open(path) as file:
            assert file.mode == "P"
        of_toy = Image.open(root.parents[1] / f"toy/ade20k/annotations/validation/{name}.png")
        expected = np.choose(np.asarray(of_toy), [255, 1, 2, 3, 4, 5, 6, 0])
        assert np.array_equal(images.read(path), expected)
    grey = Image.fromarray(images.read(path))
    grey.save(path)  # as the further ones often are
    assert np.array_equal(images.read(path), np.asarray(grey))


def test_what_is_not_as_published_is_refused(root: Path) -> None:
    images = dense_sets.of("voc2012", root)
    name, path = next(iter(images.pairs("validation")[1].items()))
    labels, whole = images.read(path), path.read_bytes()
    for wrong, says in (
        (
            Image.fromarray(np.where(labels == 0, 21, labels).astype(np.uint8)),
            "label 21, but there are 21 classes",
        ),
        (Image.fromarray(np.stack([labels] * 3, 2)), "red, green and blue; the published maps have a palette"),
        (Image.fromarray(labels[1:]), "pixels, but its image is"),
    ):
        wrong.save(path)
        with pytest.raises(UserError, match=says):
            images.check()
    path.write_bytes(whole)
    images.check()
    (root / f"JPEGImages/{name}.jpg").rename(root / "kept")
    with pytest.raises(UserError, match=f"lacks 1 of the validation pictures, for example {name}.jpg"):
        images.check()
    (root / "kept").rename(root / f"JPEGImages/{name}.jpg")
    path.unlink()
    with pytest.raises(UserError, match=f"lacks 1 of the validation pictures, for example {name}.png"):
        images.check()
    (root / "ImageSets/Segmentation/val.txt").write_text(f"{name}\n{name}\n")
    with pytest.raises(UserError, match="val.txt names no picture, or one twice"):
        images.check()


def test_the_check_of_the_data_knows_both_forms(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data_root = root.parents[1]
    (finding, further) = check.check(data_root, SETS, subset=True)
    assert finding.status == "part" and "VOC2012's training has 8 of 10582 images" in finding.detail
    assert further.status == "ok" and "5 files" in further.detail
    (finding, _) = check.check(data_root, SETS)
    assert (
        finding.status == "wrong" and "VOC2012's training has 8 images instead of the published 10582" in finding.detail
    )
    monkeypatch.setattr(check, "VOC2012", {"training": 8, "validation": 3})
    monkeypatch.setattr(check, "VOC2012_OWN", 6)
    assert check.check(data_root, SETS)[0].status == "ok"
    shutil.rmtree(root / "SegmentationClassAug")
    (finding,) = check.check(data_root, SETS)
    assert finding.status == "part" and "its own 6 of 8 images, for want of SegmentationClassAug" in finding.detail


def test_the_further_maps_are_part_of_the_identity_and_of_the_price(root: Path, tmp_path: Path) -> None:
    data_root = root.parents[1]
    (node,) = plan.choose(["linear_segmentation_voc"])
    names = plan.data_sets(node, plan.paper_config(node))
    assert names == SETS

    def identities() -> dict[str, str]:
        return DataIdentities(data_root, tmp_path / "manifests").of_sets(names)

    count = estimate.counter(data_root, None)
    assert cost.pictures("voc2012", count) == (6, 3), "five further files are fewer than train's six"
    whole = identities()
    assert set(whole) == {part for name in SETS for part in layouts.LAYOUTS[name]}
    shutil.rmtree(root / "SegmentationClassAug")
    assert set(identities()) == set(layouts.LAYOUTS["voc2012"])
    assert cost.pictures("voc2012", estimate.counter(None, None)) == (10_582, 1_449)
    assert voc2012.CLASSES[20] == "tvmonitor"
