"""Each published set that is ready by name, on a miniature in its published layout."""

import hashlib
import json
import pickle
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat
from torchvision import datasets

from evaluate.data import check, imagenet, sets
from evaluate.data.identity import DataIdentities
from evaluate.data.loader import read_image
from evaluate.data.published_counts import differences, sizes
from evaluate.data.published_sets import CALTECH_TRAIN, READY, VTAB
from evaluate.runtime.errors import Skip, UserError
from tests.labelled import write_image

Made = tuple[dict[str, int], dict[str, int]]  # images by class, of train and of val


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()


def cifar(kind: str, folder: str, files: tuple[list[str], list[str]], label: str, meta: str, key: str) -> Callable:
    def make(root: Path, monkeypatch: pytest.MonkeyPatch) -> Made:
        rng, known = np.random.default_rng(0), getattr(datasets, kind)
        (root / folder).mkdir(parents=True)
        for attribute, names in zip(("train_list", "test_list"), files, strict=True):
            for name in names:
                content = {"data": rng.integers(0, 255, (4, 3072), np.uint8), label: [0, 1, 1, 2]}
                (root / folder / name).write_bytes(pickle.dumps(content))
            listed = [[name, md5(root / folder / name)] for name in names]
            monkeypatch.setattr(known, attribute, listed)
        (root / folder / meta).write_bytes(pickle.dumps({key: ["ant", "bee", "cat"]}))
        monkeypatch.setattr(known, "meta", {"filename": meta, "key": key, "md5": md5(root / folder / meta)})
        return tuple({"ant": len(names), "bee": 2 * len(names), "cat": len(names)} for names in files)  # type: ignore[return-value]

    return make


def food101(root: Path, _: pytest.MonkeyPatch) -> Made:
    folder = root / "food-101"
    for split, count in (("train", 2), ("test", 1)):
        names = {name: [f"{name}/{split}{index}" for index in range(count)] for name in ("pie", "soup")}
        for name in sum(names.values(), []):
            write_image(folder / f"images/{name}.jpg")
        (folder / "meta").mkdir(exist_ok=True)
        (folder / f"meta/{split}.json").write_text(json.dumps(names))
        (folder / f"meta/{split}.txt").write_text("\n".join(sum(names.values(), [])))
    return {"pie": 2, "soup": 2}, {"pie": 1, "soup": 1}


def pets(root: Path, _: pytest.MonkeyPatch) -> Made:
    folder = root / "oxford-iiit-pet"
    for split, count in (("trainval", 2), ("test", 1)):
        lines = []
        for label, name in enumerate(("Abyssinian", "great_pyrenees"), 1):
            for index in range(count):
                write_image(folder / f"images/{name}_{split}{index}.jpg")
                lines.append(f"{name}_{split}{index} {label} {label} 1")
        (folder / "annotations").mkdir(exist_ok=True)
        (folder / f"annotations/{split}.txt").write_text("\n".join(lines))
    (folder / "images/Abyssinian_100.mat").write_bytes(b"as published")
    return {"Abyssinian": 2, "Great Pyrenees": 2}, {"Abyssinian": 1, "Great Pyrenees": 1}


def flowers(root: Path, monkeypatch: pytest.MonkeyPatch) -> Made:
    folder = root / "flowers-102"
    for number in range(1, 7):
        write_image(folder / f"jpg/image_{number:05d}.jpg")
    savemat(folder / "imagelabels.mat", {"labels": [[1, 2, 1, 2, 1, 2]]})
    savemat(folder / "setid.mat", {"trnid": [[1, 2]], "valid": [[3, 4]], "tstid": [[5, 6]]})
    known = {"label": "imagelabels.mat", "setid": "setid.mat"}
    files = {key: (name, md5(folder / name)) for key, name in known.items()}
    monkeypatch.setattr(datasets.Flowers102, "_file_dict", {**datasets.Flowers102._file_dict, **files})
    return {"pink primrose": 2, "hard-leaved pocket orchid": 2}, {"pink primrose": 1, "hard-leaved pocket orchid": 1}


def cars(root: Path, _: pytest.MonkeyPatch) -> Made:
    folder = root / "stanford_cars"
    (folder / "devkit").mkdir(parents=True)
    savemat(folder / "devkit/cars_meta.mat", {"class_names": np.array(["Audi TT", "BMW X3"], dtype=object)})
    places = {"train": "devkit/cars_train_annos.mat", "test": "cars_test_annos_withlabels.mat"}
    for split, place in places.items():
        lines = [(f"{index:05d}.jpg", index) for index in (1, 2)]
        for name, _index in lines:
            write_image(folder / f"cars_{split}" / name)
        kinds = [("fname", object), ("class", object)]
        savemat(folder / place, {"annotations": np.array([lines], dtype=kinds)})
    return {"Audi TT": 1, "BMW X3": 1}, {"Audi TT": 1, "BMW X3": 1}


