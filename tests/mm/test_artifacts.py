"""What a dense test leaves beside its record: everything in it gives the record's numbers again."""

import contextlib
import copy
import csv
import gzip
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.evaluator import Evaluator
from pycocotools import mask as rle
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from evaluate import detection, segmentation
from evaluate.data.voc import CLASSES, read_voc
from evaluate.encoder.model import Encoder
from evaluate.mm import artifacts
from evaluate.mm.average_precision import average_precision
from evaluate.mm.detections import Detections
from evaluate.mm.metrics import IGNORED, VOCAP, InstanceAP, MeanIoU
from evaluate.runtime.env import Env
from tests.mm.detections import random_world
from tests.worlds import make_voc

KINDS = ("box_ap", "mask_ap")


def table_of(folder: Path, name: str = "classes.csv") -> list[dict[str, str]]:
    with (folder / name).open() as file:
        return list(csv.DictReader(file))


def detections_of(folder: Path) -> list[dict[str, Any]]:
    return json.loads(gzip.decompress((folder / "detections.json.gz").read_bytes()))


def readable(truth: dict) -> dict:
    """With run lengths as text, as JSON has them."""
    content = copy.deepcopy(truth)
    for annotation in content["annotations"]:
        annotation["segmentation"]["counts"] = annotation["segmentation"]["counts"].decode()
    for image in content["images"]:
        image["file_name"] = f"{image['id']}.jpg"
    return content


def kept(folder: Path, seed: int, lvis: bool) -> tuple[dict, dict[str, float]]:
    """A random world's truth and metrics; its files are in the folder."""
    truth, found = random_world(seed, lvis)
    for category in () if lvis else truth["categories"]:
        del category["frequency"]
    (folder / "truth.json").write_text(json.dumps(readable(truth)))
    metric = InstanceAP(str(folder / "truth.json"), lvis, 100)
    for image in truth["images"]:
        metric.results.append((image["id"], Detections.of([d for d in found if d["image_id"] == image["id"]])))
    metrics = metric.compute_metrics(metric.results)
    metric.save(folder)
    return readable(truth), metrics


@pytest.mark.parametrize("seed", range(3))
def test_the_detections_give_the_record_again_by_pycocotools(seed: int, tmp_path: Path) -> None:
    truth, metrics = kept(tmp_path, seed, lvis=False)
    found = detections_of(tmp_path)
    assert set(found[0]) == {"image_id", "category_id", "score", "bbox", "segmentation"}
    with contextlib.redirect_stdout(io.StringIO()):
        reference = COCO()
        reference.dataset = {"info": {}, **copy.deepcopy(truth)}
        reference.createIndex()
        for kind, name in (("bbox", "box_ap"), ("segm", "mask_ap")):
            left_out = "bbox" if kind == "segm" else "segmentation"
            results = [{key: value for key, value in one.items() if key != left_out} for one in found]
            evaluation = COCOeval(reference, reference.loadRes(results), kind)
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
            for key, value in zip((name, f"{name}50", f"{name}75"), evaluation.stats[:3], strict=True):
                assert metrics[key] == pytest.approx(100 * value, abs=1e-6)


def test_the_detections_of_lvis_give_the_record_again(tmp_path: Path) -> None:
    truth, metrics = kept(tmp_path, 3, lvis=True)
    found = detections_of(tmp_path)
    for one in found:
        one["segmentation"]["counts"] = one["segmentation"]["counts"].encode()
    ids = [image["id"] for image in truth["images"]]
    again = average_precision(truth, Detections.of(found), ids, True, 100)
    assert {**again, "images": 12} == pytest.approx(metrics, abs=1e-6)


@pytest.mark.parametrize("lvis", [False, True])
def test_numbers_by_class_and_curves_give_the_record_again(lvis: bool, tmp_path: Path) -> None:
    truth, metrics = kept(tmp_path, 1, lvis)
    table, curves = table_of(tmp_path), np.load(tmp_path / "precision_recall.npz")
    assert [int(row["id"]) for row in table] == [1, 3, 4, 8, 15] and [row["name"] for row in table][-1] == "15"
    assert [row.get("frequency") for row in table] == (list("rrccf") if lvis else [None] * 5)
    counts = [
        sum(a["category_id"] == int(row["id"]) and not a["iscrowd"] for a in truth["annotations"]) for row in table
    ]
    assert [int(row["instances"]) for row in table] == counts and min(counts) > 0
    assert np.array_equal(curves["recall"], np.linspace(0, 1, 101))
    for name in (f"{kind}{level}" for kind in KINDS for level in ("", "50", "75")):
        assert np.mean([float(row[name]) for row in table]) == pytest.approx(metrics[name])
        assert 100 * curves[name].mean() == pytest.approx(metrics[name], abs=1e-3)
    for kind in KINDS:
        by_class = 100 * curves[f"{kind}50_classes"].mean(axis=1)
        assert by_class == pytest.approx([float(row[f"{kind}50"]) for row in table], abs=1e-4)
        for letter, group in {"r": "rare", "c": "common", "f": "frequent"}.items() if lvis else ():
            own = [float(row[kind]) for row in table if row["frequency"] == letter]
            assert np.mean(own) == pytest.approx(metrics[f"{kind}_{group}"])


