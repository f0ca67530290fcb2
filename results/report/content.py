"""What the report shows, taken from the table and from the records behind its cells; ``page.html`` lays it out."""

import itertools
import json
import re
import shlex
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from results import grid as table
from results import marks, published, ranking
from results.columns import group_of
from results.comparison import Outcomes
from results.escape import plain
from results.formats import letters
from results.grid import Cell, Entry, Grid, Row
from results.report import classes, curves, files, pictures, svg, times

MOST_BASES = 12  # measured rows that can each be the baseline; of more, the first, the last and the one of --reference
MOST_DRAWN = 8  # rows in a figure of differences, one for each colour
LARGEST_SIDE_FILE = 4 * 1024**2  # a certificate has kilobytes
LARGEST = 1e6  # number that is drawn
SEVERITIES = ("1", "2", "3", "4", "5")


def of(grid: Grid) -> dict[str, Any]:
    """All variables of the template."""
    rows = [row for row in grid.rows if row.kind != "difference"]
    measured = [row for row in rows if row.kind == "measured"]
    outcomes = grid.outcomes or Outcomes(Path())
    runs = _runs(measured)
    bases = _bases(grid, rows, measured)
    gaps = {base: _differences(grid, rows, rows[base], outcomes) for base in bases}
    shown, _ = _drawn(measured, runs)
    drawn_rows = [(row.label, _entries(row)) for row in shown]
    strips, left_out = pictures.strips(drawn_rows, outcomes.out)
    first = next((base for base in bases if rows[base].label == grid.reference), bases[0] if bases else None)
    return {
        "groups": [
            (name, len(list(own)))
            for name, own in itertools.groupby(group_of(node, heading) for heading, node, _ in grid.columns)
        ],
        "headings": [heading.removeprefix(f"{group_of(node, heading)} ") for heading, node, _ in grid.columns],
        "rows": _lines(grid, rows),
        "bases": [(base, rows[base].label) for base in bases],
        "base": first,
        "tiles": _tiles(grid, measured),
        "missing": _missing(grid, measured, outcomes.out),
        "figures": _figures(grid, rows, gaps, runs),
        "drawn": _drawn(measured, runs)[1],
        "curves": curves.panels(drawn_rows, outcomes.out),
        "curved": list(enumerate(row.label for row in shown)),
        "classes": classes.of(grid.columns, drawn_rows, outcomes.out),
        "files": files.of(drawn_rows),
        "strips": strips,
        "left_out": left_out,
        "epochs": _epochs(grid, rows, runs),
        "runs": [(number, stem, len(own)) for number, (stem, own) in enumerate(runs.items())],
        "corruptions": _corruptions(measured),
        "rankings": [
            (architecture, one)
            for architecture in dict.fromkeys(row.architecture for row in measured)
            for one in ranking.agreements(architecture)
        ],
        "protocols": published.PROTOCOLS,
        "times": times.table([(row.label, _entries(row)) for row in measured]),
        "certificates": [_certificate(row, outcomes.out) for row in measured],
        "sets": _sets(measured),
        "environment": _environment(measured),
        "data": _data(grid, rows, gaps),
    }


def _lines(grid: Grid, rows: Sequence[Row]) -> list[dict[str, Any]]:
    numbers = {note: letters(number) for number, note in enumerate(grid.footnotes)}
    return [
        {
            "label": row.label,
            "kind": row.kind,
            "cells": [
                (row.cells[heading], ", ".join(numbers.get(mark, "") for mark in row.cells[heading].marks))
                for heading, *_ in grid.columns
            ],
        }
        for row in rows
    ]


def _data(grid: Grid, rows: Sequence[Row], gaps: Mapping[int, Any]) -> dict[str, Any]:
    """What the page's script takes: every cell with its facts, and the differences to each baseline."""
    cells = [[_cell(row, column, row.cells[column[0]]) for column in grid.columns] for row in rows]
    return {
        "columns": [heading for heading, *_ in grid.columns],
        "rows": [plain(row.label) for row in rows],
        "cells": cells,
        "differences": gaps,
    }


