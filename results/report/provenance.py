"""Where a row's numbers come from: its records, its encoder's certificate, the sets that were read, the machine."""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from results.grid import Entry, Row
from results.report import times

LARGEST_SIDE_FILE = 4 * 1024**2  # a certificate has kilobytes


def records(row: Row) -> dict[str, Entry]:
    """The records of a row by task."""
    return {cell.entry["task"]: cell.entry for cell in row.cells.values() if cell.entry}


def certificate(row: Row, out: Path) -> dict[str, Any]:
    """What is known of a row's encoder, from its records and from the certificate beside it."""
    entry = next((entry for entry in records(row).values() if entry.get("work")), {})
    source = entry.get("encoder_source") or {}
    facts = {
        "label": row.label,
        "architecture": row.architecture,
        "source": " · ".join(
            f"{name} {source[name]}" for name in ("format", "branch", "epoch") if source.get(name) not in (None, "")
        ),
        "sha256": str(source.get("sha256", ""))[:12],
    }
    path = Path(entry.get("out", out)) / str(entry.get("work", "")).partition("/")[0] / "encoder.certificate.json"
    try:
        if path.stat().st_size > LARGEST_SIDE_FILE or not path.is_file():
            raise ValueError
        read = json.loads(path.read_text())
        checks = [check for check in read["checks"].values() if isinstance(check, dict)]
        same = read.get("fingerprint") == entry.get("encoder_fingerprint")
        state = "passed" if read["passed"] is True and same else "is of another encoder" if not same else "not passed"
        largest = max((float(check["difference"]) for check in checks if "difference" in check), default=None)
        told = f"{len(checks)} comparisons" + ("" if largest is None else f", largest difference {largest:.1e}")
        return {**facts, "state": state, "told": f"{told}; tolerance {read.get('tolerance')}"}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {**facts, "state": "no certificate beside the records", "told": ""}


def sets(measured: Sequence[Row]) -> list[dict[str, str]]:
    """Each set that was read: what lay there, beside what is published; once, where all records agree."""
    found: dict[tuple[str, ...], None] = {}
    for entry in (entry for row in measured for entry in records(row).values()):
        for name, size in entry.get("sizes", {}).items():
            unreadable = len(entry.get("unreadable_images", {}).get(name, []))
            counts = (
                f"{size['images']:,}" if isinstance(size.get("images"), int) else "",
                str(size.get("classes", "")),
            )
            subset = entry.get("subset", {}).get(name, "")
            state = subset if subset else "toy data" if entry.get("toy_data") else "as published"
            found[name, *counts, state, str(unreadable) if unreadable else "none"] = None
    fields = ("name", "images", "classes", "state", "unreadable")
    return [dict(zip(fields, one, strict=True)) for one in found]


def environment(measured: Sequence[Row]) -> list[tuple[str, str]]:
    """Devices, code, packages and times of the records that are shown; several values are told with their counts."""
    entries = [entry for row in measured for entry in records(row).values() if entry["status"] == "ok"]
    if not entries:
        return []
    facts: dict[str, list[str]] = {"device": [times.device(entry) for entry in entries]}
    for entry in entries:
        git = entry.get("git", {})
        if git.get("commit"):
            changed = " with changes" if git.get("dirty") else ""
            facts.setdefault("this code", []).append(f"{str(git['commit'])[:8]}{changed}")
        for name, version in entry.get("versions", {}).items():
            facts.setdefault(name, []).append(version)
    told = [(name, _counted(values)) for name, values in facts.items()]
    begun = sorted(entry["started_utc"] for entry in entries)
    sealed = sum("checksum" in entry for entry in entries)
    span = begun[0] if begun[0] == begun[-1] else f"{begun[0]} to {begun[-1]}"
    # a record whose checksum is wrong was never read
    return [("measured", span), ("records", f"{len(entries)}, of which {sealed} with a checksum that holds"), *told]


def _counted(values: Iterable[str]) -> str:
    counts = Counter(values)
    return (
        next(iter(counts))
        if len(counts) == 1
        else ", ".join(f"{value} ({count} records)" for value, count in counts.items())
    )
