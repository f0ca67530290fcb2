"""Reading the dense sets: what is learnt, what is refused, and that only its place in the stream changes a sample."""

import gc
import json
import multiprocessing
import shutil
from collections.abc import Sequence
from itertools import islice
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from evaluate.data.coco import read_annotations
from evaluate.data.toy_dense import run_lengths
from evaluate.mm.datasets import InstanceSet, Packed, SegmentationSet, polygons_of
from evaluate.mm.sampler import TrainingSampler
from evaluate.mm.transforms import LargeScaleJitter, LoadImage, LoadLabels, LoadPicture
from evaluate.runtime.errors import UserError

FORK = multiprocessing.get_context("fork")
SQUARE = [[10.0, 10.0, 30.0, 10.0, 30.0, 30.0, 10.0, 30.0]]


def written(folder: Path, annotations: list[dict], size: tuple[int, int] = (60, 40), **image_changes) -> Path:
    (folder / "train2017").mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size).save(folder / "train2017" / "a.jpg")
    image = {"id": 1, "width": 60, "height": 40, "file_name": "a.jpg", **image_changes}
    path = folder / "instances.json"
    categories = [{"id": 7, "name": "late"}, {"id": 2, "name": "early"}]
    path.write_text(json.dumps({"images": [image], "categories": categories, "annotations": annotations}))
    return path


def annotation(**changes) -> dict:
    return {
        "id": 1,
        "image_id": 1,
        "category_id": 7,
        "bbox": [10, 10, 20, 20],
        "area": 400,
        "segmentation": SQUARE,
        "iscrowd": 0,
        **changes,
    }


def opened(path: Path, pipeline: list | None = None) -> InstanceSet:
    return InstanceSet(str(path), str(path.parent), "train2017", pipeline or [], training=True)


def test_classes_come_in_the_order_of_their_ids(tmp_path: Path) -> None:
    data = opened(written(tmp_path, [annotation()]))
    assert data.metainfo["classes"] == ("early", "late") and data[0]["labels"] == [1]


def test_what_is_learnt(tmp_path: Path) -> None:
    """A crowd, two points and a box without area are left out; run lengths and polygons mix; one pixel is enough."""
    mask = np.zeros((40, 60), bool)
    mask[5:9, 6:12] = True
    data = opened(
        written(
            tmp_path,
            [
                annotation(id=1),
                annotation(id=2, iscrowd=1, segmentation={"size": [40, 60], "counts": run_lengths(mask)}),
                annotation(id=3, segmentation=[[1, 1, 5, 5]]),
                annotation(id=4, bbox=[1, 1, 0, 5]),
                annotation(id=5, segmentation={"size": [40, 60], "counts": run_lengths(mask)}),
                annotation(id=6, bbox=[3, 3, 1, 1], segmentation=[[3, 3, 4, 3, 4, 4, 3, 4]]),
            ],
        )
    )
    sample = data[0]
    assert len(sample["labels"]) == 3
    traced = sample["polygons"][1][0].reshape(-1, 2)
    assert np.abs(traced.min(0) - [6, 5]).max() <= 0.5 and np.abs(traced.max(0) - [12, 9]).max() <= 0.5


def test_a_forked_process_reads_every_sample_without_a_copy_of_them() -> None:
    """As a list they would cost it their whole size: each object that is read counts a reference."""
    draw = np.random.default_rng(0)
    samples = [{"img_id": number, "objects": [(0, draw.random((4, 60)).tolist())]} for number in range(4000)]
    packed = Packed(iter(samples))
    assert len(packed) == 4000 and packed[3999] == samples[3999] == packed[-1]
    assert list(packed) == samples
    with pytest.raises(IndexError):
        packed[4000]
    grown = {"array": private_growth(packed), "list": private_growth(samples)}
    print(f"{len(packed.bytes) / 2**20:.0f} MiB; grown by {grown} MiB")
    assert grown["array"] < 3 < grown["list"]


def private_growth(samples: Sequence[dict]) -> float:
    """MiB of its own that a forked process takes to read all samples."""

    def read(sender: Connection) -> None:
        gc.disable()  # a collection would write into every object
        before = private()
        total = sum(np.asarray(sample["objects"][0][1]).size for sample in samples)
        sender.send((total, (private() - before) / 1024))

    def private() -> int:
        lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("Private_Dirty"))

    receiver, sender = FORK.Pipe(duplex=False)
    child = FORK.Process(target=read, args=(sender,))
    child.start()
    total, grown = receiver.recv()
    child.join()
    assert total == 4 * 60 * len(samples)
    return grown


def test_an_image_of_crowds_only_is_left_out(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="instances.json"):
        opened(written(tmp_path, [annotation(iscrowd=1)]))


@pytest.mark.parametrize("changes", [{"image_id": 5}, {"category_id": 99}], ids=["image", "category"])
def test_an_annotation_of_nothing_is_refused(tmp_path: Path, changes: dict) -> None:
    with pytest.raises(UserError, match="annotation 1 .*does not list"):
        read_annotations(written(tmp_path, [annotation(**changes)]))


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"images": [], "categories": [], "annotations": []}'])
def test_a_broken_file_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "broken.json"
    path.write_text(text)
    with pytest.raises(UserError, match="broken.json"):
        read_annotations(path)