def _cell(row: Row, column: tuple[str, str, str], cell: Cell) -> dict[str, Any]:
    entry = cell.entry or {}
    facts: dict[str, Any] = (
        {"text": plain(cell.text)} if cell.value is None else {"value": cell.value, "error": cell.error}
    )
    facts |= {"deviation": cell.deviation} if cell.deviation is not None else {}
    told: list[tuple[str, str]] = []
    if entry and cell.value is None:
        why = entry["reason"] if entry["status"] != "ok" else marks.why_skipped(entry, column[2])
        told.append(("reason", why))
    if cell.images:
        told.append(("test images", f"{cell.images:,}"))
    if row.kind == "published" and cell.protocol:
        told.append(("protocol", published.PROTOCOLS.get(cell.protocol, cell.protocol)))
    elif entry:
        told.append(("protocol", _protocol(entry)))
    told += [("differs", mark) for mark in cell.marks]
    told += [("record" if entry else "source", cell.source)] if cell.source else []
    if row.kind == "measured":
        told.append(("command", command(row, column[1], entry)))
    return {**facts, "facts": [(name, plain(text)) for name, text in told if text]}


def _protocol(entry: Entry) -> str:
    """The protocol's single facts; what is a table of its own stands elsewhere."""
    simple = {name: value for name, value in entry.get("protocol", {}).items() if not isinstance(value, dict | list)}
    told = {**simple, "seed": entry["seed"], **({"limit": entry["limit"]} if entry["limit"] else {})}
    return " · ".join(f"{name.replace('_', ' ')} {value}" for name, value in told.items())


OF_SETS = "small_set"  # the preset of the probes and of fine-tuning on labelled sets
DEMO_ROWS = ("siameseim", "mae", "random")  # of run_all.py without a checkpoint


def command(row: Row, node: str, entry: Entry) -> str:
    """What measures a cell again; of another preset than the paper's, the record has the settings."""
    entry = entry or next((cell.entry for cell in row.cells.values() if cell.entry), {})
    name = shlex.quote(plain(f"{entry.get('encoder', row.label)}=FILE"))
    of_demo = entry.get("toy_data") and entry.get("encoder") in DEMO_ROWS  # which pretrains on data that it makes
    sets = entry.get("column", {}).get("sets", "") if entry.get("task") == node else ""
    where = "" if ".toml:" in sets else " --data-root DIR"
    where += f" --sets {shlex.quote(plain(sets))}" if sets else ""
    text = "uv run run_all.py" + ("" if of_demo else f" --ckpt {name}{where}")
    preset = entry.get("preset", "paper")
    if sets and preset == OF_SETS:  # which is the default there
        preset = "paper"
    if preset in ("demo", "paper"):  # without --preset the probe is by the protocol of the encoder's method
        needed = preset == "demo" or entry.get("task") == node == "linear_probe"
        text += f" --preset {preset}" if needed and not of_demo else ""
    elif entry.get("task") == node:
        text += f" --set {shlex.quote(plain(f'{node}.preset={preset}'))}"
    text += f" --tasks {node}"
    text += f" --seed {entry['seed']}" if entry.get("seed") else ""
    text += f" --limit {entry['limit']}" if entry.get("limit") else ""
    if preset == "paper" and entry.get("task") == node:
        changed = {
            name: value for name, value in entry["config"].items() if entry.get("paper_config", {}).get(name) != value
        }
        for setting, value in changed.items() if entry.get("paper_config") else ():
            said = value if isinstance(value, str) else json.dumps(value)
            text += f" --set {shlex.quote(plain(f'{node}.{setting}={said}'))}"
    return text


def _bases(grid: Grid, rows: Sequence[Row], measured: Sequence[Row]) -> list[int]:
    """The rows that a reader can choose as the baseline, published ones first."""
    own = measured if len(measured) <= MOST_BASES else [measured[0], measured[-1]]
    labels = {grid.reference, *(row.label for row in own)}
    return [
        number
        for number, row in enumerate(rows)
        if (row.kind == "published" or row.label in labels)
        and any(cell.value is not None for cell in row.cells.values())
    ]


def _differences(
    grid: Grid, rows: Sequence[Row], base: Row, outcomes: Outcomes
) -> list[list[tuple[float, float | None] | None]]:
    """Of each row and column: by how many points it exceeds the baseline, and the standard error of that."""
    found: list[list[tuple[float, float | None] | None]] = [[] for _ in rows]
    for heading, _, metric in grid.columns:
        other = base.cells[heading]
        column = [row.cells[heading] for row in rows]
        for number, row in enumerate(rows):
            cell = row.cells[heading]
            if cell.value is None or other.value is None or row is base:
                found[number].append(None)
                continue
            published_both = cell.entry is None and other.entry is None  # of two papers' numbers we know no error
            error = None if published_both else table.combined(cell, other, metric, outcomes, column)
            difference = cell.value - other.value
            found[number].append((difference, error) if _can_be_drawn(difference, error) else None)
    return found


