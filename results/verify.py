"""Whether the records of an output folder are still what was measured."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from results import comparison, record
from results.atomic import sha256
from results.escape import plain


def verify(out: Path) -> tuple[list[str], list[str]]:
    """What was checked, a line a record; and a sentence for each fault: an edited or damaged record, a file with
    another checksum, a metric that its images' outcomes do not give.
    """
    entries, faults = record.read(out / "records")
    checked = []
    for entry in entries:
        name = record.path_of(Path(), entry["encoder"], entry).name
        found = [f"{plain(name)}: {fault}" for fault in _faults(out, entry)]
        faults += found
        if entry["status"] != "ok":
            continue
        again = _recomputed(out, entry)
        told = f"{', '.join(again)} recomputed" if again else "no outcomes of images are kept"
        sealed = "checksum" if "checksum" in entry else "written before records had a checksum"
        checked.append(f"{plain(name)}: {'FAULT' if found else 'ok'} ({sealed}; {told})")
    return checked, faults


def _faults(out: Path, entry: Mapping[str, Any]) -> Iterator[str]:
    if entry.get("key") not in (None, record.key_of(entry)):
        yield f"its key is {entry['key']}, but its fields give {record.key_of(entry)}; it was edited"
    if not record.path_of(out / "records", entry["encoder"], entry).is_file():
        yield "its file has another name than its fields give; it was edited or renamed"
    for name, digest in entry.get("files", {}).items():
        path = out / entry["work"] / name
        if path.is_file() and sha256(path) != digest:
            yield f"{plain(str(path))} has another checksum than when it was made"
    for metric, value in _recomputed(out, entry).items():
        if abs(value - entry["metrics"][metric]) > 1e-6:
            yield f"{metric} is {entry['metrics'][metric]:.4f} in the record, but its images give {value:.4f}"


def _recomputed(out: Path, entry: Mapping[str, Any]) -> dict[str, float]:
    """The metrics whose outcomes are kept image by image, from these."""
    outcomes = comparison.Outcomes(out)
    found = {metric: outcomes.of(entry, metric) for metric in entry["metrics"]}
    several = entry.get("protocol", {}).get("labels", {})  # a mean over draws of labels, of which one is kept
    if isinstance(several, dict) and "accuracies" in several:
        return {}
    return {name: 100 * float(np.mean(right, dtype=float)) for name, right in found.items() if right is not None}
