"""Average precision equals pycocotools', and LVIS' rules hold; mean IoU equals a loop over pixels."""

import contextlib
import copy
import io

import numpy as np
import pytest
import torch
from pycocotools import mask as rle
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from evaluate.mm.labels import IGNORED, count_pixels, scores
from evaluate.mm.metrics import average_precision

SIDE = 80


def random_world(seed: int, lvis: bool = False) -> tuple[dict, list[dict]]:
    """12 images of 5 categories; detections are shifted truths and noise."""
    generator = np.random.default_rng(seed)
    images = [{"id": i * 3 + 1, "width": SIDE, "height": SIDE} for i in range(12)]
    categories = [{"id": i, "name": str(i), "frequency": "rrccf"[k]} for k, i in enumerate((1, 3, 4, 8, 15))]
    truth, found = [], []
    for image in images:
        for _ in range(generator.integers(0, 6)):
            category = int(generator.choice([c["id"] for c in categories]))
            box = [float(v) for v in (*generator.uniform(0, 40, 2), *generator.uniform(4, 38, 2))]
            truth.append({
                "id": len(truth) + 1, "image_id": image["id"], "category_id": category, "bbox": box, "area": box[2] * box[3],
                "iscrowd": int(not lvis and generator.random() < 0.1), "segmentation": encoded(box),
            })  # fmt: skip
            for _ in range(generator.integers(0, 3)):
                moved = [max(v + generator.normal(0, 2.0), 1.0) for v in box]
                found.append(detection(image["id"], category if generator.random() < 0.8 else 3, moved, generator.random()))
    present = {image["id"]: {a["category_id"] for a in truth if a["image_id"] == image["id"]} for image in images}
    for image in images:
        image["neg_category_ids"] = [c["id"] for c in categories if c["id"] not in present[image["id"]] and c["id"] != 3]
        image["not_exhaustive_category_ids"] = sorted(present[image["id"]])[:1]
    return {"info": {}, "images": images, "categories": categories, "annotations": truth}, found


def encoded(box: list[float]) -> dict:
    mask = np.zeros((SIDE, SIDE), np.uint8, order="F")
    x, y, width, height = (round(v) for v in box)
    mask[y : y + max(height, 1), x : x + max(width, 1)] = 1
    return rle.encode(mask)


def detection(image: int, category: int, box: list[float], score: float) -> dict:
    return {"image_id": image, "category_id": category, "bbox": box, "score": float(score), "segmentation": encoded(box)}


@pytest.mark.parametrize("seed", range(3))
def test_coco_equals_pycocotools(seed: int) -> None:
    truth, found = random_world(seed)
    ours = average_precision(copy.deepcopy(truth), copy.deepcopy(found), [i["id"] for i in truth["images"]], False, 100)
    with contextlib.redirect_stdout(io.StringIO()):
        reference = COCO()
        reference.dataset = copy.deepcopy(truth)
        reference.createIndex()
        for kind, name in (("bbox", "box_ap"), ("segm", "mask_ap")):
            results = [{k: v for k, v in d.items() if k != ("bbox" if kind == "segm" else "segmentation")} for d in copy.deepcopy(found)]
            evaluation = COCOeval(reference, reference.loadRes(results), kind)
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
            for key, value in zip((name, f"{name}50", f"{name}75"), evaluation.stats[:3], strict=True):
                assert ours[key] == pytest.approx(100 * value, abs=1e-6)


def test_no_detections_are_zero() -> None:
    truth, _ = random_world(0, lvis=True)
    for lvis in (False, True):
        metrics = average_precision(truth, [], [i["id"] for i in truth["images"]], lvis, 300)
        assert metrics["box_ap"] == metrics["mask_ap"] == 0.0
        assert lvis == ("box_ap_rare" in metrics)


def test_lvis_ignores_what_is_not_labelled() -> None:
    """A category that is neither present nor surely absent in an image cannot be a false positive there; a surely absent one is."""
    truth, found = random_world(1, lvis=True)
    ids = [i["id"] for i in truth["images"]]
    before = average_precision(copy.deepcopy(truth), copy.deepcopy(found), ids, True, 300)
    image = next(i for i in truth["images"] if 3 not in {a["category_id"] for a in truth["annotations"] if a["image_id"] == i["id"]})
    stray = [detection(image["id"], 3, [5.0, 5.0, 20.0, 20.0], 0.999)]
    assert average_precision(copy.deepcopy(truth), copy.deepcopy(found + stray), ids, True, 300) == before
    image["neg_category_ids"].append(3)
    assert average_precision(copy.deepcopy(truth), copy.deepcopy(found + stray), ids, True, 300)["box_ap_rare"] < before["box_ap_rare"]


def test_lvis_cuts_each_image_to_its_best() -> None:
    truth, found = random_world(2, lvis=True)
    ids = [i["id"] for i in truth["images"]]
    cut = []
    for image in ids:
        cut += sorted((d for d in found if d["image_id"] == image), key=lambda d: -d["score"])[:2]
    asked = average_precision(copy.deepcopy(truth), copy.deepcopy(found), ids, True, 2)
    assert asked == average_precision(copy.deepcopy(truth), copy.deepcopy(cut), ids, True, 300)
    assert asked != average_precision(copy.deepcopy(truth), copy.deepcopy(found), ids, True, 300)


def test_mean_iou_equals_a_loop() -> None:
    generator = torch.Generator().manual_seed(0)
    predicted = torch.randint(0, 4, (20, 30), generator=generator)
    labels = torch.randint(0, 4, (20, 30), generator=generator)
    labels[:3] = IGNORED
    ious = []
    for label in range(6):  # two classes occur nowhere
        a, b = (predicted == label) & (labels != IGNORED), labels == label
        if (a | b).any():
            ious.append(float((a & b).sum() / (a | b).sum()))
    result = scores(count_pixels(predicted, labels, 6))
    assert result["miou"] == pytest.approx(100 * sum(ious) / 4)
    assert result["aacc"] == pytest.approx(100 * float((predicted == labels)[3:].float().mean()))
