"""Records as a task would leave them, for tests of the tables."""

import itertools
import re
from pathlib import Path
from typing import Any

import pandas as pd

from results import record
from results.columns import COLUMNS

NUMBERS = itertools.count()  # each is measured after the one before
PAPER = {"epochs": 100, "micro_batch": 128, "precision": "auto", "max_unreadable_images": 0}


def entry(task: str = "finetune", **changes: Any) -> dict[str, Any]:
    config = {**PAPER, **changes.pop("settings", {})}
    encoder = changes.pop("encoder", "mine")
    limit, data = changes.pop("limit", None), changes.pop("data_fingerprint", "d")
    fingerprint = changes.pop("encoder_fingerprint", "f" * 64)
    known = record.identity(
        task, config, seed=0, limit=limit, encoder_fingerprint=fingerprint, data_fingerprint=data, inputs={}
    )
    metrics = {metric: 50.0 for _, node, metric in COLUMNS if node == task}
    base = {
        "encoder": encoder,
        "paper_config": PAPER,
        "preset": "paper",
        "status": "ok",
        "reason": "",
        "metrics": metrics,
        "protocol": {},
        "toy_data": False,
        "started_utc": f"2026-01-01T00:00:00.{next(NUMBERS):06}",
        "work": f"{encoder}/{task}-0",
        "immaterial": {"": ["max_unreadable_images"]},
    }
    return {**known, **base, **changes}


def shown(out: Path) -> tuple[pd.DataFrame, str]:
    """What table.md shows, text with marks and without emphasis or the lines of errors; and the whole file."""
    text = (out / "table.md").read_text()
    lines = [
        [re.sub(r"^(\*+)(.*?)\1", r"\2", cell.strip()) for cell in line.strip("|").split(" | ")]
        for line in text.splitlines()
        if line.startswith("| ")
    ]
    body = [line for line in lines[1:] if line[0] != "±"]
    return pd.DataFrame([line[1:] for line in body], index=[line[0] for line in body], columns=lines[0][1:]), text
