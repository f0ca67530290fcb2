"""What the test of a dense task leaves beside the record: detections, numbers by class, precision against recall and
confusion, as results/README.md describes the files.

Axes: T overlaps (0.5, 0.55, …, 0.95), L recall levels, C classes.
"""

import csv
import gzip
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.evaluator import Evaluator
from torch import nn

from evaluate.runtime import distributed
from results import artifacts
from results.atomic import atomic_write, remove_partial

DECIMALS = 3  # of a box, in pixels
SHOWN = 6  # decimals of a mean precision


def save(folder: Path, evaluator: Evaluator, suffix: str = "") -> None:
    """Writes what an evaluator's metric has kept; the first process alone has it.

    Args:
        suffix: at the end of the files' names.
    """
    (metric,) = evaluator.metrics
    if distributed.rank() == 0:
        metric.save(folder, suffix)


def write_model(folder: Path, model: nn.Module, **about: Any) -> None:
    """Writes a trained model's weights under mmdetection's or mmsegmentation's names, with what is said ``about`` it.

    ``torch.load(FILE, weights_only=True)`` reads it.
    """
    remove_partial(folder, artifacts.MODEL)
    with atomic_write(folder / artifacts.MODEL) as written:
        torch.save({"state_dict": model.state_dict(), "meta": about}, written)


def write_detections(folder: Path, detections: Iterable[Mapping[str, Any]]) -> None:
    """Writes COCO results, one a line of a JSON list, gzipped; the same detections give the same bytes."""
    with (
        atomic_write(folder / artifacts.DETECTIONS) as written,
        written.open("wb") as raw,
        gzip.GzipFile("", "wb", 6, raw, mtime=0) as file,
    ):
        before = b"["
        for one in detections:
            file.write(before + json.dumps(one, separators=(",", ":")).encode())
            before = b",\n"
        file.write(b"[]" if before == b"[" else b"]")


def short(score: float) -> float:
    """A float32 in as few digits as tell it from all others: scores keep their order."""
    return float(str(np.float32(score)))


def write_instances(
    folder: Path,
    categories: Sequence[Mapping[str, Any]],
    instances: Sequence[int],
    precisions: Mapping[str, np.ndarray],
    levels: np.ndarray,
) -> None:
    """Writes the AP of each class and precision against recall.

    Args:
        categories: C of them, with ``id``, ``name`` and, of LVIS, ``frequency``.
        instances: (C,) objects to find.
        precisions: by metric (``box_ap``, ``mask_ap``) (T, L, C); -1 for a class without objects.
        levels: (L,) recalls.
    """
    table: dict[str, Any] = {"id": [one["id"] for one in categories]}
    table["name"] = [one["name"] for one in categories]
    if categories and "frequency" in categories[0]:
        table["frequency"] = [one["frequency"] for one in categories]
    table["instances"] = instances
    curves: dict[str, np.ndarray] = {"recall": levels}
    for name, precision in precisions.items():
        there = (precision > -1).all(axis=(0, 1))
        parts = {name: precision, f"{name}50": precision[:1], f"{name}75": precision[5:6]}
        for key, part in parts.items():
            table[key] = np.where(there, 100 * part.mean(axis=(0, 1)), np.nan)
            curves[key] = part[:, :, there].mean(axis=(0, 2)).round(SHOWN)
        curves[f"{name}50_classes"] = np.where(there, precision[0], np.nan).T.astype(np.float32)
    write_table(folder / artifacts.CLASSES.format(""), table)
    with atomic_write(folder / artifacts.PRECISION_RECALL) as written:
        np.savez_compressed(written, **curves)  # type: ignore[arg-type]  # its last argument is no array


def write_confusion(folder: Path, pairs: np.ndarray, names: Sequence[str], suffix: str = "") -> None:
    """Writes the pixels (C, C) by right and predicted class, and of each class its pixels, IoU and accuracy."""
    right, predicted, truth = pairs.diagonal(), pairs.sum(axis=0), pairs.sum(axis=1)
    union = predicted + truth - right
    with np.errstate(invalid="ignore"):  # 0 of 0: a class that does not occur
        iou, accuracy = 100 * right / union, 100 * right / truth
    table = {"id": range(len(names)), "name": names, "pixels": truth, "iou": iou, "accuracy": accuracy}
    write_table(folder / artifacts.CLASSES.format(suffix), table)
    with atomic_write(folder / artifacts.CONFUSION.format(suffix)) as written:
        np.savez_compressed(written, pixels=pairs, names=np.array(names))


def write_table(path: Path, columns: Mapping[str, Iterable[Any]]) -> None:
    """Writes a CSV file of columns of equal lengths; NaN is an empty cell."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([_cell(value) for value in row] for row in zip(*columns.values(), strict=True))
    with atomic_write(path) as written:
        written.write_text(text.getvalue())


def _cell(value: Any) -> Any:
    if isinstance(value, float | np.floating):
        return "" if np.isnan(value) else repr(float(value))
    return value
