"""Accuracy, and what is kept of each image."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from evaluate.data.imagenet import ImageSet, spoken
from results import predictions
from results.predictions import Answers

TOP = 5


def best(scores: torch.Tensor) -> torch.Tensor:
    """The TOP highest classes (B, k) of scores (B, C), the best first, which is the arg-max also where scores tie.

    k is cut to the number of classes. It waits for nothing.
    """
    first = scores.argmax(dim=1, keepdim=True)
    return scores.scatter(1, first, torch.inf).topk(min(TOP, scores.shape[1]), dim=1).indices


def best_of_logits(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """``best`` of logits (B, C), and these classes' probabilities, float16 (B, k)."""
    top = best(logits)
    return top, logits.softmax(dim=1).gather(1, top).half()


def answers(images: ImageSet, left_out: np.ndarray, top: torch.Tensor, probabilities: torch.Tensor) -> Answers:
    """What is kept of a set's m readable images, from (m, k) classes and their probabilities.

    Args:
        left_out: indices of the images that could not be read.
    """
    labels = np.delete(images.labels, left_out)
    return Answers(labels, top.cpu().numpy(), probabilities.cpu().numpy(), left_out)


def percent(correct: torch.Tensor | np.ndarray) -> float:
    """Share of true entries, in percent, from exact counts."""
    return 100.0 * int(correct.sum()) / len(correct)


def mean_per_class(found: Answers) -> tuple[float, np.ndarray]:
    """The mean over classes of each one's accuracy, in percent; and (m,) each image's outcome, weighed so that their
    mean is it. A class without an image does not count.
    """
    counts = np.bincount(found.labels)
    weights = len(found.labels) / (np.count_nonzero(counts) * counts[found.labels])
    outcome = weights * found.correct()
    return 100 * float(outcome.mean()), outcome


def average_precision(scores: np.ndarray, marked: np.ndarray) -> np.ndarray:
    """(classes,) the area under each class's curve of precision over recall, by steps at distinct scores, 0 to 1; NaN
    for a class that no image is marked with.

    Args:
        scores, marked: (m, classes); marked is bool.
    """
    found = np.full(scores.shape[1], np.nan)
    for label in np.flatnonzero(marked.any(axis=0)):
        order = np.argsort(-scores[:, label], kind="stable")
        ranked, right = scores[order, label], np.cumsum(marked[order, label])
        ends = np.append(np.flatnonzero(np.diff(ranked)), len(ranked) - 1)  # images of one score come together
        precision, recall = right[ends] / (ends + 1), right[ends] / right[-1]
        found[label] = np.sum(np.diff(recall, prepend=0) * precision)
    return found


def save_predictions(
    out_dir: Path,
    found: Mapping[str, Answers],
    classes: tuple[str, ...],
    outcomes: Mapping[str, np.ndarray] | None = None,
) -> None:
    """Writes ``predictions.npz``: paired comparisons and confusions are made from it, and the metrics again.

    Args:
        found: by the metric that they give.
        classes: of train.
        outcomes: by metric that no answers give, what became of each image: bool, or a share whose mean it is.
    """
    predictions.save(out_dir, found, classes, spoken(classes), outcomes)
