"""What is behind a mean over classes, from the files that the tasks leave: the number of each class, precision against
recall, and the classes that are taken for each other.
"""

import contextlib
import csv
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from results import artifacts, predictions
from results.report import svg

Rows = Sequence[tuple[str, Mapping[str, Mapping[str, Any]]]]  # the name of a row and its records by task
Columns = Sequence[tuple[str, str, str]]  # heading, task, metric

PAIRS = 8  # of classes that a row shows, the most frequent ones
LARGEST = 100.001  # percent, and what rounding adds
LARGEST_FILE = 64 * 1024**2
LARGEST_TABLE = 1024**2  # 1,203 classes of LVIS have a quarter of it
LEVELS = {"50": "IoU 0.5", "75": "IoU 0.75", "": "mean of IoU 0.5 to 0.95"}  # by the end of a metric's name
GROUPS = {"r": "rare", "c": "common", "f": "frequent"}


@dataclass(frozen=True)
class Class:
    """A class of a dense column."""

    name: str
    group: str
    """LVIS: rare, common or frequent."""
    count: int | None
    """Objects to find, or pixels."""
    values: tuple[float | None, ...]
    """In percent, by row; None where the row does not have it, or the set no such object."""


def of(columns: Columns, rows: Rows, out: Path) -> dict[str, Any]:
    """The variables of the template ``classes.html``."""
    tables = []
    for heading, task, metric in columns:
        lines = _table(task, metric, rows, out)
        if lines:
            counted = "pixels" if metric.startswith("miou") else "objects"
            tables.append((heading, counted, any(line.group for line in lines), lines))
    tasks = list(dict.fromkeys(task for _, task, _ in columns))
    return {
        "labels": [label for label, _ in rows],
        "tables": tables,
        "recalls": [panel for column in columns for panel in _recalls(column, rows, out)],
        "confusions": [(task, *found) for task in tasks if (found := _confusions(task, rows, out))],
    }


def _folder(entries: Mapping[str, Mapping[str, Any]], task: str, out: Path) -> Path | None:
    """Where a row's measurement has left its files; None where there is none."""
    entry = entries.get(task, {})
    if entry.get("status") != "ok" or not entry.get("work"):
        return None
    return Path(entry.get("out", out)) / str(entry["work"])


def _table(task: str, metric: str, rows: Rows, out: Path) -> list[Class]:
    suffix = "_ms" if metric.endswith("_ms") else ""
    name = {"miou": "iou"}.get(metric.removesuffix("_ms"), metric)
    whole: dict[tuple[str, str], dict[str, str]] = {}  # by id and name, of the first row that has the class
    values: list[dict[tuple[str, str], float | None]] = []
    for _, entries in rows:
        folder = _folder(entries, task, out)
        lines = _read_table(folder / artifacts.CLASSES.format(suffix)) if folder else []
        lines = [line for line in lines if name in line and "id" in line and "name" in line]
        for line in lines:
            whole.setdefault((line["id"], line["name"]), line)
        values.append({(line["id"], line["name"]): _number(line[name]) for line in lines})
    return [
        Class(
            line["name"],
            GROUPS.get(line.get("frequency", ""), ""),
            _whole(line.get("instances", line.get("pixels"))),
            tuple(own.get(key) for own in values),
        )
        for key, line in whole.items()
    ]


def _read_table(path: Path) -> list[dict[str, str]]:
    """The lines of a CSV file; none where it is absent or damaged."""
    try:
        if not path.is_file() or path.stat().st_size > LARGEST_TABLE:
            return []
        with path.open(newline="", encoding="utf-8", errors="replace") as file:
            return [line for line in csv.DictReader(file) if all(isinstance(value, str) for value in line.values())]
    except (OSError, ValueError, csv.Error):
        return []


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if 0 <= value <= LARGEST else None


def _whole(text: str | None) -> int | None:
    return int(text) if text and text.isascii() and text.isdigit() and len(text) < 19 else None


