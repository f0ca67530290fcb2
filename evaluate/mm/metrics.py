"""What the dense tasks measure: average precision of COCO, LVIS and PASCAL VOC, and mean intersection over union.

After an evaluation ``save`` writes what is kept of it (``evaluate.mm.artifacts``).
"""

import functools
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.evaluator import BaseMetric
from pycocotools import mask as rle
from torch import Tensor

from evaluate.data.coco import read_annotations
from evaluate.data.voc import CLASSES, read_voc
from evaluate.mm import artifacts, resampling
from evaluate.mm.average_precision import average_precision
from evaluate.mm.detections import Detections
from evaluate.runtime import bootstrap
from evaluate.runtime.errors import UserError


def require_each_once(evaluated: Sequence[int], asked: Sequence[int]) -> None:
    """Raises RuntimeError where an image that was asked for is missing or came twice."""
    if sorted(evaluated) != sorted(asked):
        raise RuntimeError(
            f"{len(evaluated)} images were evaluated, {len(set(evaluated))} of them distinct, of {len(asked)} asked"
        )


class InstanceAP(BaseMetric):
    """mmengine's metric around ``average_precision``.

    Args:
        annotations: the json that the data set was read from.
        limit: the data set's.
        collect_dir: where several processes exchange their results; new and theirs only.
    """

    default_prefix = ""

    def __init__(
        self,
        annotations: str,
        lvis: bool,
        max_detections: int,
        limit: int | None = None,
        collect_dir: str | None = None,
    ) -> None:
        super().__init__(prefix="ap", collect_dir=collect_dir)
        self.annotations = annotations
        self.ground_truth = read_annotations(Path(annotations))
        self.lvis, self.max_detections = lvis, max_detections
        self.categories = sorted(category["id"] for category in self.ground_truth["categories"])
        self.image_ids = sorted(image["id"] for image in self.ground_truth["images"])[:limit]
        self.resamples: dict[str, list[float]] = {}
        self.detections = Detections.of([])
        self.precisions: dict[str, np.ndarray] = {}

    def process(self, data_batch: Any, data_samples: Sequence[dict[str, Any]]) -> None:
        """Keeps an image's detections."""
        for sample in data_samples:
            predicted = sample["pred_instances"]
            boxes = predicted["bboxes"].float().cpu().numpy().astype(np.float64)
            boxes[:, 2:] -= boxes[:, :2]
            masks = predicted["masks"].cpu().numpy().astype(np.uint8)
            scores, labels = predicted["scores"].float().cpu().tolist(), predicted["labels"].cpu().tolist()
            detections = [
                {
                    "image_id": sample["img_id"],
                    "category_id": self.categories[label],
                    "score": score,
                    "bbox": box.tolist(),
                    "segmentation": rle.encode(np.asfortranarray(mask)),
                }
                for box, score, label, mask in zip(boxes, scores, labels, masks, strict=True)
            ]
            self.results.append((sample["img_id"], Detections.of(detections)))

    def compute_metrics(self, results: list[tuple[int, Detections]]) -> dict[str, float]:
        """The metrics over all images, each of which must have come exactly once.

        Raises:
            RuntimeError: an image is missing or came twice.
            UserError: none of the images has an object, so there is nothing to measure.
        """
        require_each_once([image_id for image_id, _ in results], self.image_ids)
        self.detections = Detections.joined([of_image for _, of_image in results])
        scored = self.ground_truth, self.detections, self.image_ids, self.lvis, self.max_detections
        metrics = average_precision(*scored, self.resamples, self.precisions)
        if len({"box_ap", "mask_ap"} & set(metrics)) < 2:
            tested = f"{len(results)} images of {self.annotations} that were tested"
            raise UserError(f"none of the {tested} has an annotated object; raise --limit")
        return {**metrics, "images": len(results)}

    def save(self, folder: Path, suffix: str = "") -> None:
        """Writes the detections, and of each class its AP and precision against recall."""
        asked = set(self.image_ids)
        counted = Counter(
            a["category_id"]
            for a in self.ground_truth["annotations"]
            if a["image_id"] in asked and not a.get("iscrowd", 0)
        )
        categories = sorted(self.ground_truth["categories"], key=lambda category: category["id"])
        instances = [counted[category["id"]] for category in categories]
        artifacts.write_instances(folder, categories, instances, self.precisions, resampling.COCO_LEVELS)
        artifacts.write_detections(folder, self.detections.scored(self.max_detections))


THRESHOLDS = tuple(k / 100 for k in range(50, 100, 5))


LEVELS = np.arange(0, 1.1, 0.1)