def _can_be_drawn(value: float, error: float | None) -> bool:
    """Whether it is of a percentage's order: a record may hold any finite number, on which no axis is made."""
    return abs(value) < LARGEST and abs(error or 0) < LARGEST


def _drawn(measured: Sequence[Row], runs: Mapping[str, list[tuple[float, Row]]]) -> tuple[list[Row], str]:
    """The rows of the figure of differences, and a sentence where these are not all: of a run, its last epoch."""
    earlier = [row.label for own in runs.values() for _, row in own[:-1]]
    rows = [row for row in measured if row.label not in earlier]
    told = []
    if earlier:
        told.append("of several epochs of a run, the last is drawn")
    if len(rows) > MOST_DRAWN:
        told.append(f"of {len(rows)} rows, the first {MOST_DRAWN} are drawn; the table has all")
    return rows[:MOST_DRAWN], "; ".join(told)


def _figures(
    grid: Grid, rows: Sequence[Row], gaps: Mapping[int, Any], runs: Mapping[str, list[tuple[float, Row]]]
) -> list[tuple[int, list[tuple[str, Markup]]]]:
    """For each baseline, a panel a column: the differences of the measured rows."""
    drawn, _ = _drawn([row for row in rows if row.kind == "measured"], runs)
    places = {row.label: number for number, row in enumerate(rows)}
    figures = []
    for base, found in gaps.items():
        panels: dict[str, list[svg.Point]] = {}
        for index, (heading, *_) in enumerate(grid.columns):
            for series, row in enumerate(drawn):
                gap = found[places[row.label]][index]
                if gap:
                    panels.setdefault(heading, []).append(svg.Point(row.label, gap[0], gap[1], series))
        reach = [abs(point.value) + svg.Z * (point.error or 0) for points in panels.values() for point in points]
        limit = 1.08 * max(reach, default=1.0) or 1.0
        figures.append(
            (base, [(heading, svg.differences(points, -limit, limit)) for heading, points in panels.items()])
        )
    return figures


def _runs(measured: Sequence[Row]) -> dict[str, list[tuple[float, Row]]]:
    """Rows that are epochs of one run, by what their names have in common: one architecture, other numbers at the end.

    The epoch is the one that the checkpoints say, where all say one, or else the number of the name.
    """
    found: dict[tuple[str, str], list[tuple[float, Row]]] = {}
    for row in measured:
        parts = re.fullmatch(r"(.*?)(\d+)(\D?)", row.label, re.DOTALL)
        if parts and (parts[3] in ("", ")")):
            stem = parts[1].rstrip(" -_@.(") or parts[1]
            found.setdefault((stem, row.architecture), []).append((float(parts[2][-15:]), row))
    runs = {}
    for (stem, architecture), own in found.items():
        said = [_epoch(row) for _, row in own]
        known = [epoch for epoch in said if epoch is not None]
        if len(known) == len(own) == len(set(known)):
            own = [(epoch, row) for epoch, (_, row) in zip(known, own, strict=True)]
        if len({epoch for epoch, _ in own}) == len(own) > 1:
            name = stem if stem not in runs else f"{stem} ({architecture})"
            runs[name or "epoch"] = sorted(own, key=lambda one: one[0])
    return runs


def _epoch(row: Row) -> float | None:
    entry = next((cell.entry for cell in row.cells.values() if cell.entry), {})
    epoch = (entry.get("encoder_source") or {}).get("epoch")
    return float(epoch) if isinstance(epoch, int) and not isinstance(epoch, bool) else None


def _epochs(
    grid: Grid, rows: Sequence[Row], runs: Mapping[str, list[tuple[float, Row]]]
) -> list[tuple[str, Markup, str]]:
    """A panel a column: the metric of each run over its epochs, comparable published numbers, what is absent."""
    panels = []
    epochs = [[epoch for epoch, _ in own] for own in runs.values()]
    architectures = {row.architecture for own in runs.values() for _, row in own}
    for heading, *_ in grid.columns if runs else ():
        series, absent, differing = [], [], False
        for number, own in enumerate(runs.values()):
            points = []
            for epoch, row in own:
                cell = row.cells[heading]
                if cell.value is None or not _can_be_drawn(cell.value, cell.error):
                    absent.append(f"{row.label} ({'not run' if cell.text == table.NOT_RUN else cell.text})")
                    continue
                differing = differing or bool(cell.marks)
                points.append(svg.Point(row.label, cell.value, cell.error, number, epoch))
            series.append(points)
        if not any(series):
            continue
        lines = {
            row.label: row.cells[heading].value
            for row in rows
            if row.kind == "published" and row.architecture in architectures and row.cells[heading].takes_part
        }
        known = {label: value for label, value in lines.items() if value is not None}
        told = [f"not here: {_listed(absent)}"] if absent else []
        told += (
            ["measured by another protocol than the lines; see the marks in the table"] if differing and known else []
        )
        panels.append((heading, svg.along_epochs(series, epochs, known), "; ".join(told)))
    return panels