def aircraft(root: Path, _: pytest.MonkeyPatch) -> Made:
    folder = root / "fgvc-aircraft-2013b/data"
    for split, count in (("trainval", 2), ("test", 1)):
        names = [
            (f"{split}{index}{label}", name)
            for index in range(count)
            for label, name in enumerate(("707-320", "A 330"))
        ]
        for file, _name in names:
            write_image(folder / f"images/{file}.jpg")
        (folder / f"images_variant_{split}.txt").write_text("".join(f"{file} {name}\n" for file, name in names))
    (folder / "variants.txt").write_text("707-320\nA 330\n")
    return {"707-320": 2, "A 330": 2}, {"707-320": 1, "A 330": 1}


def dtd(root: Path, _: pytest.MonkeyPatch) -> Made:
    folder = root / "dtd/dtd"
    (folder / "labels").mkdir(parents=True)
    for split in ("train", "val", "test"):
        names = [f"{name}/{name}_{split}.jpg" for name in ("banded", "dotted")]
        for name in names:
            write_image(folder / "images" / name)
        (folder / f"labels/{split}1.txt").write_text("\n".join(names))
    return {"banded": 2, "dotted": 2}, {"banded": 1, "dotted": 1}


def sun397(root: Path, _: pytest.MonkeyPatch) -> Made:
    folder = root / "SUN397"
    (folder / "Partitions").mkdir(parents=True)
    for list_name in ("Training_01.txt", "Testing_01.txt"):
        names = [
            f"/{place}/sun_{list_name[:2].lower()}.jpg" for place in ("a/abbey", "c/church/indoor", "c/church/outdoor")
        ]
        for name in names:
            write_image(folder / name.lstrip("/"))
        (folder / "Partitions" / list_name).write_text("\n".join(names))
    write_image(folder / "a/abbey/sun_in_no_list.jpg")
    return (dict.fromkeys(("abbey", "church/indoor", "church/outdoor"), 1),) * 2


def caltech101(root: Path, _: pytest.MonkeyPatch) -> Made:
    folder = root / "caltech101/101_ObjectCategories"
    for name, count in (("BACKGROUND_Google", 33), ("ant", 31), ("bee", 32)):
        for index in range(count):
            write_image(folder / name / f"image_{index:04d}.jpg", size=8)
    (folder / "BACKGROUND_Google/tmp").write_bytes(b"as published")
    names = ("BACKGROUND_Google", "ant", "bee")
    return dict.fromkeys(names, CALTECH_TRAIN), dict(zip(names, (3, 1, 2), strict=True))


def inat2018(root: Path, _: pytest.MonkeyPatch) -> Made:
    folder = root / "inaturalist2018"
    for split, first in (("train", 0), ("val", 10)):
        images = [
            {"id": first + index, "file_name": f"train_val2018/Aves/{label}/{first + index}.jpg"}
            for index, label in enumerate((7, 12))
        ]
        annotations = [{"image_id": first + index, "category_id": label} for index, label in enumerate((7, 12))]
        for image in images:
            write_image(folder / str(image["file_name"]))
        (folder / f"{split}2018.json").write_text(json.dumps({"images": images, "annotations": annotations[::-1]}))
    return {"7": 1, "12": 1}, {"7": 1, "12": 1}


def inat2021(root: Path, _: pytest.MonkeyPatch) -> Made:
    names = [f"{index:05d}_Animalia_a_b_c_d_e_{name}" for index, name in enumerate(("x", "y"))]
    for version, count in (("2021_train", 2), ("2021_valid", 1)):
        for name in names:
            for index in range(count):
                write_image(root / "inaturalist" / version / name / f"{index}.jpg")
    return dict.fromkeys(names, 2), dict.fromkeys(names, 1)


def tiny_imagenet(root: Path, _: pytest.MonkeyPatch) -> Made:
    folder = root / "tiny-imagenet-200"
    lines = []
    for label, wnid in enumerate(("n01443537", "n01629819")):
        for index in range(2):
            write_image(folder / f"train/{wnid}/images/{wnid}_{index}.JPEG", label)
        (folder / f"train/{wnid}/{wnid}_boxes.txt").write_text("as published")
        write_image(folder / f"val/images/val_{label}.JPEG", label)
        lines.append(f"val_{label}.JPEG\t{wnid}\t0\t0\t9\t9\n")
    (folder / "val/val_annotations.txt").write_text("".join(lines))
    return {"n01443537": 2, "n01629819": 2}, {"n01443537": 1, "n01629819": 1}


