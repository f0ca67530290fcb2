"""ImageNet-V2, ReaL and ObjectNet as published: which class each image has, and which files are refused."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from evaluate.data import check, further_sets, imagenet, layouts
from evaluate.data.identity import DataIdentities
from evaluate.runtime.errors import UserError
from tests.worlds import OFFICIAL, write_further_sets


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_further_sets(tmp_path)


def test_a_folder_of_v2_is_a_classs_number_and_not_its_place_in_the_list(root: Path) -> None:
    """Sorted as text the folders are 0, 10, 2, 999."""
    images = further_sets.v2_set("imagenet_v2_matched", root)
    train = imagenet.class_names(root / "imagenet/train")
    assert [(file.parent.name, train[label]) for file, label in zip(images.files, images.labels, strict=True)] == [
        (str(number), OFFICIAL[number]) for number in (0, 2, 10, 999)
    ]


@pytest.mark.parametrize(
    ("folder", "says"),
    [("n01440764", "named by a class's number"), ("1000", "named by a class's number"), ("1", "imagenet/train lacks")],
)
def test_another_folder_is_refused(root: Path, folder: str, says: str) -> None:
    made = root / "imagenetv2-top-images-format-val" / folder
    made.mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(made / "a.jpeg")
    with pytest.raises(UserError, match=says):
        further_sets.v2_set("imagenet_v2_top", root)


def test_real_gives_each_image_of_val_its_right_classes(root: Path) -> None:
    val = imagenet.val_set(root)
    right = further_sets.real_labels(root, val)
    of_image = {file.name: right[row].nonzero()[0].tolist() for row, file in enumerate(val.files)}
    assert of_image == {
        "ILSVRC2012_val_00000001.JPEG": [0],
        "ILSVRC2012_val_00000007.JPEG": [1, 3],  # classes 2 and 999 of ImageNet-1k; 5 is none of train's
        "ILSVRC2012_val_00000020.JPEG": [],
        "ILSVRC2012_val_00050000.JPEG": [3],
    }
    first = np.array([{"00000001": 1, "00000007": 3, "00000020": 0, "00050000": 3}[f.stem[-8:]] for f in val.files])
    assert further_sets.among_right(first, right).tolist() == [False, True, True]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("[[1], [2]]", "list of 50,000 lists"),
        ("{", "is no JSON"),
        (json.dumps([["tench"]] * 50_000), "classes from 0 to 999, not 'tench'"),
        (json.dumps([[1000]] * 50_000), "classes from 0 to 999, not 1000"),
    ],
)
def test_another_file_of_labels_is_refused(root: Path, content: str, says: str) -> None:
    (root / "imagenet/real.json").write_text(content)
    with pytest.raises(UserError, match=says):
        further_sets.real_labels(root, imagenet.val_set(root))


def test_images_of_val_without_their_numbers_have_no_reassessed_labels(root: Path) -> None:
    image = next((root / "imagenet/val").glob("*/*_00000001.JPEG"))
    image.rename(image.with_name("first.JPEG"))
    with pytest.raises(UserError, match="numbers in their names"):
        further_sets.real_labels(root, imagenet.val_set(root))


def test_objectnet_is_scored_on_the_classes_that_train_has(root: Path) -> None:
    images, right = further_sets.objectnet_set(root)
    assert [(file.parent.name, own.nonzero()[0].tolist()) for file, own in zip(images.files, right, strict=True)] == [
        ("alarm_clock", [0, 2]),
        ("alarm_clock", [0, 2]),
        ("mug", [3]),
    ], "a spatula is none of train's, and a pet bed none of ImageNet's"
    assert images.labels.tolist() == [0, 0, 3] and images.asked == 3 and len(images.scored) == 2
    cut = further_sets.WithoutBorder(lambda image, epoch, index: image)(Image.open(images.files[0]).convert("RGB"))
    assert cut.size == (12, 8) and cut.getcolors() == [(96, (0, 0, 255))], "the red border is 2 pixels wide"


@pytest.mark.parametrize("name", ["folder_to_objectnet_label.json", "imagenet_to_label_2012_v2"])
def test_objectnet_without_its_mappings_is_refused(root: Path, name: str) -> None:
    (root / "objectnet-1.0/mappings" / name).write_text("[3]" if name.endswith("json") else "tench\n")
    with pytest.raises(UserError, match="four published mappings"):
        further_sets.objectnet_set(root)


def test_a_set_that_is_absent_is_no_part_of_the_datas_identity_and_no_fault(root: Path, tmp_path: Path) -> None:
    def parts() -> set[str]:
        return set(DataIdentities(root, tmp_path / "manifests").of_sets(("imagenet_a", *layouts.FURTHER)))

    assert parts() == {
        "imagenet-a",  # a set of the paper is, whether it is there or not
        "imagenetv2-matched-frequency-format-val",
        "imagenet/real.json",
        "objectnet-1.0/images",
        "objectnet-1.0/mappings",
    }
    found = {finding.name: finding for finding in check.check(root, layouts.FURTHER)}
    assert set(found) == {"imagenet_v2_matched", "imagenet_real", "objectnet"}
    assert all(finding.status == "part" for name, finding in found.items() if name != "imagenet_real")
    assert "3 of 4 images of val have a right class" in found["imagenet_real"].detail


def test_a_set_of_which_a_part_is_missing_is_not_overlooked(root: Path) -> None:
    shutil.rmtree(root / "objectnet-1.0/mappings")
    (finding,) = check.check(root, ["objectnet"])
    assert finding.status == "absent" and "objectnet-1.0/mappings is missing" in finding.detail
