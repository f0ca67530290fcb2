"""What a classifier said of each image of a test set: ``predictions.npz`` in a task's folder, read without torch.

A file has one set of answers, or one for each test set of robustness; results/README.md lists the arrays. Older files
have nothing but which images are right, and are read too.
"""

import contextlib
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from results import artifacts
from results.atomic import atomic_write

FILE = artifacts.PREDICTIONS
FIRST = "top1"  # the metric whose answers have no prefix


@dataclass(frozen=True)
class Answers:
    """Of m images the k most probable classes. A class is its place among the sorted names of ``imagenet/train``."""

    labels: np.ndarray
    """(m,) the right classes, in the order of the set's files."""
    top: np.ndarray
    """(m, k) the most probable classes, the best first; k is 5, or the number of classes where there are fewer."""
    probabilities: np.ndarray
    """(m, k) theirs; of kNN the share of the votes, of which a class without a vote has 0."""
    left_out: np.ndarray
    """(u,) places of the unreadable images in the set; the m others are in order."""

    def correct(self, count: int = 1) -> np.ndarray:
        """(m,) bool: whether the right class is among the first ``count``."""
        return (self.top[:, :count] == self.labels[:, None]).any(axis=1)


def save(
    folder: Path,
    answers: Mapping[str, Answers],
    classes: tuple[str, ...],
    names: tuple[str, ...],
    outcomes: Mapping[str, np.ndarray] | None = None,
) -> None:
    """Writes the file atomically.

    Args:
        answers: by the metric that they give.
        classes, names: the folders of the classes, and what they are called.
        outcomes: by metric that the answers do not give, what became of each image: bool, or a share whose mean it is.
    """
    whole = np.int16 if len(classes) <= np.iinfo(np.int16).max else np.int32
    arrays: dict[str, Any] = {"classes": np.array(classes), "names": np.array(names), **(outcomes or {})}
    for metric, own in answers.items():
        arrays |= {
            f"{_prefix(metric)}label": own.labels.astype(whole),
            f"{_prefix(metric)}top": own.top.astype(whole),
            f"{_prefix(metric)}probability": own.probabilities.astype(np.float16),
            f"{_prefix(metric)}left_out": own.left_out.astype(np.int32),
        }
    with atomic_write(folder / FILE) as written:
        np.savez_compressed(written, **arrays)


def load(folder: Path) -> dict[str, np.ndarray]:
    """All arrays of a folder's file by name; none where it is absent or damaged."""
    with contextlib.suppress(OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error):
        with np.load(folder / FILE) as kept:
            return dict(kept)
    return {}


def answers_of(arrays: Mapping[str, np.ndarray], metric: str = FIRST) -> Answers | None:
    """The answers that give a metric, from a file's arrays; None where they are not among them, or do not fit."""
    names = [f"{_prefix(metric)}{name}" for name in ("label", "top", "probability", "left_out")]
    if not all(name in arrays for name in names):
        return None
    found = Answers(*(arrays[name] for name in names))
    fit = (
        found.top.ndim == 2
        and all(array.dtype.kind in "iu" for array in (found.labels, found.top, found.left_out))
        and found.probabilities.dtype.kind == "f"
        and found.top.shape == found.probabilities.shape
        and found.labels.shape == found.top.shape[:1]
    )
    return found if fit else None


def outcome(arrays: Mapping[str, np.ndarray], metric: str) -> np.ndarray | None:
    """(m,) what became of each image, 0 to 1, whose mean is the metric; None where it is not kept."""
    older = "correct" if metric == FIRST else metric
    if older in arrays:
        return arrays[older]
    answers = answers_of(arrays, FIRST if metric == "top5" else metric)
    return None if answers is None else answers.correct(5 if metric == "top5" else 1)


def _prefix(metric: str) -> str:
    return "" if metric == FIRST else f"{metric}."
