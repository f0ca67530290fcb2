"""The gate of annotations: what it accepts is scored in full when the annotations are returned, all else it refuses.

A perfect detector gets 100 on every accepted file; changed files are refused in a sentence or give 100, and nothing
else happens. test_gate_of_labels.py has the same for a perfect segmenter.
"""

import copy
import json
import random
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as rle

from evaluate.data import check, coco, outlines, voc
from evaluate.mm.datasets import InstanceSet, VOCSet
from evaluate.mm.metrics import VOCAP, InstanceAP
from evaluate.mm.transforms import LargeScaleJitter, LoadImage
from evaluate.runtime.errors import UserError
from tests.worlds import xml

SIZE = (40, 60)  # height, width
MUTATIONS = 200
ODD_VALUES = (
    *(None, True, False, "1", "", [], {}, [[]], 0, -1, 1, 2, 7, 1.0, 1.5, -0.5, float("nan"), float("inf"), 1e300),
    *(10**30, 2**63, "../a.jpg", "/etc/a.jpg", "a.jpg", "\ud800", [1, 2, 3], [0, 0, 0, 0], [5, 5, 0, 0], [1e300] * 4),
    *([[1, 2, 3, 4]], [[5.0] * 6], [[1, 1, 9, 1, 9, 9, 1]], [[1, 1, 9, 1, 9, float("nan")]], [["1"] * 6], [[1e9] * 6]),
    *({"size": [40, 60], "counts": [5]}, {"size": [40, 60], "counts": "5"}, {"size": [1, 1], "counts": [1]}),
    *({"size": [40, 60], "counts": [2400]}, {"size": [60, 40], "counts": [0, 2400]}, {"counts": "~~"}, {"size": 3}),
)


def instances(first: int, lvis: bool, seed: int) -> dict[str, Any]:
    """Six pictures with polygons, run lengths in numbers and in a text, and (COCO) a crowd."""
    draw = np.random.default_rng(seed)
    categories = [
        {"id": i, "name": name, **({"frequency": f, "image_count": 1} if lvis else {})}
        for i, name, f in ((1, "a", "r"), (4, "b", "c"), (9, "c", "f"))
    ]
    images, annotations = [], []
    for number in range(first, first + 6):
        image: dict[str, Any] = {"id": number, "height": SIZE[0], "width": SIZE[1]}
        image |= {"coco_url": f"http://x/{'train' if first else 'val'}2017/{number}.jpg"}
        if not lvis:
            image["file_name"] = f"{number}.jpg"
        present = set()
        for form in range(3):
            category = int(draw.choice([1, 4, 9]))
            present.add(category)
            w, h = (int(draw.integers(6, 18)) for _ in range(2))
            x, y = int(draw.integers(0, SIZE[1] - w)), int(draw.integers(0, SIZE[0] - h))
            outline: Any = [[x, y, x + w, y, x + w, y + h, x, y + h]]
            packed = rle.merge(rle.frPyObjects(outline, *SIZE))
            if form == 1:
                outline = {"size": list(SIZE), "counts": packed["counts"].decode()}
            if form == 2:
                outline = {"size": list(SIZE), "counts": outlines.run_lengths(as_text(packed))}
            entry = {"id": len(annotations) + 1, "image_id": number, "category_id": category, "bbox": [x, y, w, h]}
            entry |= {"segmentation": outline, "area": w * h}
            annotations.append(entry if lvis else {**entry, "iscrowd": int(form == 2 and number == first)})
        if lvis:
            image |= {"neg_category_ids": sorted({1, 4, 9} - present), "not_exhaustive_category_ids": []}
        images.append(image)
    return {"images": images, "annotations": annotations, "categories": categories}


def as_text(packed: dict[str, Any]) -> dict[str, Any]:
    return {"size": packed["size"], "counts": packed["counts"].decode()}


def written(root: Path, lvis: bool, seed: int = 0) -> dict[str, dict[str, Any]]:
    """A whole data set below ``root``; its contents by split."""
    contents = {"train": instances(100, lvis, seed + 1), "val": instances(0, lvis, seed)}
    for split, content in contents.items():
        (root / f"coco/{split}2017").mkdir(parents=True)
        for image in content["images"]:
            Image.new("RGB", SIZE[::-1]).save(root / f"coco/{split}2017/{image['id']}.jpg")
        put(root, lvis, split, content)
    return contents