def _listed(names: Sequence[str], most: int = 6) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _tiles(grid: Grid, measured: Sequence[Row]) -> list[tuple[int, str]]:
    states = Counter(_state(row.cells[heading]) for row in measured for heading, *_ in grid.columns)
    whole = len(measured) * len(grid.columns)
    return [
        (len(measured), "encoder" if len(measured) == 1 else "encoders"),
        (states["measured"], f"of {whole} numbers measured"),
        *((states[state], state) for state in ("failed", "skipped", "not run") if states[state]),
    ]


def _state(cell: Cell) -> str:
    return "measured" if cell.value is not None else "not run" if cell.text == table.NOT_RUN else cell.text


def _missing(grid: Grid, measured: Sequence[Row], out: Path) -> list[dict[str, str]]:
    """What has no number, with its reason and the command that measures it; rows with the same stand together."""
    found: dict[tuple[str, ...], list[str]] = {}
    for row in measured:
        columns: dict[tuple[str, str, str], list[str]] = {}
        for heading, node, metric in grid.columns:
            cell = row.cells[heading]
            if cell.value is None:
                entry, state = cell.entry, _state(cell)
                reason = "there is no record of it yet" if entry is None else entry["reason"]
                reason = marks.why_skipped(entry, metric) if entry and entry["status"] == "ok" else reason
                columns.setdefault((state, reason, node if state == "failed" else ""), []).append(heading)
        for (state, reason, node), headings in columns.items():
            log = f"logs/{row.label}-{node}.log"
            log = log if node and "/" not in row.label and _is_file(out / log) else ""
            again = command(row, node, row.cells[headings[0]].entry or {}) if node else ""
            found.setdefault((state, ", ".join(headings), reason, log, again), []).append(row.label)
    ranks = ("failed", "skipped", "not run")
    return [
        dict(zip(("state", "columns", "reason", "log", "command", "rows"), (*key, _listed(labels, 12)), strict=True))
        for key, labels in sorted(found.items(), key=lambda one: ranks.index(one[0][0]))
    ]


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name that no file can have
        return False


def _corruptions(measured: Sequence[Row]) -> dict[str, Any]:
    """Errors in percent by corruption, and by severity where the record has them."""
    found = []
    for row in measured:
        entry = row.cells["IN-C"].entry if "IN-C" in row.cells else None
        protocol = entry.get("protocol", {}) if entry and row.cells["IN-C"].value is not None else {}
        errors = _numbers(protocol.get("corruption_errors"))
        severities = protocol.get("severity_errors")
        by_severity = {name: _numbers(own) for name, own in severities.items()} if isinstance(severities, dict) else {}
        if errors:
            found.append({"label": row.label, "errors": errors, "severities": by_severity})
    names = list(dict.fromkeys(name for row in found for name in row["errors"]))
    return {"names": names, "rows": found, "levels": SEVERITIES}


def _numbers(values: Any) -> dict[str, float]:
    """The numbers of what a record has there; anything else in it is left out."""
    values = values if isinstance(values, dict) else {}
    return {
        name: float(value) for name, value in values.items() if type(value) in (int, float) and abs(value) < LARGEST
    }


def _entries(row: Row) -> dict[str, Entry]:
    """The records of a row by task."""
    return {cell.entry["task"]: cell.entry for cell in row.cells.values() if cell.entry}


def _certificate(row: Row, out: Path) -> dict[str, Any]:
    """What is known of a row's encoder, from its records and from the certificate beside it."""
    entry = next((entry for entry in _entries(row).values() if entry.get("work")), {})
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


def _sets(measured: Sequence[Row]) -> list[dict[str, str]]:
    """Each set that was read: what lay there, beside what is published; once, where all records agree."""
    found: dict[tuple[str, ...], None] = {}
    for entry in (entry for row in measured for entry in _entries(row).values()):
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


def _environment(measured: Sequence[Row]) -> list[tuple[str, str]]:
    """Devices, code, packages and times of the records that are shown; several values are told with their counts."""
    entries = [entry for row in measured for entry in _entries(row).values() if entry["status"] == "ok"]
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
