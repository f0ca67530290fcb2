"""Where a task runs, as opposed to what it measures."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Env:
    """The data, the output folder, the device and the like of one task.

    A task writes only below ``out_dir`` and the caches beside it. What it learns besides its metrics goes into the
    record through ``report``.
    """

    data_root: Path
    out_dir: Path
    device: str = "cpu"
    workers: int = 0
    seed: int = 0
    limit: int | None = None
    """At most so many images of each set; the record says so."""
    identities: Mapping[str, str] = field(default_factory=dict)
    """Of the parts of the data sets that are read (``evaluate.data.identity``); what is kept of images is named by
    them.
    """
    images: Any = None
    """The set that is measured instead of ImageNet (``evaluate.data.sets.LabelledSet``)."""
    inputs: dict[str, Path] = field(default_factory=dict)
    """Files that another task made, by the names that the task's node gives them."""
    compile: bool = False
    """Whether forward passes go through ``torch.compile`` (``evaluate.runtime.compilation``)."""
    keep_models: bool = False
    """Whether a dense task keeps its model beside the record."""
    notes: dict[str, Any] = field(default_factory=dict)
    """What ``report`` has collected."""

    def report(self, **fields: Any) -> None:
        """Adds to the record: ``protocol`` (dict), ``images_asked``, ``images_evaluated``, ``sizes`` (dicts by set),
        ``standard_error`` (dict by metric), ``immaterial`` (settings that change nothing, as
        ``evaluate.harness.protocol`` says) and ``rests_on`` (how another task's result was made).
        """
        for name, value in fields.items():
            if isinstance(value, dict):
                self.notes.setdefault(name, {}).update(value)
            else:
                self.notes[name] = value
