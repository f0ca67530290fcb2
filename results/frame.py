"""Records of several output folders as one list, and as a data frame with a line a number."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from results import grid, marks, published, record
from results.columns import heading_of
from results.escape import plain

FIELDS = {  # column of the data frame: its type in pandas
    "row": "str",  # the encoder's name
    "architecture": "str",  # missing in older records
    "task": "str",
    "metric": "str",
    "column": "str",  # heading in the table; missing for a metric that the table does not show
    "value": "float64",  # in percent
    "error": "float64",  # standard error in points; missing where it is not known
    "n": "Int64",  # images of the test set
    "seed": "Int64",
    "limit": "Int64",  # images that were read of each set; missing: all
    "toy": "bool",
    "protocol": "str",  # a key of results.published.PROTOCOLS; missing where no published number has this protocol
    "marks": "str",  # how it differs from the published protocol, joined by " | "; missing where it does not
    "source": "str",  # the record's file
}


class Disagreement(ValueError):
    """Two records of one measurement have different numbers."""


def load(outs: Sequence[str | Path]) -> pd.DataFrame:
    """Every number of the ``ok`` records, with the columns of FIELDS; what is not known is missing (NA).

    Raises Disagreement, and FileNotFoundError for a folder without records.
    """
    lines = []
    for entry in records(outs)[0]:
        for metric, value in entry["metrics"].items() if entry["status"] == "ok" else ():
            heading = heading_of(entry["task"], metric, [entry])
            architecture = str(entry.get("architecture", ""))
            lines.append(
                {
                    "row": entry["encoder"],
                    "architecture": architecture or None,
                    "task": entry["task"],
                    "metric": metric,
                    "column": heading or None,
                    "value": float(value),
                    "error": grid.error_of(entry, metric),
                    "n": grid.images_of(entry, metric),
                    "seed": entry["seed"],
                    "limit": entry["limit"],
                    "toy": bool(entry.get("toy_data")),
                    "protocol": published.group_measured(heading, architecture, entry) if heading else None,
                    "marks": " | ".join(marks.differences(entry, metric)) or None,
                    "source": str(record.path_of(Path(entry["out"]) / "records", entry["encoder"], entry)),
                }
            )
    return pd.DataFrame(lines, columns=list(FIELDS)).astype(FIELDS)


def records(outs: Sequence[str | Path]) -> tuple[list[dict[str, Any]], list[str]]:
    """The records of several output folders, oldest first, each with its folder as ``out``; and a sentence for what
    lies there besides.

    Raises:
        Disagreement: two folders have different numbers for one measurement.
        FileNotFoundError: a folder without records.
    """
    found: dict[tuple[str, str], dict[str, Any]] = {}
    others: list[dict[str, Any]] = []
    problems = []
    for out in map(Path, outs):
        entries, faults = record.read(out / "records")
        problems += faults
        if not entries:
            why = f" ({faults[0]})" if faults else ""
            raise FileNotFoundError(
                f"there are no records below {plain(str(out / 'records'))}{why}; give an output folder of run_all.py"
            )
        for entry in entries:
            entry["out"] = str(out)
            if entry["status"] != "ok":
                others.append(entry)
                continue
            place = entry["encoder"], record.key_of(entry)
            first = found.setdefault(place, entry)
            if first["metrics"] != entry["metrics"]:
                raise Disagreement(_both(first, entry))
    return sorted([*found.values(), *others], key=lambda entry: entry["started_utc"]), problems


def _both(first: dict[str, Any], second: dict[str, Any]) -> str:
    """Which numbers two records of one measurement give, and where they lie."""
    names = [name for name in first["metrics"] if first["metrics"][name] != second["metrics"].get(name)]
    name = (names or list(second["metrics"]))[0]
    told = [
        f"{plain(str(Path(entry['out']) / 'records'))} has {entry['metrics'].get(name, 'none')}"
        for entry in (first, second)
    ]
    return (
        f"two records of one measurement ({plain(first['encoder'])}, {first['task']}, key {record.key_of(first)}) "
        f"disagree in {plain(name)}: {told[0]}, {told[1]}; remove one of them"
    )