def class_outcomes(
    truth: dict[int, np.ndarray],
    difficult: dict[int, np.ndarray],
    detections: list[tuple[int, float, np.ndarray]],
    images: Sequence[int],
) -> resampling.Outcomes:
    """What became of the detections of one class at each of ``THRESHOLDS``.

    Detections are taken from the best score down (ties in the order given). Each looks only at the object that it
    overlaps most: above the threshold it is right if that object was not yet found, else wrong; a difficult object
    counts as neither.

    Args:
        truth: image to boxes (n, 4).
        difficult: image to (n,) bool.
        detections: (image, score, box (4,)).
        images: all that were tested.
    """
    index = {image: number for number, image in enumerate(images)}
    detections = sorted(detections, key=lambda detection: -detection[1])
    best = [
        _overlap(box, truth[image]) if image in truth and len(truth[image]) else (0.0, -1)
        for image, _, box in detections
    ]
    right = np.zeros((len(detections), len(THRESHOLDS)), bool)
    wrong = np.zeros_like(right)
    for column, threshold in enumerate(THRESHOLDS):
        taken = {image: np.zeros(len(boxes), bool) for image, boxes in truth.items()}
        for row, ((image, _, _), (overlap, owner)) in enumerate(zip(detections, best, strict=True)):
            if overlap <= threshold:
                wrong[row, column] = True
            elif not difficult[image][owner]:
                (wrong if taken[image][owner] else right)[row, column] = True
                taken[image][owner] = True
    positives = np.zeros(len(images), np.int64)
    for image, flags in difficult.items():
        positives[index[image]] = (~flags).sum()
    return resampling.Outcomes(np.array([index[image] for image, *_ in detections], np.int64), right, wrong, positives)


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
        content = self.ground_truth = read_voc(Path(annotations), folder.split("+"))
        self.image_ids = [image["id"] for image in content["images"]][:limit]
        asked = set(self.image_ids)
        self.resamples: dict[str, list[float]] = {}
        self.detections: list[tuple[int, np.ndarray, np.ndarray, np.ndarray]] = []
        self.precision = np.full((len(THRESHOLDS), len(LEVELS), len(CLASSES)), -1.0)
        # of each class and image: the boxes in the files' pixels, and which are difficult
        self.objects: list[dict[int, list[tuple[list[float], bool]]]] = [{} for _ in CLASSES]
        for annotation in content["annotations"]:
            if annotation["image_id"] in asked:
                x, y, width, height = annotation["bbox"]
                of_image = self.objects[annotation["category_id"]].setdefault(annotation["image_id"], [])
                of_image.append(([x + 1, y + 1, x + width, y + height], annotation["difficult"]))

    def process(self, data_batch: Any, data_samples: Sequence[dict[str, Any]]) -> None:
        """Keeps an image's boxes, in the files' pixels."""
        for sample in data_samples:
            predicted = sample["pred_instances"]
            boxes = predicted["bboxes"].float().cpu().numpy().astype(np.float64)
            boxes[:, :2] += 1
            scores, labels = predicted["scores"].float().cpu().numpy(), predicted["labels"].cpu().numpy()
            self.results.append((sample["img_id"], boxes, scores, labels))

    def compute_metrics(self, results: list[tuple[int, np.ndarray, np.ndarray, np.ndarray]]) -> dict[str, float]:
        """The metrics over all images, each of which must have come exactly once.

        Raises:
            RuntimeError: an image is missing or came twice.
            UserError: no object to find.
        """
        require_each_once([image for image, *_ in results], self.image_ids)
        weights = np.concatenate([np.ones((1, len(results)), np.int64), bootstrap.draws(len(results))])
        precisions = []
        for label, by_image in enumerate(self.objects):
            truth = {image: np.array([box for box, _ in objects]) for image, objects in by_image.items()}
            difficult = {image: np.array([flag for _, flag in objects]) for image, objects in by_image.items()}
            if all(flags.all() for flags in difficult.values()):
                continue  # only in a part of the set: every class occurs in the whole
            detections = [
                (image, float(score), box)
                for image, boxes, scores, labels in results
                for box, score, k in zip(boxes, scores, labels, strict=True)
                if k == label
            ]
            outcomes = class_outcomes(truth, difficult, detections, self.image_ids)
            precisions.append(resampling.precision(outcomes, weights, LEVELS))
            self.precision[:, :, label] = resampling.curve(outcomes, LEVELS)
        if not precisions:
            raise UserError("none of the tested images has an annotated object; raise --limit or unpack VOC again")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # a draw without any object has no mean: NaN
            table = 100 * np.nanmean(np.array(precisions), axis=0)  # (1 + draws, thresholds): first, each image once
        metrics = {"box_ap": table.mean(1), "box_ap50": table[:, 0], "box_ap75": table[:, 5]}
        self.resamples = bootstrap.kept({name: values[1:] for name, values in metrics.items()})
        self.detections = sorted(results, key=lambda of_image: of_image[0])
        return {**{name: float(values[0]) for name, values in metrics.items()}, "images": len(results)}

    def save(self, folder: Path, suffix: str = "") -> None:
        """Writes the detections, and of each class its AP and precision against recall."""
        instances = [sum(not flag for objects in own.values() for _, flag in objects) for own in self.objects]
        categories = self.ground_truth["categories"]
        artifacts.write_instances(folder, categories, instances, {"box_ap": self.precision}, LEVELS)
        artifacts.write_detections(folder, self._detections())

    def _detections(self) -> Iterator[dict[str, Any]]:
        """As COCO results, whose pixels are counted from 0."""
        for image, boxes, scores, labels in self.detections:
            for (left, top, right, bottom), score, label in zip(boxes.tolist(), scores, labels.tolist(), strict=True):
                box = [left - 1, top - 1, right - left + 1, bottom - top + 1]
                rounded = [round(value, artifacts.DECIMALS) for value in box]
                yield {
                    "image_id": image,
                    "category_id": label,
                    "score": artifacts.short(score),
                    "bbox": rounded,
                }


