"""The errors of numbers and of their differences, and which of a column's numbers are best.

All errors are standard errors in percent points; 1.96 of them to each side are the 95 % interval.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from results import predictions

Z = 1.96  # standard errors in half of a 95 % interval


def binomial(percentage: float, images: int) -> float:
    """Standard error in points of an accuracy over independent images.

    Where all images are right, or none is, the formula would give 0, which few images do not show. There it is that of
    two more images right and two more wrong (Agresti and Coull 1998): half of a 95 % interval is 2.8 images of 1,000.
    """
    share = percentage / 100
    if share in (0, 1):
        share, images = (2 + share * images) / (images + 4), images + 4
    return 100 * math.sqrt(max(share * (1 - share), 0) / images)


def paired_difference(first: np.ndarray, second: np.ndarray) -> tuple[float, float]:
    """Mean difference of two (N,) outcomes on the same images, and half of its normal 95 % interval, in points.

    Raises ValueError where the images are not the same number.
    """
    if first.shape != second.shape:
        raise ValueError(f"{len(first)} and {len(second)} images cannot be paired")
    difference = first.astype(float) - second.astype(float)
    return 100 * difference.mean(), 100 * Z * difference.std(ddof=1) / len(difference) ** 0.5


def is_mean_of(percentage: float, outcomes: np.ndarray) -> bool:
    """Whether a metric is what its images' outcomes give."""
    return abs(100 * float(outcomes.mean(dtype=float)) - percentage) < 1e-6


def of_resamples(values: Sequence[float]) -> float:
    """Standard error of a number from its values on resampled images."""
    return float(np.std(np.asarray(values, dtype=float), ddof=1))


class Outcomes:
    """What is kept of single images, by record and metric; each file is read once."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self._read: dict[tuple[str, str], np.ndarray | None] = {}

    def of(self, entry: Mapping[str, Any], metric: str) -> np.ndarray | None:
        """(N,) outcomes, 0 to 1 an image, or None where the file is absent or damaged, or lacks them."""
        folder = Path(entry.get("out", self.out)) / entry.get("work", "")
        key = str(folder), metric
        if key not in self._read:
            self._read[key] = predictions.outcome(predictions.load(folder), metric)
        return self._read[key]

    def error_of_difference(self, first: Mapping[str, Any], second: Mapping[str, Any], metric: str) -> float | None:
        """Standard error of the difference of two records' metric on the same images, or None where it is not known."""
        same = all(first[name] == second[name] for name in ("task", "data_fingerprint", "limit"))
        if not same or first.get("images_evaluated") != second.get("images_evaluated"):
            return None
        drawn = [entry.get("resamples", {}).get(metric) for entry in (first, second)]
        if drawn[0] and drawn[1] and len(drawn[0]) == len(drawn[1]):  # the same images in both, resample by resample
            return of_resamples(np.subtract(drawn[0], drawn[1]).tolist())
        one, other = (self.of(entry, metric) for entry in (first, second))
        if one is None or other is None or one.shape != other.shape or len(one) < 2:
            return None
        if not (is_mean_of(first["metrics"][metric], one) and is_mean_of(second["metrics"][metric], other)):
            return None  # a mean over several draws, of which one is kept; or the file is another record's
        return paired_difference(one, other)[1] / Z


def differs(difference: float, error: float | None) -> bool:
    """Whether a difference exceeds its 95 % interval; without an error nothing is known to differ."""
    return error is not None and abs(difference) > Z * error


def best_and_second(values: Mapping[str, float], error: Any) -> tuple[set[str], set[str]]:
    """The names of the best values and of the second best, each with all that cannot be told from it.

    Where nothing differs from the best, there is neither.

    Args:
        error: a function of two names, the standard error of their difference or None.
    """

    def tied_with_highest(names: Sequence[str]) -> set[str]:
        highest = max(names, key=lambda name: values[name])
        return {name for name in names if not differs(values[highest] - values[name], error(highest, name))}

    names = list(values)
    best = tied_with_highest(names) if names else set()
    others = [name for name in names if name not in best]
    return (best, tied_with_highest(others)) if others else (set(), set())
