"""What the dense tasks measure: average precision of COCO, LVIS and PASCAL VOC, and mean intersection over union.

Boxes and masks of COCO and of LVIS, which is COCO's arithmetic on partial labels, are scored by faster-coco-eval.
"""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from faster_coco_eval import COCO, COCOeval_faster
from mmengine.evaluator import BaseMetric
from pycocotools import mask as rle
from torch import Tensor

from evaluate.data.coco import read_annotations
from evaluate.data.voc import CLASSES, read_voc
from evaluate.mm import resampling
from evaluate.mm.detections import Detections
from evaluate.runtime.errors import UserError

NAMES = {"bbox": "box_ap", "segm": "mask_ap"}
FREQUENCIES = {"r": "rare", "c": "common", "f": "frequent"}
SCORED_AT_ONCE = 16  # categories


def average_precision(
    ground_truth: dict[str, Any],
    detections: Detections,
    image_ids: Sequence[int],
    lvis: bool,
    max_detections: int,
    resamples: dict[str, list[float]] | None = None,
    at_once: int = SCORED_AT_ONCE,
) -> dict[str, float]:
    """AP in percent: ``box_ap`` and ``mask_ap``, each also with ``50`` and ``75`` at the end.

    LVIS also has ``_rare``, ``_common`` and ``_frequent``.

    Args:
        ground_truth: the parsed annotation json, as ``evaluate.data.coco`` accepts it; it stays as it is.
        image_ids: the images scored.
        lvis: score by LVIS' rules; each image is first cut to its ``max_detections`` best over all classes, as lvis
            does on load.
        resamples: is given each metric's values on resampled images (``evaluate.mm.resampling``).
        at_once: so many categories are scored at a time, on the images that concern them: the scorer keeps an entry
            for each pair of an image and a category. A category's precision depends on no other one.

    No detections are 0. A group of categories that the ground truth lacks has no key.
    """
    kept = detections.best(max_detections)
    if lvis:
        kept = kept[_is_labelled(ground_truth, detections, kept)]
    truth = COCO({**ground_truth, "annotations": [_scored(a, k) for k, a in enumerate(ground_truth["annotations"], 1)]})
    categories = sorted(ground_truth["categories"], key=lambda category: category["id"])
    ids = [category["id"] for category in categories]
    groups = [ids[start : start + at_once] for start in range(0, len(ids), at_once)]
    asked = set(image_ids)
    of_frequency = {
        frequency: [k for k, category in enumerate(categories) if category["frequency"] == letter]
        for letter, frequency in (FREQUENCIES.items() if lvis else ())
    }
    metrics: dict[str, float] = {}
    for kind, name in NAMES.items():
        parts, outcomes = [], []
        for group in groups:
            # without its box a mask result takes its area from the mask
            chosen = kept[np.isin(detections.category_ids[kept], group)]
            results = detections.results(chosen, masks=kind == "segm")
            concerned = {a["image_id"] for a in ground_truth["annotations"] if a["category_id"] in group}
            concerned |= set(detections.image_ids[chosen].tolist())
            evaluation = COCOeval_faster(
                truth, truth.loadRes(results), kind, lvis_style=lvis, print_function=lambda *_: None
            )
            evaluation.params.imgIds, evaluation.params.catIds = sorted(concerned & asked), group
            if lvis:
                evaluation.params.maxDets = [max_detections]
            evaluation.evaluate()
            evaluation.accumulate()
            if resamples is not None:
                outcomes += resampling.instance_outcomes(evaluation, sorted(asked))
            parts.append(evaluation.eval["precision"][:, :, :, 0, -1])  # all areas, the most detections
        precision = np.concatenate(parts, axis=2)  # (10 overlaps, 101 recalls, categories)
        found = {name: precision, f"{name}50": precision[:1], f"{name}75": precision[5:6]}
        for frequency, members in of_frequency.items():
            found[f"{name}_{frequency}"] = precision[:, :, members]
        # -1 is a category without objects
        metrics |= {key: 100 * float(np.mean(p[p > -1])) for key, p in found.items() if (p > -1).any()}
        if resamples is not None:
            drawn = resampled(outcomes, resampling.draws(len(asked)), name, of_frequency)
            resamples.update(resampling.kept({key: values for key, values in drawn.items() if key in metrics}))
    return metrics