def test_a_class_without_objects_has_an_empty_cell_and_no_part_in_the_mean(tmp_path: Path) -> None:
    precision = np.full((10, 101, 3), -1.0)
    precision[..., 0], precision[..., 2] = 0.25, 0.75
    categories = [{"id": number, "name": name} for number, name in enumerate(("a", 'b,"', "c"))]
    artifacts.write_instances(tmp_path, categories, [2, 0, 5], {"box_ap": precision}, np.linspace(0, 1, 101))
    table = table_of(tmp_path)
    assert [row["box_ap"] for row in table] == ["25.0", "", "75.0"] and table[1]["name"] == 'b,"'
    assert set(np.load(tmp_path / "precision_recall.npz")["box_ap"]) == {0.5}


def test_the_boxes_of_voc_give_the_record_again(world: Path, tmp_path: Path) -> None:
    root = make_voc(tmp_path, world) / "VOCdevkit"
    content, rng = read_voc(root, ["2007/test"]), np.random.default_rng(0)
    metric, again = VOCAP(str(root), "2007/test"), VOCAP(str(root), "2007/test")
    for image in content["images"]:
        own = [a for a in content["annotations"] if a["image_id"] == image["id"] for _ in range(2)]
        boxes = torch.tensor([a["bbox"] for a in own]).reshape(-1, 4).float()
        boxes[:, 2:] += boxes[:, :2]
        boxes += torch.from_numpy(rng.normal(0, 2, boxes.shape)).float()
        predicted = {"bboxes": boxes, "scores": torch.from_numpy(rng.random(len(own))).float()}
        predicted["labels"] = torch.tensor([a["category_id"] for a in own], dtype=torch.long)
        metric.process(None, [{"img_id": image["id"], "pred_instances": predicted}])
    metrics = metric.compute_metrics(metric.results)
    metric.save(tmp_path)
    table = table_of(tmp_path)
    assert [row["name"] for row in table] == list(CLASSES) and "" in [row["box_ap"] for row in table]
    assert np.mean([float(row["box_ap"]) for row in table if row["box_ap"]]) == pytest.approx(metrics["box_ap"])
    assert 100 * np.load(tmp_path / "precision_recall.npz")["box_ap50"].mean() == pytest.approx(
        metrics["box_ap50"], abs=1e-3
    )
    assert 0 < metrics["box_ap"] < 100
    found = detections_of(tmp_path)
    for image in content["images"]:
        own = [one for one in found if one["image_id"] == image["id"]]
        boxes = torch.tensor([one["bbox"] for one in own]).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        predicted = {"bboxes": boxes, "scores": torch.tensor([one["score"] for one in own])}
        predicted["labels"] = torch.tensor([one["category_id"] for one in own], dtype=torch.long)
        again.process(None, [{"img_id": image["id"], "pred_instances": predicted}])
    assert again.compute_metrics(again.results) == pytest.approx(metrics, abs=1e-6)


def test_the_confusion_is_a_loop_over_pixels_and_gives_the_record_again(tmp_path: Path) -> None:
    rng, names = np.random.default_rng(0), ("sky", "tree", "car, red", "never")
    metric = MeanIoU()
    metric.dataset_meta = {"classes": names}
    expected = np.zeros((4, 4), np.int64)
    for _ in range(3):
        truth, predicted = rng.integers(0, 3, (9, 11)), rng.integers(0, 3, (9, 11))
        truth[0] = IGNORED
        for right, said in zip(truth.ravel(), predicted.ravel(), strict=True):
            if right != IGNORED:
                expected[right, said] += 1
        maps = {"pred_sem_seg": predicted, "gt_sem_seg": truth}
        metric.process(None, [{name: {"data": torch.from_numpy(one)[None]} for name, one in maps.items()}])
    metrics = metric.compute_metrics(metric.results)
    evaluator = Evaluator([metric])
    artifacts.save(tmp_path, evaluator)
    artifacts.save(tmp_path, evaluator, "_ms")
    assert (tmp_path / "confusion_ms.npz").read_bytes() == (tmp_path / "confusion.npz").read_bytes()
    left = np.load(tmp_path / "confusion.npz")
    assert left["pixels"].dtype == np.int64 and np.array_equal(left["pixels"], expected)
    assert left["names"].tolist() == list(names)
    right = left["pixels"].diagonal()
    union = left["pixels"].sum(0) + left["pixels"].sum(1) - right
    assert 100 * (right / union.clip(1))[union > 0].mean() == pytest.approx(metrics["miou"])
    assert 100 * right.sum() / left["pixels"].sum() == pytest.approx(metrics["aacc"])
    table = table_of(tmp_path)
    assert [row["name"] for row in table] == list(names) and table[3]["iou"] == table[3]["accuracy"] == ""
    assert np.mean([float(row["iou"]) for row in table[:3]]) == pytest.approx(metrics["miou"])
    assert [int(row["pixels"]) for row in table] == expected.sum(1).tolist()


