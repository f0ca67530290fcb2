"""Average precision of boxes and masks, by COCO's rules and by LVIS', which are COCO's arithmetic on partial labels.

faster-coco-eval matches and counts.
"""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from faster_coco_eval import COCO, COCOeval_faster

from evaluate.mm import resampling
from evaluate.mm.detections import Detections
from evaluate.runtime import bootstrap

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
    precisions: dict[str, np.ndarray] | None = None,
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
        precisions: is given ``box_ap`` and ``mask_ap``: (10 overlaps, 101 recalls, categories by id), -1 for a category
            without objects.
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
        if precisions is not None:
            precisions[name] = precision
        found = {name: precision, f"{name}50": precision[:1], f"{name}75": precision[5:6]}
        for frequency, members in of_frequency.items():
            found[f"{name}_{frequency}"] = precision[:, :, members]
        # -1 is a category without objects
        metrics |= {key: 100 * float(np.mean(p[p > -1])) for key, p in found.items() if (p > -1).any()}
        if resamples is not None:
            drawn = resampled(outcomes, bootstrap.draws(len(asked)), name, of_frequency)
            resamples.update(bootstrap.kept({key: values for key, values in drawn.items() if key in metrics}))
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
