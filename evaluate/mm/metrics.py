"""Average precision of boxes and masks by faster-coco-eval, for COCO and for LVIS, which is COCO's arithmetic on partial labels."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.evaluator import BaseMetric

from evaluate.data.coco import read_annotations
from evaluate.runtime.errors import UserError

NAMES = {"bbox": "box_ap", "segm": "mask_ap"}
FREQUENCIES = {"APr": "rare", "APc": "common", "APf": "frequent"}


def average_precision(
    ground_truth: dict[str, Any], detections: list[dict[str, Any]], image_ids: Sequence[int], lvis: bool, max_detections: int
) -> dict[str, float]:
    """AP in percent: ``box_ap``, ``mask_ap``, each with ``50`` and ``75``, and for LVIS with ``_rare``, ``_common``, ``_frequent``.

    Args:
        ground_truth: the parsed annotation json.
        detections: COCO results, each with ``image_id``, ``category_id``, ``score``, ``bbox`` (x, y, width, height) and
            ``segmentation`` (compressed run lengths).
        image_ids: the images scored.
        lvis: score by LVIS' rules; each image is first cut to its ``max_detections`` best over all classes, as lvis does on load.

    No detections are 0. A group of categories that the ground truth lacks has no key.
    """
    from faster_coco_eval import COCO, COCOeval_faster

    detections = _best(detections, max_detections)
    truth = COCO(ground_truth)
    metrics: dict[str, float] = {}
    for kind, name in NAMES.items():
        # without its box a mask result takes its area from the mask
        field = "bbox" if kind == "bbox" else "segmentation"
        results = [{k: d[k] for k in ("image_id", "category_id", "score", field)} for d in detections]
        evaluation = COCOeval_faster(truth, truth.loadRes(results), kind, lvis_style=lvis, print_function=lambda *_: None)
        evaluation.params.imgIds = sorted(image_ids)
        if lvis:
            evaluation.params.maxDets = [max_detections]
        evaluation.run()
        stats = evaluation.stats_as_dict
        keys = {"AP_all": name, "AP_50": f"{name}50", "AP_75": f"{name}75"}
        if lvis:
            keys.update({label: f"{name}_{frequency}" for label, frequency in FREQUENCIES.items()})
        metrics.update({key: 100 * stats[label] for label, key in keys.items() if stats[label] >= 0})
    return metrics


def _best(detections: list[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """The ``count`` best of each image; ties keep their order."""
    by_image: dict[int, list[dict[str, Any]]] = {}
    for detection in detections:
        by_image.setdefault(detection["image_id"], []).append(detection)
    return [d for owned in by_image.values() for d in sorted(owned, key=lambda d: -d["score"])[:count]]


class InstanceAP(BaseMetric):
    """mmengine's metric around ``average_precision``.

    Args:
        annotations: the json that the data set was read from.
        limit: the data set's.
        collect_dir: where several processes exchange their results; new and theirs only.
    """

    default_prefix = ""

    def __init__(self, annotations: str, lvis: bool, max_detections: int, limit: int | None = None, collect_dir: str | None = None) -> None:
        super().__init__(prefix="ap", collect_dir=collect_dir)
        self.annotations = annotations
        self.ground_truth = read_annotations(Path(annotations))
        self.lvis, self.max_detections = lvis, max_detections
        self.categories = sorted(category["id"] for category in self.ground_truth["categories"])
        self.image_ids = sorted(image["id"] for image in self.ground_truth["images"])[:limit]

    def process(self, data_batch: Any, data_samples: Sequence[dict[str, Any]]) -> None:
        """Keeps an image's detections as COCO results."""
        from pycocotools import mask as rle

        for sample in data_samples:
            found = sample["pred_instances"]
            boxes = found["bboxes"].float().cpu().numpy().astype(np.float64)
            boxes[:, 2:] -= boxes[:, :2]
            masks = found["masks"].cpu().numpy().astype(np.uint8)
            scores, labels = found["scores"].float().cpu().tolist(), found["labels"].cpu().tolist()
            self.results.append((sample["img_id"], [
                {
                    "image_id": sample["img_id"], "category_id": self.categories[label], "score": score, "bbox": box.tolist(),
                    "segmentation": rle.encode(np.asfortranarray(mask)),
                }
                for box, score, label, mask in zip(boxes, scores, labels, masks, strict=True)
            ]))  # fmt: skip

    def compute_metrics(self, results: list[tuple[int, list[dict[str, Any]]]]) -> dict[str, float]:
        """The metrics over all images, each of which must have come exactly once.

        Raises:
            RuntimeError: an image is missing or came twice.
            UserError: none of the images has an object, so there is nothing to measure.
        """
        seen = sorted(image_id for image_id, _ in results)
        if seen != self.image_ids:
            raise RuntimeError(f"{len(seen)} images were evaluated, {len(set(seen))} of them distinct, of {len(self.image_ids)} asked")
        detections = [detection for _, found in results for detection in found]
        metrics = average_precision(self.ground_truth, detections, self.image_ids, self.lvis, self.max_detections)
        if len({"box_ap", "mask_ap"} & set(metrics)) < 2:
            raise UserError(f"none of the {len(seen)} images of {self.annotations} that were tested has an object; test more of them")
        return {**metrics, "images": len(seen)}
