"""Labelled sets besides ImageNet: the same images from folders, lists and shards, and what is refused in a sentence."""

import hashlib
import os
from pathlib import Path

import numpy as np
import pytest

from evaluate.data import check, sets, sources
from evaluate.data.identity import DataIdentities
from evaluate.runtime.errors import UserError
from tests.labelled import CLASSES, write_everywhere, write_image, write_several, write_shard


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_everywhere(tmp_path_factory.mktemp("labelled"), train=3, val=2)


def contents(images: sets.ImageSet) -> list[str]:
    files = (file.read_bytes() if isinstance(file, Path) else file.read() for file in images.files)
    return [hashlib.sha256(content).hexdigest() for content in files]


def test_folders_lists_and_shards_give_the_same_images_in_the_same_order(root: Path) -> None:
    folders, lists, shards = (one.read() for one in sets.choose([str(root / "sets.toml")], None))
    for split in (0, 1):
        assert contents(folders[split]) == contents(lists[split]) == contents(shards[split])
        for other in (lists, shards):
            assert np.array_equal(folders[split].labels, other[split].labels)
            assert folders[split].classes == other[split].classes == CLASSES
    assert (
        len(folders[0]) == 12
        and folders[0].name == "folders_train"
        and folders[1].labels.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    )


def test_a_limit_leaves_every_class_its_share(root: Path) -> None:
    for one in sets.choose([str(root / "sets.toml")], None):
        train, _ = one.read(limit=4)
        assert train.labels.tolist() == [0, 1, 2, 3] and (train.asked, len(train.scored)) == (12, 4)
        assert one.count("train") == 12 and one.count("val") == 8


def test_several_labels_come_in_one_cell_or_in_columns(tmp_path: Path) -> None:
    write_several(tmp_path)
    train, val = sets.choose([str(tmp_path / "several.toml")], None)[0].read()
    assert train.classes == ("blue", "green", "red") and train.several is not None
    lines = [line.split(",") for line in (tmp_path / "train.csv").read_text().splitlines()[1:]]
    assert train.several.tolist() == [[mark == "1" for mark in (line[3], line[2], line[1])] for line in lines]
    words = sources.read(tmp_path / "train-words.csv")
    columns = [item for item in sources.read(tmp_path / "train.csv") if item.labels]
    assert [(item.name, item.labels) for item in words] == [(item.name, item.labels) for item in columns]


def test_numbers_are_sorted_as_such_and_may_stand_for_classes(tmp_path: Path) -> None:
    members = {}
    for number in (10, 9, 2):
        members[f"{number}.png"] = write_image(tmp_path / f"{number}.png").read_bytes()
        members[f"{number}.cls"] = str(number).encode()
    write_shard(tmp_path / "a.tar", members)
    one = sets.LabelledSet("a", "a", "a", ("knn",), "accuracy", (), tmp_path / "a.tar", tmp_path / "a.tar")
    assert one.read()[0].classes == ("2", "9", "10") and one.read()[0].labels.tolist() == [0, 1, 2]
    named = tuple(f"class {number}" for number in range(11))
    one = sets.LabelledSet("a", "a", "a", ("knn",), "accuracy", named, tmp_path / "a.tar", tmp_path / "a.tar")
    assert one.read()[0].labels.tolist() == [2, 9, 10]


def test_a_number_is_no_place_among_classes_that_are_numbers(tmp_path: Path) -> None:
    """Classes 1, 2, 3 of train and 0, 1, 2 of val: 0 would be taken for the first class, and be wrong throughout."""
    for split, first in (("train", 1), ("val", 0)):
        lines = [
            f"{write_image(tmp_path / split / f'{label}.png', label).relative_to(tmp_path)},{first + label}"
            for label in range(3)
        ]
        (tmp_path / f"{split}.csv").write_text("\n".join(lines))
    (tmp_path / "own.toml").write_text('[own]\ntrain = "train.csv"\nval = "val.csv"\n')
    with pytest.raises(UserError, match="has the label '0', which is no class; the classes are 1, 2, 3"):
        sets.choose([str(tmp_path / "own.toml")], None)[0].read()