def _recalls(column: tuple[str, str, str], rows: Rows, out: Path) -> list[tuple[str, str, Markup]]:
    """Heading, which overlap, and the figure of mean precision against recall."""
    heading, task, metric = column
    if metric not in ("box_ap", "mask_ap"):
        return []
    read = [_arrays(_folder(entries, task, out), artifacts.PRECISION_RECALL) for _, entries in rows]
    found = []
    for end, told in LEVELS.items():
        curves = [
            svg.Curve(label, series, arrays["recall"].tolist(), arrays[f"{metric}{end}"].tolist())
            for series, ((label, _), arrays) in enumerate(zip(rows, read, strict=True))
            if _are_curve(arrays.get("recall"), arrays.get(f"{metric}{end}"))
        ]
        if curves:
            found.append((heading, told, svg.curves(curves, f"precision against recall, {told}")))
    return found


def _are_curve(recall: np.ndarray | None, precision: np.ndarray | None) -> bool:
    if recall is None or precision is None or recall.shape != precision.shape or recall.ndim != 1:
        return False
    both = np.stack([recall, precision])
    return 0 < both.shape[1] <= 1000 and both.dtype.kind == "f" and bool((both >= 0).all() and (both <= 1.1).all())


def _confusions(
    task: str, rows: Rows, out: Path
) -> tuple[str, list[tuple[str, list[tuple[str, str, int, float]]]]] | None:
    """What is counted, and of each row that has them its most frequent confusions.

    A confusion is the right class, the class said, how often, and which share in percent of the right class that is.
    """
    counted, found = "images", []
    for label, entries in rows:
        folder = _folder(entries, task, out)
        if folder is None:
            continue
        pairs = _of_images(folder)
        if pairs is None:
            pairs = _of_pixels(folder)
            counted = "pixels" if pairs is not None else counted
        if pairs:
            found.append((label, pairs))
    return (counted, found) if found else None


def _of_images(folder: Path) -> list[tuple[str, str, int, float]] | None:
    arrays = predictions.load(folder) if _fits(folder / predictions.FILE) else {}
    answers, names = predictions.answers_of(arrays), arrays.get("names")
    if answers is None or names is None or names.ndim != 1 or not len(answers.labels) or not answers.top.shape[1]:
        return None
    right, said = answers.labels.astype(np.int64), answers.top[:, 0].astype(np.int64)
    if min(right.min(), said.min()) < 0 or max(right.max(), said.max()) >= len(names):
        return None
    wrong = right != said
    codes, counts = np.unique(right[wrong] * len(names) + said[wrong], return_counts=True)
    whole = np.bincount(right, minlength=len(names))
    return _most(codes // len(names), codes % len(names), counts, whole, names)


def _of_pixels(folder: Path) -> list[tuple[str, str, int, float]] | None:
    arrays = _arrays(folder, artifacts.CONFUSION.format(""))
    pixels, names = arrays.get("pixels"), arrays.get("names")
    if pixels is None or names is None or names.ndim != 1 or pixels.shape != (len(names), len(names)):
        return None
    if pixels.dtype.kind != "i" or pixels.min(initial=0) < 0:
        return None
    right, said = np.nonzero(pixels * (1 - np.eye(len(names), dtype=pixels.dtype)))
    return _most(right, said, pixels[right, said], pixels.sum(axis=1), names)


def _most(
    right: np.ndarray, said: np.ndarray, counts: np.ndarray, whole: np.ndarray, names: np.ndarray
) -> list[tuple[str, str, int, float]]:
    """The most frequent pairs; of equal ones the first classes."""
    return [
        (str(names[right[at]]), str(names[said[at]]), int(counts[at]), 100 * float(counts[at] / whole[right[at]]))
        for at in np.argsort(-counts, kind="stable")[:PAIRS]
    ]


def _fits(path: Path) -> bool:
    try:
        return path.is_file() and path.stat().st_size <= LARGEST_FILE
    except OSError:
        return False


def _arrays(folder: Path | None, name: str) -> dict[str, np.ndarray]:
    """The arrays of a file by name; none where it is absent or damaged."""
    with contextlib.suppress(OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error):
        if folder is not None and _fits(folder / name):
            with np.load(folder / name) as kept:
                return dict(kept)
    return {}
