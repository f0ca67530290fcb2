"""The error of AP and of mIoU: the metric again on 200 draws of as many images, with replacement.

Each image's outcome (which detections are right, how many pixels meet) does not depend on the other images, so it is
found once, and a draw (``evaluate.runtime.bootstrap``) only weighs the images.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from faster_coco_eval import COCO, COCOeval_faster
from mmengine.evaluator import Evaluator

from evaluate.runtime.bootstrap import errors
from evaluate.runtime.env import Env

CHUNK = 10_000_000  # weights of detections that are held at once
COCO_LEVELS = np.linspace(0, 1, 101)


@dataclass(frozen=True)
class Outcomes:
    """What became of one class's D detections in all images, from the best score down, at T thresholds."""

    images: np.ndarray
    """(D,) index of the image."""
    right: np.ndarray
    """(D, T) bool."""
    wrong: np.ndarray
    """(D, T) bool; neither right nor wrong is not counted."""
    positives: np.ndarray
    """(N,) objects to find in each image."""


def precision(outcomes: Outcomes, weights: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """(R, T) average precision of a class for R weightings (R, N) of the images: the mean, over the recall levels, of
    the best precision at that recall or a higher one. NaN where no object is to be found.
    """
    total = weights @ outcomes.positives
    found = np.zeros((len(weights), outcomes.right.shape[1]))
    rows = max(1, CHUNK // max(1, len(outcomes.images)))
    for begin in range(0, len(weights), rows):
        part = slice(begin, begin + rows)
        drawn = weights[part][:, outcomes.images]
        for threshold in range(found.shape[1]):
            found[part, threshold] = _interpolated(
                drawn, outcomes.right[:, threshold], outcomes.wrong[:, threshold], total[part], levels
            ).mean(1)
    found[total == 0] = np.nan
    return found


def curve(outcomes: Outcomes, levels: np.ndarray) -> np.ndarray:
    """(T, L) of a class that has objects, each image once: the best precision at a recall level or a higher one."""
    once = np.ones((1, len(outcomes.images)), np.int64)
    total = outcomes.positives.sum(keepdims=True)
    ends = zip(outcomes.right.T, outcomes.wrong.T, strict=True)
    return np.stack([_interpolated(once, right, wrong, total, levels)[0] for right, wrong in ends])


def _interpolated(
    drawn: np.ndarray, right: np.ndarray, wrong: np.ndarray, total: np.ndarray, levels: np.ndarray
) -> np.ndarray:
    """(R, L) precision at one threshold and L recalls, from the weights (R, D) of the detections."""
    at = np.flatnonzero(right)  # precision is highest at a right detection
    if not len(at):
        return np.zeros((len(drawn), len(levels)))
    true = drawn[:, at].cumsum(1)
    false = (drawn * wrong).cumsum(1)[:, at]
    best = np.maximum.accumulate((true / np.maximum(true + false, 1))[:, ::-1], axis=1)[:, ::-1]
    best = np.concatenate([best, np.zeros((len(best), 1))], axis=1)  # a recall that is never reached
    count = np.maximum(total, 1)[:, None]
    needed = np.floor(levels * count).astype(np.int64)  # right detections for a recall of each level
    needed += needed / count < levels
    span = int(max(true.max(), needed.max())) + 1
    offsets = np.arange(len(drawn))[:, None] * span  # one search in all rows, which are sorted each
    place = np.searchsorted((true + offsets).ravel(), (needed + offsets).ravel()).reshape(needed.shape)
    place = np.clip(place - np.arange(len(drawn))[:, None] * true.shape[1], 0, true.shape[1])
    return np.take_along_axis(best, place, 1)


def instance_outcomes(evaluation: COCOeval_faster, image_ids: Sequence[int]) -> list[Outcomes]:
    """The outcomes of each category of an evaluation that has run, by COCO's and LVIS' rules.

    Args:
        image_ids: all images tested, in the order of their indices; the evaluation may be of some of them.
    """
    index = {image: number for number, image in enumerate(image_ids)}
    truth, detected = (
        _by_category(annotations, index, set(evaluation.params.catIds))
        for annotations in (evaluation.cocoGt, evaluation.cocoDt)
    )
    return [
        _of_category(evaluation, category, index, truth.get(category, {}), detected.get(category, {}))
        for category in evaluation.params.catIds
    ]


def _by_category(
    annotations: COCO, index: Mapping[int, int], categories: set[int]
) -> dict[int, dict[int, list[dict[str, Any]]]]:
    """The annotations of the images in ``index`` that the evaluation did not drop, by category and image."""
    found: dict[int, dict[int, list[dict[str, Any]]]] = {}
    for one in annotations.anns.values():
        if one["category_id"] in categories and one["image_id"] in index and not one.get("drop"):
            found.setdefault(one["category_id"], {}).setdefault(one["image_id"], []).append(one)
    return found


def _of_category(
    evaluation: COCOeval_faster,
    category: int,
    index: Mapping[int, int],
    truth: Mapping[int, list[dict[str, Any]]],
    detected: Mapping[int, list[dict[str, Any]]],
) -> Outcomes:
    thresholds = np.minimum(evaluation.params.iouThrs, 1 - 1e-10)
    positives = np.zeros(len(index), np.int64)
    for image, objects in truth.items():
        positives[index[image]] = sum(not one["ignore"] for one in objects)
    nothing = np.zeros((0, len(thresholds)), bool)
    scores, images, right, ignored = [np.zeros(0)], [np.zeros(0, np.int64)], [nothing], [nothing]
    for image in sorted(detected, key=index.__getitem__):
        own = np.array([one["score"] for one in detected[image]])
        order = np.argsort(-own, kind="mergesort")[: evaluation.params.maxDets[-1]]
        crowds = np.array([bool(one["ignore"]) for one in truth.get(image, ())], bool)
        hit, passed = matches(np.asarray(evaluation.ious[image, category]), crowds, len(order), thresholds)
        marked = np.array([bool(detected[image][k].get("lvis_mark")) for k in order])  # not all of it is annotated
        scores.append(own[order])
        images.append(np.full(len(order), index[image]))
        right.append(hit)
        ignored.append(passed | ~hit & marked[:, None])
    best = np.argsort(-np.concatenate(scores), kind="mergesort")
    hits, passes = np.concatenate(right)[best], np.concatenate(ignored)[best]
    return Outcomes(np.concatenate(images)[best], hits, ~hits & ~passes, positives)


def matches(
    ious: np.ndarray, left_out: np.ndarray, detections: int, thresholds: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Two bool (D, T): whether a detection finds an object, and whether it is not counted since it lies on a crowd.

    Detections come from the best score down; each takes the free object that it overlaps most, and a crowd only where
    there is none. A crowd stays free.

    Args:
        ious: (D, G) overlaps of one image and category; of a crowd, the share of the detection.
        left_out: (G,) the crowds.
    """
    hit = np.zeros((detections, len(thresholds)), bool)
    passed = np.zeros_like(hit)
    if not ious.size:
        return hit, passed
    objects, crowds = ious[:, ~left_out], ious[:, left_out]
    free = np.ones((len(thresholds), objects.shape[1]), bool)
    every = np.arange(len(thresholds))
    for number in np.flatnonzero(ious.max(1) >= thresholds[0]):
        if objects.shape[1]:
            overlaps = np.where(free & (objects[number] >= thresholds[:, None]), objects[number], -1.0)
            best = overlaps.shape[1] - 1 - overlaps[:, ::-1].argmax(1)  # of equal ones, the last
            hit[number] = overlaps[every, best] >= 0
            free[every[hit[number]], best[hit[number]]] = False
        if crowds.shape[1]:
            passed[number] = ~hit[number] & (crowds[number].max() >= thresholds)
    return hit, passed


def report(env: Env, evaluator: Evaluator, suffix: str = "") -> None:
    """Puts the resampled values and the errors of an evaluator's metric into a task's record."""
    (metric,) = evaluator.metrics
    values = {f"{name}{suffix}": drawn for name, drawn in metric.resamples.items()}
    env.report(resamples=values, standard_error=errors(values))