def put(root: Path, lvis: bool, split: str, content: Any) -> None:
    path = root / coco.ANNOTATIONS["lvis" if lvis else "coco"][split == "val"]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    coco.forget()


def perfect(root: Path, lvis: bool) -> dict[str, float]:
    """Metrics of the annotations themselves, through the gate, the data sets and the metric; a crowd is not found."""
    name = "lvis" if lvis else "coco"
    tested = coco.check_instances(root, name).tested
    train, val = (str(root / part) for part in coco.ANNOTATIONS[name])
    steps = [LoadImage(), LargeScaleJitter(32, (0.5, 2.0))]
    training = InstanceSet(train, str(root / "coco"), "train2017", steps, training=True)
    for index in range(len(training)):
        assert len(training[index, index]["gt_masks"]) <= len(training.categories_of(index))
    data = InstanceSet(val, str(root / "coco"), "val2017", [], training=False)
    assert len(data) == tested
    metric = InstanceAP(val, lvis, 300 if lvis else 100)
    owned = json.loads(Path(val).read_text())["annotations"]
    for sample in data:
        own = [a for a in owned if a["image_id"] == sample["img_id"] and not a.get("iscrowd")]
        boxes = torch.tensor([a["bbox"] for a in own]).reshape(-1, 4).double()
        boxes[:, 2:] += boxes[:, :2]
        masks = [rle.decode(encoded(a["segmentation"])) for a in own]
        predicted = {
            "bboxes": boxes,
            "scores": torch.full((len(own),), 0.9),
            "labels": torch.tensor([data.labels[a["category_id"]] for a in own], dtype=torch.long),
            "masks": torch.from_numpy(np.array(masks, np.uint8).reshape(-1, *SIZE)),
        }
        metric.process(None, [{"img_id": sample["img_id"], "pred_instances": predicted}])
    return metric.compute_metrics(metric.results)


def encoded(outline: Any) -> Any:
    if isinstance(outline, list):
        return rle.merge(rle.frPyObjects(outline, *SIZE))
    return rle.frPyObjects(outline, *SIZE) if isinstance(outline["counts"], list) else outline


def require_full(metrics: dict[str, float]) -> None:
    wrong = {name: value for name, value in metrics.items() if name != "images" and abs(value - 100) > 1e-9}
    assert not wrong


@pytest.mark.parametrize("lvis", [False, True], ids=["coco", "lvis"])
@pytest.mark.parametrize("seed", range(3))
def test_a_perfect_detector_gets_all(lvis: bool, seed: int, tmp_path: Path) -> None:
    contents = written(tmp_path, lvis, seed)
    require_full(perfect(tmp_path, lvis))
    for number, annotation in enumerate(contents["val"]["annotations"]):
        annotation["id"] = number  # from 0 on, as several tools write them
        annotation.pop("area"), annotation.pop("iscrowd", None)
    put(tmp_path, lvis, "val", contents["val"])
    require_full(perfect(tmp_path, lvis))
    for annotation in contents["val"]["annotations"]:
        del annotation["id"]
    put(tmp_path, lvis, "val", contents["val"])
    require_full(perfect(tmp_path, lvis))


