"""Where a task runs, as opposed to what it measures."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class Env:
    """Where a task runs, as opposed to what it measures.

    A task writes only below ``out_dir``. What it learns besides its metrics goes into the record through ``report``.
    """

    data_root: Path
    out_dir: Path
    device: str = "cpu"
    workers: int = 0
    seed: int = 0
    limit: int | None = None  # at most so many images of each set; the record says so
    classifier: Path | None = None  # the fine-tuned classifier that robustness measures
    notes: dict[str, Any] = field(default_factory=dict)

    def report(self, **fields: Any) -> None:
        """Adds to the record: ``protocol`` (dict), ``images_asked``, ``images_evaluated`` (dicts by set), ``standard_error`` (dict by metric)."""
        for name, value in fields.items():
            if isinstance(value, dict):
                self.notes.setdefault(name, {}).update(value)
            else:
                self.notes[name] = value