IGNORED = 255


def count_pairs(predicted: Tensor, labels: Tensor, classes: int) -> Tensor:
    """(classes, classes) pixels by right class and predicted class; ignored pixels count nowhere."""
    scored = labels != IGNORED
    pairs = labels[scored].long() * classes + predicted[scored]
    return torch.bincount(pairs, minlength=classes**2).view(classes, classes)


def count_pixels(pairs: Tensor) -> Tensor:
    """(3, classes) pixels of the intersection, of the prediction and of the truth."""
    return torch.stack([pairs.diagonal(), pairs.sum(0), pairs.sum(1)])


def scores(counts: Tensor) -> dict[str, float]:
    """``miou`` over the classes that occur in truth or prediction, and pixel accuracy ``aacc``, in percent."""
    intersection, predicted, truth = counts.double()
    union = predicted + truth - intersection
    return {
        "miou": float(100 * (intersection / union)[union > 0].mean()),
        "aacc": float(100 * intersection.sum() / truth.sum()),
    }


class MeanIoU(BaseMetric):
    """mmengine's metric around ``scores``: mmseg's IoUMetric without its rounding to two decimals."""

    def __init__(self, collect_dir: str | None = None) -> None:
        super().__init__(prefix="seg", collect_dir=collect_dir)
        self.resamples: dict[str, list[float]] = {}

    def process(self, data_batch: Any, data_samples: Sequence[dict[str, Any]]) -> None:
        """Counts a picture's pixels; of 150 x 150 pairs of classes it has some dozens."""
        classes = len(self.dataset_meta["classes"])
        for sample in data_samples:
            predicted, labels = (
                sample["pred_sem_seg"]["data"].squeeze(0).cpu(),
                sample["gt_sem_seg"]["data"].squeeze(0).cpu(),
            )
            self.results.append(count_pairs(predicted, labels, classes).to_sparse())

    def compute_metrics(self, results: list[Tensor]) -> dict[str, float]:
        """The metrics over all pictures.

        Raises:
            UserError: the label maps hold nothing but "other", which is never scored.
        """
        of_image = torch.stack([count_pixels(pairs.to_dense()) for pairs in results])
        counts = of_image.sum(0)
        if not counts[2].any():
            folder = self.dataset_meta["folder"]
            raise UserError(f"the {len(results)} label maps read from {folder} have no labeled pixel; restore them")
        by_image = of_image.flatten(1).double()  # exact: no count of pixels reaches 2^53
        drawn = [
            scores((torch.from_numpy(weights).double() @ by_image).view_as(counts))
            for weights in bootstrap.draws(len(results))
        ]
        self.resamples = bootstrap.kept({name: [one[name] for one in drawn] for name in drawn[0]})
        self.pairs = functools.reduce(torch.add, results).to_dense()
        return {**scores(counts), "images": len(results)}

    def save(self, folder: Path, suffix: str = "") -> None:
        """Writes the pixels by right and predicted class, and each class's IoU."""
        artifacts.write_confusion(folder, self.pairs.numpy(), self.dataset_meta["classes"], suffix)
