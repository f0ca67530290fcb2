"""Curves of a training: ``curves.jsonl`` in the task's own folder, a line a point, for the report and other programs.

A point has ``step`` (steps of the optimizer that were done), ``epoch`` where the task counts epochs, ``rate`` (the
highest learning rate), ``loss`` (its mean since the point before) and ``accuracy`` where the training measures one.
"""

import json
from pathlib import Path

from evaluate.runtime import scalars
from results import artifacts
from results.atomic import atomic_write

FILE = artifacts.CURVES
MOST = 1000  # points of a training


def begin(folder: Path, step: int) -> None:
    """Makes the folder, and leaves of its points those up to a step.

    A training that goes on from an older state measures the later ones again.
    """
    folder.mkdir(parents=True, exist_ok=True)
    scalars.begin(folder, step)
    path = folder / FILE
    if not path.is_file():
        return
    kept = [line for line in path.read_text(errors="replace").splitlines() if _step(line) <= step]
    with atomic_write(path) as written:
        written.write_text("".join(f"{line}\n" for line in kept))


def append(folder: Path, step: int, **values: float) -> None:
    """Adds a point, with six digits of each number."""
    point = {"step": step, **{name: _short(value) for name, value in values.items()}}
    scalars.write(step, values)
    with (folder / FILE).open("a") as file:
        file.write(json.dumps(point) + "\n")


def _short(value: float) -> float:
    return value if isinstance(value, int) else float(f"{value:.6g}")


def _step(line: str) -> float:
    """Infinite for half a line, which a killed process can leave."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")
