"""The trainings' curves, read from the files that the tasks leave in their folders (``curves.jsonl``)."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from results import artifacts
from results.report import svg

FILE = artifacts.CURVES
LARGEST_FILE = 1024**2  # a thousand points have a tenth of it
LARGEST = 1e6  # number that is drawn
KINDS = {"loss": "loss", "accuracy": "accuracy on the training's batches"}


def panels(rows: Sequence[tuple[str, Mapping[str, Mapping[str, Any]]]], out: Path) -> list[tuple[str, str, Markup]]:
    """Task, what is drawn and the figure, of every task of which a row has curves.

    Args: rows: the name of a row and its records by task.
    """
    tasks = dict.fromkeys(task for _, entries in rows for task in entries)
    found = []
    for task in tasks:
        read = [(label, _read(entries[task], out) if task in entries else []) for label, entries in rows]
        for kind, told in KINDS.items():
            curves = [
                svg.Curve(label, series, *zip(*own, strict=True))
                for series, (label, points) in enumerate(read)
                if (own := [(_place(point), point[kind]) for point in points if kind in point])
            ]
            if curves:
                axis = "epoch" if any("epoch" in point for _, points in read for point in points) else "step"
                found.append((task, f"{told}, by {axis}", svg.curves(curves, kind)))
    return found


def _place(point: Mapping[str, float]) -> float:
    return point.get("epoch", point["step"])


def _read(entry: Mapping[str, Any], out: Path) -> list[dict[str, float]]:
    """The points of a record's training; none where there is no such file. A damaged line is left out."""
    path = Path(entry.get("out", out)) / str(entry.get("work", "")) / FILE
    try:
        if not entry.get("work") or not path.is_file() or path.stat().st_size > LARGEST_FILE:
            return []
        lines = path.read_text(errors="replace").splitlines()
    except (OSError, ValueError):
        return []
    return [point for line in lines if "step" in (point := _point(line))]


def _point(line: str) -> dict[str, float]:
    try:
        values = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    values = values if isinstance(values, dict) else {}
    return {
        name: value
        for name, value in values.items()
        if type(value) in (int, float) and math.isfinite(value) and abs(value) < LARGEST
    }
