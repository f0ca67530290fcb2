"""Average precision equals pycocotools', and LVIS' rules hold; mean IoU equals a loop over pixels."""

import contextlib
import copy
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pycocotools import mask as rle
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from evaluate.mm import metrics
from evaluate.mm.detections import Detections
from evaluate.mm.metrics import IGNORED, InstanceAP, count_pairs, count_pixels, scores
from evaluate.runtime.errors import UserError
from tests.mm.detections import detection, random_world


def average_precision(truth: dict, found: list[dict], *others: Any) -> dict[str, float]:
    return metrics.average_precision(truth, Detections.of(found), *others)


@pytest.mark.parametrize("lvis", [False, True])
def test_categories_scored_in_groups_give_the_same_to_the_last_bit(lvis: bool) -> None:
    truth, found = random_world(5, lvis)
    ids = [i["id"] for i in truth["images"]]
    whole = average_precision(copy.deepcopy(truth), found, ids, lvis, 100)
    assert whole == average_precision(copy.deepcopy(truth), found, ids, lvis, 100, None, None, 1)
    assert whole == average_precision(copy.deepcopy(truth), found, ids, lvis, 100, None, None, 1000)
    assert 0 < whole["box_ap"] < 100


@pytest.mark.parametrize("seed", range(3))
def test_coco_equals_pycocotools(seed: int) -> None:
    truth, found = random_world(seed)
    ours = average_precision(copy.deepcopy(truth), copy.deepcopy(found), [i["id"] for i in truth["images"]], False, 100)
    with contextlib.redirect_stdout(io.StringIO()):
        reference = COCO()
        reference.dataset = copy.deepcopy(truth)
        reference.createIndex()
        for kind, name in (("bbox", "box_ap"), ("segm", "mask_ap")):
            results = [
                {k: v for k, v in d.items() if k != ("bbox" if kind == "segm" else "segmentation")}
                for d in copy.deepcopy(found)
            ]
            evaluation = COCOeval(reference, reference.loadRes(results), kind)
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
            for key, value in zip((name, f"{name}50", f"{name}75"), evaluation.stats[:3], strict=True):
                assert ours[key] == pytest.approx(100 * value, abs=1e-6)


def test_no_detections_are_zero() -> None:
    truth, _ = random_world(0, lvis=True)
    for lvis in (False, True):
        found = average_precision(truth, [], [i["id"] for i in truth["images"]], lvis, 300)
        assert found["box_ap"] == found["mask_ap"] == 0.0
        assert lvis == ("box_ap_rare" in found)


def lvis_reference(truth: dict, found: list[dict], kind: str, most: int) -> dict[str, float]:
    """The lvis package's arithmetic by hand: AP over ten overlaps and 101 recalls of a category, means over groups."""
    kept = []
    for image in truth["images"]:
        kept += sorted((d for d in found if d["image_id"] == image["id"]), key=lambda d: -d["score"])[:most]
    field = "bbox" if kind == "bbox" else "segmentation"
    precisions: dict[int, np.ndarray] = {}  # category: (10 overlaps, 101 recalls)
    for category in (c["id"] for c in truth["categories"]):
        scores, hits, ignored, positives = [], [], [], 0
        for image in truth["images"]:
            here = [a for a in truth["annotations"] if a["image_id"] == image["id"]]
            own = [a for a in here if a["category_id"] == category]
            if not own and category not in image["neg_category_ids"]:
                continue  # not known to be absent: nothing counts
            positives += len(own)
            detections = sorted(
                (d for d in kept if (d["image_id"], d["category_id"]) == (image["id"], category)),
                key=lambda d: -d["score"],
            )
            overlaps = (
                rle.iou([d[field] for d in detections], [a[field] for a in own], [0] * len(own))
                if detections and own
                else None
            )
            hit = np.zeros((10, len(detections)), bool)
            for t, threshold in enumerate(np.linspace(0.5, 0.95, 10)):
                taken: set[int] = set()
                for d in range(len(detections)):
                    best = [
                        (overlaps[d, a], a) for a in range(len(own)) if a not in taken and overlaps[d, a] >= threshold
                    ]
                    if best:
                        taken.add(max(best)[1])
                        hit[t, d] = True
            scores += [d["score"] for d in detections]
            hits.append(hit)
            ignored.append(~hit & (category in image["not_exhaustive_category_ids"]))
        if not positives:
            continue
        order = np.argsort(-np.array(scores), kind="mergesort")
        right = np.concatenate([*hits, np.zeros((10, 0), bool)], 1)[:, order]
        counted = ~np.concatenate([*ignored, np.zeros((10, 0), bool)], 1)[:, order]
        precisions[category] = np.zeros((10, 101))
        for t in range(10):
            tp, fp = (right[t] & counted[t]).cumsum(), (~right[t] & counted[t]).cumsum()
            recall, precision = tp / positives, tp / np.maximum(tp + fp, 1e-9)
            for r, level in enumerate(np.linspace(0, 1, 101)):
                precisions[category][t, r] = max(precision[recall >= level], default=0.0)
    name, groups = ("box_ap" if kind == "bbox" else "mask_ap"), {"r": "rare", "c": "common", "f": "frequent"}
    every = np.array(list(precisions.values()))
    result = {name: every.mean(), f"{name}50": every[:, 0].mean(), f"{name}75": every[:, 5].mean()}
    for letter, group in groups.items():
        own = [precisions[c["id"]] for c in truth["categories"] if c["frequency"] == letter and c["id"] in precisions]
        if own:
            result[f"{name}_{group}"] = np.mean(own)
    return {key: 100 * float(value) for key, value in result.items()}