def places(value: Any, place: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The place of everything in a json, by kind of place: a list's entries are one kind."""
    found = [place] if place else []
    for key, part in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        found += places(part, (*place, key))
    return found


def mutate(content: dict[str, Any], draw: random.Random) -> str:
    """Changes, removes or repeats one thing somewhere; says what."""
    kinds: dict[Any, list[tuple[Any, ...]]] = {}
    for place in places(content):
        kinds.setdefault(tuple(key if isinstance(key, str) else "*" for key in place), []).append(place)
    *path, last = draw.choice(kinds[draw.choice(sorted(kinds))])
    holder = content
    for key in path:
        holder = holder[key]
    action = draw.choice(["odd", "odd", "odd", "gone", "twice"])
    if action == "gone":
        del holder[last]
    elif action == "twice" and isinstance(holder, list):
        holder.append(copy.deepcopy(holder[last]))
    else:
        holder[last] = copy.deepcopy(draw.choice(ODD_VALUES))
    return f"{action} {[*path, last]} {holder[last]!r}" if action == "odd" else f"{action} {[*path, last]}"


@pytest.mark.parametrize("lvis", [False, True], ids=["coco", "lvis"])
def test_a_changed_file_is_refused_or_scored(lvis: bool, tmp_path: Path) -> None:
    contents = written(tmp_path, lvis)
    name, refused = "lvis" if lvis else "coco", 0
    for seed in range(MUTATIONS):
        draw = random.Random(seed)
        split = draw.choice(["train", "val", "val"])
        changed = copy.deepcopy(contents[split])
        what = f"seed {seed}, {split}: {mutate(changed, draw)}"
        put(tmp_path, lvis, split, changed)
        (finding,) = check.check(tmp_path, [name])
        try:
            require_full(perfect(tmp_path, lvis))
            assert finding.status in ("ok", "part"), what
        except UserError as error:
            refused += 1
            assert finding.status == "wrong" and finding.detail == str(error), what
            assert "\n" not in str(error), what
        except Exception as error:
            raise AssertionError(what) from error
        put(tmp_path, lvis, split, contents[split])
    assert MUTATIONS // 4 < refused < MUTATIONS


FAULTS: dict[str, tuple[str, str, str, Any, str]] = {  # split, list, field of its first entry, value, what is said
    "an image id that is true": ("val", "images", "id", True, "id of image number 0 is True"),
    "an image id that is no whole number": ("val", "images", "id", 1.0, "id of image number 0 is 1.0"),
    "a negative image id": ("val", "images", "id", -1, "id of image number 0 is -1"),
    "an annotation id as a text": ("val", "annotations", "id", "1", "id of annotation number 0 is '1'"),
    "an annotation id twice": ("train", "annotations", "id", 2, "annotation id 2 is there twice"),
    "a width of none": ("train", "images", "width", 0, "has the width 0"),
    "a name above": ("train", "images", "file_name", "../train2017/100.jpg", "leads out of the folder"),
    "an absolute name": ("val", "images", "file_name", "/0.jpg", "leads out of the folder"),
    "a name twice": ("val", "images", "file_name", "./1.jpg", "images 0 and 1 have the same file_name"),
    "no name": ("val", "images", "file_name", 3, "should be the name of a picture"),
    "a negative width": ("train", "annotations", "bbox", [9, 9, -3, 4], "must not be negative"),
    "three numbers": ("train", "annotations", "bbox", [9, 9, 3], "should be four finite numbers"),
    "not finite": ("val", "annotations", "bbox", [9, 9, float("nan"), 4], "should be four finite numbers"),
    "a box without area": ("val", "annotations", "bbox", [9, 9, 0, 4], "cannot be found"),
    "a box outside": ("val", "annotations", "bbox", [60, 9, 5, 4], "cannot be found"),
    "a crowd of two": ("val", "annotations", "iscrowd", 2, "has iscrowd 2"),
    "an area as a text": ("val", "annotations", "area", "9", "has the area '9'"),
    "an area that is ignored": ("val", "annotations", "area", 1e11, "has the area"),
    "no outline": ("val", "annotations", "segmentation", None, "fewer than three points"),
    "not a number": ("train", "annotations", "segmentation", [[1, 1, 9, 1, 9, float("nan")]], "finite numbers"),
    "far away": ("train", "annotations", "segmentation", [[1, 1, 9e9, 1, 9, 9]], "near its picture"),
    "an odd count": ("val", "annotations", "segmentation", [[1, 1, 9, 1, 9, 9, 1]], "odd count"),
    "an outline without area": ("val", "annotations", "segmentation", [[1, 1, 9, 9, 5, 5]], "without area"),
    "runs cut off": ("train", "annotations", "segmentation", {"size": [40, 60], "counts": [0, 9]}, "of 9 pixels"),
    "runs of another size": ("val", "annotations", "segmentation", {"size": [60, 40], "counts": [0, 2400]}, "the size"),
    "a category's name twice": ("train", "categories", "name", "b", "name 'b' is there twice"),
    "a category's id as a text": ("train", "categories", "id", "1", "id of category number 0 is '1'"),
    "a negative list": ("lvis val", "images", "neg_category_ids", None, "has no list neg_category_ids"),
    "an unlisted category": ("lvis val", "images", "not_exhaustive_category_ids", [77], "no list not_exhaustive"),
    "no frequency": ("lvis val", "categories", "frequency", None, "has the frequency None"),
    "no count": ("lvis train", "categories", "image_count", None, "without image_count"),
    "a url of a name alone": ("lvis val", "images", "coco_url", "0.jpg", "leads out of the folder"),
}


@pytest.mark.parametrize(("split", "entries", "field", "value", "says"), FAULTS.values(), ids=FAULTS)
def test_a_fault_is_named(split: str, entries: str, field: str, value: Any, says: str, tmp_path: Path) -> None:
    lvis, split = split.startswith("lvis"), split.split()[-1]
    content = written(tmp_path, lvis)[split]
    content[entries][0][field] = value
    put(tmp_path, lvis, split, content)
    with pytest.raises(UserError) as raised:
        coco.check_instances(tmp_path, "lvis" if lvis else "coco")
    assert says in str(raised.value) and str(tmp_path) in str(raised.value) and "\n" not in str(raised.value)


def test_a_published_set_is_scored_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = written(tmp_path, lvis=False)["val"]
    content["annotations"][0]["bbox"] = [9, 9, 0, 4]
    put(tmp_path, False, "val", content)
    monkeypatch.setattr(coco, "PUBLISHED_VAL", {(len(content["images"]), len(content["categories"]))})
    assert coco.check_instances(tmp_path, "coco")


def test_train_and_val_have_the_same_categories(tmp_path: Path) -> None:
    contents = written(tmp_path, lvis=False)
    contents["val"]["categories"].append({"id": 12, "name": "d"})
    put(tmp_path, False, "val", contents["val"])
    with pytest.raises(UserError, match="has 3 categories and .* 4"):
        coco.check_instances(tmp_path, "coco")
    contents["train"]["categories"].append({"id": 12, "name": "e"})
    put(tmp_path, False, "train", contents["train"])
    with pytest.raises(UserError, match="12 'e' where .* has 12 'd'"):
        coco.check_instances(tmp_path, "coco")


def test_a_val_picture_of_another_size_is_named(tmp_path: Path) -> None:
    written(tmp_path, lvis=False)
    Image.new("RGB", (50, 40)).save(tmp_path / "coco/val2017/3.jpg")
    with pytest.raises(UserError, match="3.jpg is 50 x 40 pixels"):
        coco.check_instances(tmp_path, "coco")


def test_what_cannot_be_learnt_is_counted(tmp_path: Path) -> None:
    contents = written(tmp_path, lvis=False)
    for number, outline in enumerate((None, [], [[1, 1, 5, 5]], {"size": list(SIZE), "counts": [2400]}), 3):
        contents["train"]["annotations"][number]["segmentation"] = outline
    put(tmp_path, False, "train", contents["train"])
    assert coco.check_instances(tmp_path, "coco").left_out == 4
    (finding,) = check.check(tmp_path, ["coco"])
    assert finding.detail.endswith("objects without a usable box or outline: 4)")


@pytest.mark.parametrize("seed", range(20))
def test_packed_run_lengths_equal_the_mask_api(seed: int) -> None:
    mask = np.random.default_rng(seed).random((31, 17)) < (0.02, 0.5, 0.98)[seed % 3]
    packed = as_text(rle.encode(np.asfortranarray(mask.astype(np.uint8))))
    counts = outlines.run_lengths(packed)
    assert sum(counts) == mask.size and sum(counts[1::2]) == mask.sum()
    assert np.array_equal(np.repeat(np.arange(len(counts)) % 2, counts).reshape(17, 31).T, mask)


def voc_world(root: Path) -> Path:
    for part, names in (("2007/trainval", "abc"), ("2012/trainval", "def"), ("2007/test", "ghi")):
        year, split = part.split("/")
        for folder in ("Annotations", "JPEGImages", "ImageSets/Main"):
            (root / f"VOC{year}" / folder).mkdir(parents=True, exist_ok=True)
        (root / f"VOC{year}/ImageSets/Main/{split}.txt").write_text("\n".join(names))
        for k, name in enumerate(names):
            Image.new("RGB", SIZE[::-1]).save(root / f"VOC{year}/JPEGImages/{name}.jpg")
            objects = [("cat", 0, (1, 1, 20 + k, 30)), ("dog", 0, (5, 6, 60, 40)), ("car", 1, (9, 9, 14, 12))]
            (root / f"VOC{year}/Annotations/{name}.xml").write_text(xml(*SIZE[::-1], objects))
    return root


def perfect_boxes(root: Path) -> dict[str, float]:
    voc.check_voc(root)
    VOCSet(str(root), str(root), "+".join(voc.PARTS["trainval"]), [], training=True)
    metric, content = VOCAP(str(root), "2007/test"), voc.read_voc(root, voc.PARTS["test"])
    for image in content["images"]:
        own = [a for a in content["annotations"] if a["image_id"] == image["id"]]
        boxes = torch.tensor([a["bbox"] for a in own]).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        predicted = {"bboxes": boxes, "scores": torch.ones(len(own))}
        predicted["labels"] = torch.tensor([a["category_id"] for a in own], dtype=torch.long)
        metric.process(None, [{"img_id": image["id"], "pred_instances": predicted}])
    return metric.compute_metrics(metric.results)


def test_voc_is_refused_or_scored(tmp_path: Path) -> None:
    root = voc_world(tmp_path / "VOCdevkit")
    require_full(perfect_boxes(root))
    path, refused = root / "VOC2007/Annotations/h.xml", 0
    text = path.read_text()
    for seed in range(MUTATIONS // 2):
        draw = random.Random(seed)
        parts = text.replace("<", "\n<").replace(">", ">\n").split("\n")
        values = [k for k, part in enumerate(parts) if part and not part.startswith("<")]
        chosen = draw.choice([*values, draw.randrange(len(parts))])
        parts[chosen] = draw.choice(["", "0", "-1", "1", "3.5", "61", "62", "nan", "inf", "1e400", "dragon", "<", "²"])
        path.write_text("".join(parts))
        (finding,) = check.check(tmp_path, ["voc"])
        try:
            require_full(perfect_boxes(root))
            assert finding.status in ("ok", "part"), parts
        except UserError as error:
            refused += 1
            assert finding.status == "wrong" and finding.detail == str(error), parts
    assert MUTATIONS // 8 < refused < MUTATIONS // 2
    outside = xml(*SIZE[::-1], [("cat", 0, (1, 1, 62, 30)), ("cat", 0, (1, 1, 20, 30))])
    for wrong in (outside, outside.replace("62", "0"), outside.replace("62", "nan")):
        path.write_text(wrong)
        with pytest.raises(UserError, match="h.xml .*is not inside 60 x 40"):
            voc.check_voc(root)
    path.write_text(text)
    (root / "VOC2007/JPEGImages/h.jpg").unlink()
    with pytest.raises(UserError, match="1 pictures that are not there.*h.jpg"):
        voc.check_voc(root)
    (root / "VOC2007/ImageSets/Main/test.txt").write_text("g\ng")
    with pytest.raises(UserError, match="test.txt names a picture twice"):
        voc.check_voc(root)


def test_the_file_is_parsed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The training json, of gigabytes when parsed, is read once by the gate and the data set, and then freed."""
    written(tmp_path, lvis=False)
    parsed: list[int] = []
    loads = json.loads
    monkeypatch.setattr(coco.json, "loads", lambda text: parsed.append(len(text)) or loads(text))
    coco.check_instances(tmp_path, "coco")
    InstanceSet(str(tmp_path / coco.ANNOTATIONS["coco"][0]), str(tmp_path / "coco"), "train2017", [], training=True)
    assert len(parsed) == 2
    path = tmp_path / coco.ANNOTATIONS["coco"][1]
    coco.read_annotations(path)
    time.sleep(0.01)
    path.write_text("{")
    with pytest.raises(UserError, match="not an instances file"):
        coco.read_annotations(path)
