"""PASCAL VOC detection: the sets in their own layout, and AP by the 2007 rules at IoU 0.5 to 0.95, as MoCo and SimSiam report it.

Pixels are counted from 1 in the files and from 0 here, and in the rules a box holds both its edges. "Difficult" objects are learnt,
and neither asked for nor counted as errors when tested.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.evaluator import BaseMetric

from evaluate.data.voc import CLASSES, read_voc
from evaluate.mm.datasets import InstanceSet
from evaluate.runtime.errors import UserError

THRESHOLDS = tuple(k / 100 for k in range(50, 100, 5))


class VOCSet(InstanceSet):
    """``InstanceSet`` over VOCdevkit; ``annotations`` is that folder and ``folder`` the lists, joined by a plus: 2007/trainval+2012/trainval."""

    def read(self, annotations: str, folder: str) -> dict[str, Any]:
        """The parsed sets."""
        return read_voc(Path(annotations), folder.split("+"))

    def picture(self, image: dict[str, Any], folder: str) -> str:
        """An image's path below VOCdevkit."""
        return image["file_name"]


def class_precision(truth: dict[int, np.ndarray], difficult: dict[int, np.ndarray], found: list[tuple[int, float, np.ndarray]]) -> list[float]:
    """AP of one class at each of ``THRESHOLDS``, as the mean of the best precision from the recalls 0, 0.1, …, 1 on.

    Detections are taken from the best score down (ties in the order given). Each looks only at the object that it overlaps most:
    above the threshold it is right if that object was not yet found, else wrong; a difficult object counts as neither.

    Args:
        truth: image to boxes (n, 4).
        difficult: image to (n,) bool.
        found: (image, score, box (4,)).
    """
    positives = sum(int((~flags).sum()) for flags in difficult.values())
    found = sorted(found, key=lambda entry: -entry[1])
    best = [_overlap(box, truth[image]) if image in truth and len(truth[image]) else (0.0, -1) for image, _, box in found]
    result = []
    for threshold in THRESHOLDS:
        taken = {image: np.zeros(len(boxes), bool) for image, boxes in truth.items()}
        right, wrong = np.zeros(len(found)), np.zeros(len(found))
        for index, ((image, _, _), (overlap, owner)) in enumerate(zip(found, best, strict=True)):
            if overlap <= threshold:
                wrong[index] = 1
            elif not difficult[image][owner]:
                (wrong if taken[image][owner] else right)[index] = 1
                taken[image][owner] = True
        right, wrong = right.cumsum(), wrong.cumsum()
        recall, precision = right / max(positives, 1), right / np.maximum(right + wrong, 1)
        result.append(float(np.mean([precision[recall >= level].max(initial=0.0) for level in np.arange(0, 1.1, 0.1)])))
    return result


def _overlap(box: np.ndarray, boxes: np.ndarray) -> tuple[float, int]:
    """The largest intersection over union and whose; a box from pixel 3 to pixel 5 is 3 pixels wide."""
    low, high = np.maximum(box[:2], boxes[:, :2]), np.minimum(box[2:], boxes[:, 2:])
    shared = (high - low + 1).clip(0).prod(1)
    union = (box[2:] - box[:2] + 1).prod() + (boxes[:, 2:] - boxes[:, :2] + 1).prod(1) - shared
    overlaps = shared / union
    return float(overlaps.max()), int(overlaps.argmax())


class VOCAP(BaseMetric):
    """``box_ap``, ``box_ap50`` and ``box_ap75`` in percent: the mean over the 20 classes, by the rules of 2007.

    Args:
        annotations, folder: as for ``VOCSet``.
        limit: the data set's.
        collect_dir: where several processes exchange their results.
    """

    def __init__(self, annotations: str, folder: str, limit: int | None = None, collect_dir: str | None = None) -> None:
        super().__init__(prefix="ap", collect_dir=collect_dir)
        content = read_voc(Path(annotations), folder.split("+"))
        self.image_ids = [image["id"] for image in content["images"]][:limit]
        asked = set(self.image_ids)
        self.annotations = [annotation for annotation in content["annotations"] if annotation["image_id"] in asked]

    def process(self, data_batch: Any, data_samples: Sequence[dict[str, Any]]) -> None:
        """Keeps an image's boxes, in the files' pixels."""
        for sample in data_samples:
            found = sample["pred_instances"]
            boxes = found["bboxes"].float().cpu().numpy().astype(np.float64)
            boxes[:, :2] += 1
            self.results.append((sample["img_id"], boxes, found["scores"].float().cpu().numpy(), found["labels"].cpu().numpy()))

    def compute_metrics(self, results: list[tuple[int, np.ndarray, np.ndarray, np.ndarray]]) -> dict[str, float]:
        """The metrics over all images, each of which must have come exactly once.

        Raises:
            RuntimeError: an image is missing or came twice.
            UserError: no object to find.
        """
        seen = sorted(image for image, *_ in results)
        if seen != sorted(self.image_ids):
            raise RuntimeError(f"{len(seen)} images were evaluated, {len(set(seen))} of them distinct, of {len(self.image_ids)} asked")
        precisions = []
        for label in range(len(CLASSES)):
            own = [annotation for annotation in self.annotations if annotation["category_id"] == label]
            if not any(not annotation["difficult"] for annotation in own):
                continue  # only in a part of the set: every class occurs in the whole
            truth, difficult = {}, {}
            for image in {annotation["image_id"] for annotation in own}:
                here = [annotation for annotation in own if annotation["image_id"] == image]
                corners = np.array([annotation["bbox"] for annotation in here])
                truth[image] = np.concatenate([corners[:, :2] + 1, corners[:, :2] + corners[:, 2:]], 1)
                difficult[image] = np.array([annotation["difficult"] for annotation in here])
            found = [
                (image, float(score), box)
                for image, boxes, scores, labels in results
                for box, score, k in zip(boxes, scores, labels, strict=True)
                if k == label
            ]
            precisions.append(class_precision(truth, difficult, found))
        if not precisions:
            raise UserError("none of the images asked for has an object to find; raise --limit or unpack VOC again")
        table = 100 * np.array(precisions).mean(0)
        return {"box_ap": float(table.mean()), "box_ap50": float(table[0]), "box_ap75": float(table[5]), "images": len(seen)}