@pytest.mark.parametrize("change", ["image", "label", "classes", "metric"])
def test_another_set_has_another_identity(change: str, tmp_path: Path) -> None:
    write_everywhere(tmp_path, train=2, val=1)
    toml = tmp_path / "sets.toml"

    def found() -> list[dict[str, str]]:
        known = DataIdentities(tmp_path, tmp_path / "manifests")
        return [one.identities(known) for one in sets.choose([str(toml)], None)]

    before = found()
    assert before == found()
    if change == "image":
        write_image(tmp_path / "train/ant/000.png", 2, seed=77)
    elif change == "label":  # of as many letters, at the same time: the contents tell
        listed = tmp_path / "train.csv"
        before_change = listed.stat().st_mtime_ns
        listed.write_text(listed.read_text().replace("000.png,ant", "000.png,bee"))
        os.utime(listed, ns=(before_change, before_change))
    elif change == "classes":
        toml.write_text(toml.read_text().replace("[lists]", '[lists]\nclasses = ["dog", "cat", "bee", "ant"]'))
    else:
        toml.write_text(toml.read_text().replace("[lists]", '[lists]\nmetric = "mean_per_class"'))
    after = found()
    assert [old != new for old, new in zip(before, after, strict=True)] == [change == "image", True, False]


def test_an_image_of_val_that_is_in_train_too_is_told(root: Path, tmp_path: Path) -> None:
    write_everywhere(tmp_path, train=2, val=1)
    one = sets.choose([f"{tmp_path / 'sets.toml'}:folders"], None)[0]
    assert sets.in_both(*one.read()) == ""
    content = (tmp_path / "train/bee/001.png").read_bytes()
    (tmp_path / "val/bee/001.png").write_bytes(content[:-1] + b"!")
    assert sets.in_both(*one.read()) == "", "another image of the same name and size"
    (tmp_path / "val/bee/001.png").write_bytes(content)
    assert sets.in_both(*one.read()) == f"1 images of val are in train too, for example {tmp_path}/val/bee/001.png"
    finding = check.check_labelled(one)
    assert finding.status == "ok" and "in train too" in finding.detail


TOML = '[mine]\ntrain = "train"\nval = "val"\n'


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (TOML + "epochs = 3\n", r"\[mine\]: unknown setting 'epochs'; the settings here are name, train"),
        (TOML + 'task = "sweep"\n', r"\[mine\]: setting 'task' is a list of names of knn, linear, few_shot, finetune"),
        (TOML + 'metric = "f1"\n', r"setting 'metric' is one of accuracy, mean_per_class, map"),
        (TOML + 'metric = "map"\ntask = "few_shot"\n', "goes with the tasks knn, linear"),
        (TOML + 'task = ["knn", "knn"]\n', "nothing twice"),
        (TOML + 'classes = ["a", "a"]\n', "nothing twice"),
        ('[mine]\ntrain = "train"\n', "needs train and val in a TOML file"),
        ('[cifar10]\ntrain = "train"\n', "train and val go together"),
        ('[mine]\ntrain = "train"\nval = "train"\n', "overlap"),
        ('[mine]\ntrain = "train"\nval = "train/ant"\n', "overlap"),
        ('[mine]\ntrain = "."\nval = "val"\n', "overlap"),
        ('["my.set"]\ntrain = "train"\nval = "val"\n', "a set cannot be called 'my.set'"),
        ('[coco]\ntrain = "train"\nval = "val"\n', "none of the paper's sets"),
        ('[mine]\nname = "a\\nb"\ntrain = "train"\nval = "val"\n', "no name of a column"),
        (TOML + '[other]\nname = "mine"\ntrain = "train"\nval = "val"\n', "two sets are called 'mine'"),
        ('train = "train"\n', "has train outside a set"),
        ("", "has nothing outside a set"),
        ("[mine\n", "cannot be read .*expected a TOML file"),
        ('[mine]\ntrain = "absent"\nval = "val"\n', "absent is not there, or is none of these"),
        ('[mine]\ntrain = "absent.csv"\nval = "val"\n', "the list .*absent.csv is not there"),
        ('[mine]\ntrain = "absent.tar"\nval = "val"\n', "absent.tar holds no webdataset shard"),
        (
            TOML + 'classes = ["ant", "bee"]\n',
            "cat/000.png has the label 'cat', which is no class; the classes are ant, bee",
        ),
    ],
)
def test_what_a_file_may_not_say(text: str, says: str, root: Path) -> None:
    (root / "wrong.toml").write_text(text)
    with pytest.raises(UserError, match=says):
        for one in sets.choose([str(root / "wrong.toml")], None):
            one.read()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (
            "path,label\ntrain/ant/000.png,ant\ntrain/../val/ant/000.png,ant\n",
            "line 3: .*is no path of an image; .*without ..",
        ),
        ("path,label\ntrain/ant/000.txt,ant\n", "line 2: .*is no path of an image"),
        ("path,label\ntrain/ant/000.png,\n", "line 2: train/ant/000.png has no label"),
        ("path\ntrain/ant/000.png\n", "has no labels"),
        ("path,label\n", "holds no image"),
        ("path,label\ntrain/ant/000.png,ant\ntrain/ant/000.png,bee\n", "lists train/ant/000.png twice"),
        ("path,label\ntrain/ant/000.png,ant;bee\n", "has 2 labels .*metric = 'map'"),
        ("path,label\ntrain/ant/000.png,ant,bee\n", "line 2, has 3 cells where 2 are expected"),
    ],
)
def test_what_is_no_list_of_labelled_images(content: str, says: str, root: Path) -> None:
    (root / "wrong.csv").write_text(content)
    (root / "wrong.toml").write_text('[mine]\ntrain = "wrong.csv"\nval = "val"\n')
    with pytest.raises(UserError, match=says):
        sets.choose([str(root / "wrong.toml")], None)[0].read()