def test_pictures_that_do_not_fit(tmp_path: Path) -> None:
    data = opened(written(tmp_path, [annotation()], size=(50, 40)), [LoadImage()])
    with pytest.raises(UserError, match="a.jpg is 50 x 40"):
        data[0]
    (tmp_path / "train2017/a.jpg").write_bytes(b"\xff\xd8")
    with pytest.raises(UserError, match="a.jpg.*cannot be read"):
        data[0]
    (tmp_path / "train2017/a.jpg").unlink()
    with pytest.raises(UserError, match="a.jpg.*cannot be read"):
        data[0]


def painted(world: Path, folder: Path) -> tuple[str, str, str]:
    """The world's training annotations beside pictures that show their objects alone, the first category's in red."""
    source = world / "coco/annotations/instances_train2017.json"
    content = json.loads(source.read_text())
    first = min(category["id"] for category in content["categories"])
    (folder / "train2017").mkdir()
    for image in content["images"]:
        picture = Image.new("RGB", (image["width"], image["height"]), (90, 90, 90))
        for one in content["annotations"]:
            if one["image_id"] == image["id"] and not one["iscrowd"]:
                color = (220, 30, 30) if one["category_id"] == first else (30, 30, 220)
                ImageDraw.Draw(picture).polygon(one["segmentation"][0], fill=color)
        picture.save(folder / "train2017" / image["file_name"], quality=95)
    return str(source), str(folder), "train2017"


def test_jitter_moves_image_box_and_mask_together(world: Path, tmp_path: Path) -> None:
    """The mask's pixels have the color of the object after any jitter; boxes enclose their masks."""
    data = InstanceSet(*painted(world, tmp_path), [LoadImage(), LargeScaleJitter(64, (0.5, 2.0))], training=True)
    kept = 0
    for place in range(20):
        sample = data[place, place % len(data)]
        masks = sample["gt_masks"].to_ndarray().astype(bool)
        boxes = sample["gt_bboxes"].tensor.numpy()
        assert sample["img"].shape[:2] == sample["img_shape"] == masks.shape[1:] and max(sample["img_shape"]) <= 64
        for mask, box, label in zip(masks, boxes, sample["gt_bboxes_labels"], strict=True):
            assert (box >= 0).all() and (box <= 64).all()
            if mask.sum() < 150:
                continue
            kept += 1
            rows, columns = np.nonzero(mask)
            assert abs(columns.min() - box[0]) <= 1.5 and abs(rows.max() + 1 - box[3]) <= 1.5
            if label == 0:  # red
                red, green, blue = np.median(sample["img"][mask], axis=0)
                assert red > max(green, blue) + 40
    assert kept > 10


def test_a_sample_depends_on_its_place_only(world: Path) -> None:
    paths = (str(world / "coco/annotations/instances_train2017.json"), str(world / "coco"), "train2017")
    data = InstanceSet(*paths, [LoadImage(), LargeScaleJitter(64, (0.5, 2.0))], training=True, seed=3)
    first = data[5, 2]["img"]
    np.random.seed(9)
    assert np.array_equal(data[5, 2]["img"], first)
    assert data[6, 2]["img"].shape != first.shape or not np.array_equal(data[6, 2]["img"], first)


def test_the_stream_goes_on_where_it_was_left() -> None:
    class Data:
        def __len__(self) -> int:
            return 7

        def categories_of(self, index: int) -> list[int]:
            return [0] if index else [0, 1]

    whole = list(islice(TrainingSampler(Data(), 0.5, seed=1), 40))
    later = TrainingSampler(Data(), 0.5, seed=1)
    later.skip(15)
    assert list(islice(later, 25)) == whole[15:]
    assert [place for place, _ in whole] == list(range(40))
    counts = np.bincount([index for _, index in islice(TrainingSampler(Data(), 0.5, seed=1), 4000)])
    assert counts[0] / counts[1:].mean() == pytest.approx((0.5 * 7) ** 0.5, rel=0.1)


def test_lvis_pictures_follow_their_url(world: Path) -> None:
    data = InstanceSet(
        str(world / "lvis/lvis_v1_val.json"), str(world / "coco"), "nowhere", [LoadImage()], training=False
    )
    assert data[0]["img"].ndim == 3 and "val2017" in data[0]["img_path"]


@pytest.fixture
def ade20k(world: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(world / "ade20k", tmp_path / "ade20k"))


def test_ade20k_labels_are_shifted(ade20k: Path) -> None:
    data = SegmentationSet(str(ade20k), "validation", [LoadPicture(), LoadLabels()])
    sample = data[0]
    raw = np.array(Image.open(sample["seg_map_path"]))
    assert len(data.metainfo["classes"]) == 7
    assert set(np.unique(raw)) >= {0, 7}
    assert (sample["gt_seg_map"][raw == 0] == 255).all() and (sample["gt_seg_map"][raw == 7] == 6).all()


def test_ade20k_bad_files_are_named(ade20k: Path) -> None:
    data = SegmentationSet(str(ade20k), "validation", [LoadPicture(), LoadLabels()])
    path = Path(data.samples[0]["seg_map_path"])
    labels = np.array(Image.open(path))
    for content, reason in (
        (np.where(labels == 7, 9, labels), "label 9"),
        (labels[1:], "pixels"),
        (np.stack([labels] * 3, 2), "one channel"),
    ):
        Image.fromarray(content.astype(np.uint8)).save(path)
        with pytest.raises(UserError, match=f"{path.name}.*{reason}"):
            data[0]
    path.unlink()
    with pytest.raises(UserError, match=path.stem):
        SegmentationSet(str(ade20k), "validation", [])


def test_polygons_with_too_few_points() -> None:
    assert polygons_of([[0, 0, 5, 5]], 9, 9) == [] and len(polygons_of([[0, 0, 5, 5, 0, 5]], 9, 9)) == 1