@pytest.mark.parametrize(("seed", "most"), [(0, 300), (1, 300), (2, 300), (3, 4), (4, 4)])
def test_lvis_equals_its_arithmetic(seed: int, most: int) -> None:
    """Boxes and masks, all, rare, common and frequent; with 4 detections an image the cut matters."""
    truth, found = random_world(seed, lvis=True)
    ids = [i["id"] for i in truth["images"]]
    ours = average_precision(copy.deepcopy(truth), copy.deepcopy(found), ids, True, most)
    expected = {**lvis_reference(truth, found, "bbox", most), **lvis_reference(truth, found, "segm", most)}
    assert ours == pytest.approx(expected, abs=1e-9) and len(ours) == 12
    assert 0 < ours["box_ap_rare"] < 100 and ours["box_ap"] != ours["mask_ap"]


def test_images_without_any_object_are_an_error(world: Path, tmp_path: Path) -> None:
    content = json.loads((world / "coco/annotations/instances_val2017.json").read_text())
    path = tmp_path / "empty.json"
    path.write_text(json.dumps({**content, "annotations": []}))
    metric = InstanceAP(str(path), lvis=False, max_detections=100)
    with pytest.raises(UserError, match="empty.json.* has an annotated object"):
        metric.compute_metrics([(image["id"], Detections.of([])) for image in content["images"]])
    with pytest.raises(RuntimeError, match="7 images"):
        metric.compute_metrics([(image["id"], Detections.of([])) for image in content["images"][1:]])


def test_lvis_ignores_what_is_not_labelled() -> None:
    """A category not known to be present or absent in an image cannot be a false positive there; an absent one is."""
    truth, found = random_world(1, lvis=True)
    ids = [i["id"] for i in truth["images"]]
    before = average_precision(copy.deepcopy(truth), copy.deepcopy(found), ids, True, 300)
    image = next(
        i
        for i in truth["images"]
        if 3 not in {a["category_id"] for a in truth["annotations"] if a["image_id"] == i["id"]}
    )
    stray = [detection(image["id"], 3, [5.0, 5.0, 20.0, 20.0], 0.999)]
    assert average_precision(copy.deepcopy(truth), copy.deepcopy(found + stray), ids, True, 300) == before
    image["neg_category_ids"].append(3)
    assert (
        average_precision(copy.deepcopy(truth), copy.deepcopy(found + stray), ids, True, 300)["box_ap_rare"]
        < before["box_ap_rare"]
    )


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
    result = scores(count_pixels(count_pairs(predicted, labels, 6)))
    assert result["miou"] == pytest.approx(100 * sum(ious) / 4)
    assert result["aacc"] == pytest.approx(100 * float((predicted == labels)[3:].float().mean()))


def test_lvis_images_of_which_no_detection_counts_are_no_error() -> None:
    """The scorer looks for the size of such a picture in vain."""
    truth, _ = random_world(1, lvis=True)
    image = truth["images"][0]
    truth["annotations"] = [a for a in truth["annotations"] if a["image_id"] != image["id"]]
    image["neg_category_ids"] = []
    stray = [detection(image["id"], 3, [5.0, 5.0, 20.0, 20.0], 0.999)]
    assert average_precision(truth, stray, [i["id"] for i in truth["images"]], True, 300)["box_ap"] == 0.0