def test_a_listed_file_that_is_not_there_is_named(root: Path) -> None:
    (root / "lacking.csv").write_text("path,label\ntrain/ant/000.png,ant\ntrain/ant/gone.png,ant\n")
    (root / "wrong.toml").write_text('[mine]\ntrain = "lacking.csv"\nval = "val"\n')
    with pytest.raises(UserError, match="gone.png is listed, but cannot be read"):
        sets.choose([str(root / "wrong.toml")], None)[0].identities(DataIdentities(root, root / "manifests"))


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("train/stray.png", "stray.png lies in no class folder"),
        ("train/ant/notes.md", "notes.md is no image by its name, .*; move it away"),
        ("train/empty/", "the class folder .*empty is empty"),
        ("val/eel/0.png", "has the label 'eel', which is no class"),
        ("train/ant/0.jpg", "0.jpg cannot be read"),
    ],
)
def test_what_may_not_lie_in_a_folder(name: str, says: str, tmp_path: Path) -> None:
    write_everywhere(tmp_path, train=2, val=1)
    if name.endswith("/"):
        (tmp_path / name).mkdir()
    else:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"no image")
    finding = check.check_labelled(sets.choose([f"{tmp_path / 'sets.toml'}:folders"], None)[0])
    assert finding.status == "wrong"
    with pytest.raises(AssertionError, match=says):
        raise AssertionError(finding.detail)


def test_a_sample_without_label_is_named(tmp_path: Path) -> None:
    shard = write_shard(tmp_path / "a.tar", {"x/1.png": write_image(tmp_path / "1.png").read_bytes()})
    with pytest.raises(UserError, match="x/1.png has no label; expected 1.cls, .json"):
        sources.read(shard)


def test_names_that_name_nothing(root: Path) -> None:
    with pytest.raises(UserError, match="nothing is no set that is ready by name .cifar10, "):
        sets.choose(["nothing"], root)
    with pytest.raises(UserError, match=r"has no set \[nothing\]"):
        sets.choose([f"{root / 'sets.toml'}:nothing"], None)
    with pytest.raises(UserError, match="two sets are called 'lists'"):
        sets.choose([str(root / "sets.toml"), f"{root / 'sets.toml'}:lists"], None)