def test_the_tasks_leave_them(encoder: Encoder, world: Path, tmp_path: Path) -> None:
    names = {"detection": {"classes.csv", "precision_recall.npz", "detections.json.gz"}}
    names["segmentation"] = {"classes.csv", "confusion.npz", "classes_ms.csv", "confusion_ms.npz"}
    for task, module, changes in (("detection", detection, {}), ("segmentation", segmentation, {"multi_scale": True})):
        (tmp_path / task).mkdir()
        config = module.Config(recipe="demo", iterations=2, **changes)  # type: ignore[attr-defined]
        metrics = module.run(encoder, config, Env(world, tmp_path / task, limit=4))  # type: ignore[attr-defined]
        assert names[task] <= {path.name for path in (tmp_path / task).iterdir()}
        value = {"detection": "box_ap", "segmentation": "iou"}[task]
        own = [float(row[value]) for row in table_of(tmp_path / task) if row[value]]
        assert np.mean(own) == pytest.approx(metrics["box_ap" if task == "detection" else "miou"])
        assert not (tmp_path / task / "model.pth").exists(), "a model is kept only when that is asked for"
    several = [float(row["iou"]) for row in table_of(tmp_path / "segmentation", "classes_ms.csv") if row["iou"]]
    assert np.mean(several) == pytest.approx(metrics["miou_ms"])


@pytest.mark.parametrize("module", [detection, segmentation], ids=["coco", "ade20k"])
def test_a_kept_model_is_the_one_that_was_tested(
    module: Any, encoder: Encoder, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from evaluate.mm import runner

    tested: list[dict[str, torch.Tensor]] = []
    test = runner.QuickRunner.test

    def keep(self: runner.QuickRunner) -> dict[str, float]:
        tested.append({name: value.clone() for name, value in self.model.state_dict().items()})
        return test(self)

    monkeypatch.setattr(runner.QuickRunner, "test", keep)
    for again in (False, True):  # as a task does that was killed after its training
        (tmp_path / "model.pth").unlink(missing_ok=True)
        module.run(encoder, module.Config(recipe="demo", iterations=2), Env(world, tmp_path, limit=4, keep_models=True))
        kept = torch.load(tmp_path / "model.pth", weights_only=True)
        assert kept["state_dict"].keys() == tested[again].keys()
        assert all(torch.equal(value, tested[again][name]) for name, value in kept["state_dict"].items())
    assert kept["meta"]["encoder"] == encoder.fingerprint and kept["meta"]["iterations"] == 2
    assert len(kept["meta"]["classes"]) > 1
    size = sum(value.nbytes for value in kept["state_dict"].values())
    assert size < (tmp_path / "model.pth").stat().st_size < 1.1 * size + 3e5


def test_the_same_detections_are_the_same_bytes_and_none_are_a_list(tmp_path: Path) -> None:
    for folder in ("a", "b", "c"):
        (tmp_path / folder).mkdir()
    for folder in ("a", "b"):
        artifacts.write_detections(tmp_path / folder, [{"image_id": 3, "score": artifacts.short(0.1)}])
    artifacts.write_detections(tmp_path / "c", [])
    first, second = ((tmp_path / folder / "detections.json.gz").read_bytes() for folder in ("a", "b"))
    assert first == second and detections_of(tmp_path / "c") == []
    scores = np.random.default_rng(0).random(1000).astype(np.float32)
    assert np.array_equal(np.array([artifacts.short(float(score)) for score in scores], np.float32), scores)


def of_ellipses(images: int, of_image: int) -> Detections:
    """Detections with masks about as large and as rough as COCO's, on pictures of 480 x 640."""
    rng, found = np.random.default_rng(0), []
    rows, columns = np.mgrid[:480, :640]
    for image in range(images):
        for _ in range(of_image):
            x, y, width, height = rng.uniform(0, 640), rng.uniform(0, 480), *np.exp(rng.normal(4.2, 0.9, 2)) / 2
            angle = np.arctan2(rows - y, columns - x)
            edge = 1 + sum(rng.normal(0, 0.1) * np.cos(k * angle + rng.uniform(0, 6)) for k in range(1, 7))
            mask = (((columns - x) / width) ** 2 + ((rows - y) / height) ** 2 < edge**2).astype(np.uint8)
            box = [float(np.float32(value)) for value in (x, y, width, height)]
            found.append({"image_id": image * 371, "category_id": int(rng.integers(1, 91)), "bbox": box})
            found[-1] |= {
                "score": float(np.float32(rng.beta(0.3, 2))),
                "segmentation": rle.encode(np.asfortranarray(mask)),
            }
    return Detections.of(found)


def test_the_detections_of_coco_have_some_hundred_megabytes(tmp_path: Path) -> None:
    """Of 5,000 images with 100 each; measured on two."""
    artifacts.write_detections(tmp_path, of_ellipses(2, 100).scored(100))
    size = (tmp_path / "detections.json.gz").stat().st_size * 5000 / 2
    print(f"{size / 1e6:.0f} MB")
    assert size < 200e6