def vtab(name: str) -> Callable:
    def make(root: Path, _: pytest.MonkeyPatch) -> Made:
        folder = root / "vtab-1k" / name
        for split, file, count in (("train", "train800val200.txt", 2), ("test", "test.txt", 1)):
            lines = [f"images/{split}/{label}_{index}.jpg {label}" for label in (0, 1) for index in range(count)]
            for line in lines:
                write_image(folder / line.split()[0])
            (folder / file).write_text("\n".join(lines) + "\n")
        return {"0": 2, "1": 2}, {"0": 1, "1": 1}

    return make


BATCHES = [f"data_batch_{number}" for number in range(1, 6)]
MAKERS: dict[str, Callable[[Path, pytest.MonkeyPatch], Made]] = {
    "cifar10": cifar(
        "CIFAR10", "cifar-10-batches-py", (BATCHES, ["test_batch"]), "labels", "batches.meta", "label_names"
    ),
    "cifar100": cifar("CIFAR100", "cifar-100-python", (["train"], ["test"]), "fine_labels", "meta", "fine_label_names"),
    **{maker.__name__: maker for maker in (food101, pets, flowers, cars, aircraft, dtd, sun397, caltech101)},
    **{maker.__name__: maker for maker in (inat2018, inat2021, tiny_imagenet)},
    **{f"vtab_{name}": vtab(name) for name in VTAB},
}


@pytest.mark.parametrize("name", READY)
def test_a_published_set_is_read_as_it_is_published(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = MAKERS[name](tmp_path, monkeypatch)
    (one,) = sets.choose([name], tmp_path)
    read = one.read(identities=one.identities(DataIdentities(tmp_path, tmp_path / "manifests")))
    for images, of_class in zip(read, expected, strict=True):
        assert Counter(images.classes[label] for label in images.labels) == of_class
        assert all(min(read_image(file).size) >= 8 for file in images.files)
        assert len({str(file) for file in images.files}) == len(images)
    assert set(differences(sizes(*read))) == {f"{name}_train", f"{name}_val"}, "a part of it is not marked"
    assert (one.count("train"), one.count("val")) == (READY[name].train, READY[name].val)
    assert check.check_labelled(one, subset=True).status == "part"


@pytest.mark.parametrize("name", ["cifar10", "cars", "tiny_imagenet"])
def test_what_is_not_as_published_is_named(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (one,) = sets.choose([name], tmp_path)
    with pytest.raises(Skip, match=f"{one.title} is not under .* is missing; "):
        one.read()
    MAKERS[name](tmp_path, monkeypatch)
    damaged = {
        "cifar10": "cifar-10-batches-py/data_batch_3",
        "cars": "stanford_cars/cars_test_annos_withlabels.mat",
        "tiny_imagenet": "tiny-imagenet-200/val/val_annotations.txt",
    }
    (tmp_path / damaged[name]).write_bytes(b"damaged")
    with pytest.raises(UserError, match=f"{one.title} below .* cannot be read .*unpack it as it is published"):
        one.read()


def test_tiny_imagenet_in_imagenets_place_is_told_where_it_belongs(tmp_path: Path) -> None:
    MAKERS["tiny_imagenet"](tmp_path, pytest.MonkeyPatch())
    (tmp_path / "tiny-imagenet-200").rename(tmp_path / "imagenet")
    with pytest.raises(UserError, match="as Tiny-ImageNet has in each class; .*--sets tiny_imagenet"):
        imagenet.train_set(tmp_path)


def test_the_pixels_of_cifar_are_those_of_its_archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    MAKERS["cifar10"](tmp_path, monkeypatch)
    _, val = sets.choose(["cifar10"], tmp_path)[0].read()
    content = pickle.loads((tmp_path / "cifar-10-batches-py/test_batch").read_bytes())
    pixels = np.array(read_image(val.files[-1]))
    assert np.array_equal(pixels, content["data"][3].reshape(3, 32, 32).transpose(1, 2, 0))


def test_a_ready_set_in_a_file_may_have_tasks_and_a_metric_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "my.toml").write_text('[pets]\ntask = "few_shot"\n[dtd]\nmetric = "mean_per_class"\n')
    pets, dtd = sets.choose([str(tmp_path / "my.toml")], tmp_path)
    assert (pets.title, pets.tasks, pets.metric) == ("Pets", ("few_shot",), "mean_per_class")
    assert (dtd.title, dtd.tasks, dtd.metric) == ("DTD", ("knn", "linear"), "mean_per_class")


def test_the_documentation_has_every_set_that_is_ready() -> None:
    text = (Path(sets.__file__).parents[2] / "docs/own_images.md").read_text()
    for name, row in READY.items():
        known = f"| `{name}` | {row.title} | {row.train:,} / {row.val:,} | {row.classes:,} |"
        assert (f"`{name}`" if name.startswith("vtab_") else known) in text, name