def resampled(
    outcomes: Sequence[resampling.Outcomes], weights: np.ndarray, name: str, groups: Mapping[str, Sequence[int]]
) -> dict[str, np.ndarray]:
    """Each AP in percent, for R weightings (R, N) of the images, from the outcomes of all categories.

    Args:
        name: ``box_ap`` or ``mask_ap``.
        groups: positions of categories by the end of a metric's name.
    """
    levels = resampling.COCO_LEVELS
    by_class = 100 * np.stack([resampling.precision(one, weights, levels) for one in outcomes])  # (classes, R, T)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a draw without any object has no mean: NaN
        return {
            name: np.nanmean(by_class, axis=(0, 2)),
            f"{name}50": np.nanmean(by_class[:, :, 0], axis=0),
            f"{name}75": np.nanmean(by_class[:, :, 5], axis=0),
            **{f"{name}_{end}": np.nanmean(by_class[chosen], axis=(0, 2)) for end, chosen in groups.items() if chosen},
        }


def _is_labelled(ground_truth: dict[str, Any], detections: Detections, kept: np.ndarray) -> np.ndarray:
    """Which of the kept detections are of a category that LVIS says is in their image, or is not: others never count.

    The scorer would leave them out itself, but it fails where nothing of an image is left.
    """
    known = [(a["image_id"], a["category_id"]) for a in ground_truth["annotations"]]
    known += [(i["id"], category) for i in ground_truth["images"] for category in i.get("neg_category_ids", [])]
    base = 1 + max([int(detections.category_ids.max(initial=0)), *(category for _, category in known)])
    pairs = np.array([image * base + category for image, category in known], np.int64)
    return np.isin(detections.image_ids[kept] * base + detections.category_ids[kept], pairs)


def _scored(annotation: dict[str, Any], number: int) -> dict[str, Any]:
    """What the scorer reads of an annotation, under an id from 1 on: to the scorer an id 0 means that nothing matched.

    The area only decides what is small, medium or large, which is not reported.
    """
    fields = {name: annotation[name] for name in ("image_id", "category_id", "bbox", "segmentation")}
    area = annotation["bbox"][2] * annotation["bbox"][3]
    return {**fields, "id": number, "area": annotation.get("area", area), "iscrowd": annotation.get("iscrowd", 0)}


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
        detections = Detections.joined([of_image for _, of_image in results])
        scored = self.ground_truth, detections, self.image_ids, self.lvis, self.max_detections
        metrics = average_precision(*scored, self.resamples)
        if len({"box_ap", "mask_ap"} & set(metrics)) < 2:
            tested = f"{len(results)} images of {self.annotations} that were tested"
            raise UserError(f"none of the {tested} has an annotated object; raise --limit")
        return {**metrics, "images": len(results)}


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
        weights = np.concatenate([np.ones((1, len(results)), np.int64), resampling.draws(len(results))])
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
        if not precisions:
            raise UserError("none of the tested images has an annotated object; raise --limit or unpack VOC again")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # a draw without any object has no mean: NaN
            table = 100 * np.nanmean(np.array(precisions), axis=0)  # (1 + draws, thresholds): first, each image once
        metrics = {"box_ap": table.mean(1), "box_ap50": table[:, 0], "box_ap75": table[:, 5]}
        self.resamples = resampling.kept({name: values[1:] for name, values in metrics.items()})
        return {**{name: float(values[0]) for name, values in metrics.items()}, "images": len(results)}


IGNORED = 255


def count_pixels(predicted: Tensor, labels: Tensor, classes: int) -> Tensor:
    """(3, classes) pixels of the intersection, of the prediction and of the truth; ignored pixels count nowhere."""
    kept = labels != IGNORED
    predicted, labels = predicted[kept], labels[kept]
    return torch.stack(
        [torch.bincount(x, minlength=classes) for x in (predicted[predicted == labels], predicted, labels)]
    )


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
        classes = len(self.dataset_meta["classes"])
        for sample in data_samples:
            predicted, labels = (
                sample["pred_sem_seg"]["data"].squeeze(0).cpu(),
                sample["gt_sem_seg"]["data"].squeeze(0).cpu(),
            )
            self.results.append(count_pixels(predicted, labels, classes))

    def compute_metrics(self, results: list[Tensor]) -> dict[str, float]:
        """The metrics over all pictures.

        Raises:
            UserError: the label maps hold nothing but "other", which is never scored.
        """
        counts = torch.stack(results).sum(0)
        if not counts[2].any():
            folder = self.dataset_meta["folder"]
            raise UserError(f"the {len(results)} label maps read from {folder} have no labeled pixel; restore them")
        by_image = torch.stack(results).flatten(1).double()  # exact: no count of pixels reaches 2^53
        drawn = [
            scores((torch.from_numpy(weights).double() @ by_image).view_as(counts))
            for weights in resampling.draws(len(results))
        ]
        self.resamples = resampling.kept({name: [one[name] for one in drawn] for name in drawn[0]})
        return {**scores(counts), "images": len(results)}
