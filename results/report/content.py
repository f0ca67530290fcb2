"""What the report shows, taken from the table and from the records behind its cells; ``page.html`` lays it out."""

import itertools
import json
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
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
from results.report import classes, curves, epochs, files, pictures, provenance, svg, times
from results.report.epochs import listed

MOST_BASES = 12  # measured rows that can each be the baseline; of more, the first, the last and the one of --reference
MOST_DRAWN = 8  # rows in a figure of differences, one for each colour
SEVERITIES = ("1", "2", "3", "4", "5")


def of(grid: Grid) -> dict[str, Any]:
    """All variables of the template."""
    rows = [row for row in grid.rows if row.kind != "difference"]
    measured = [row for row in rows if row.kind == "measured"]
    outcomes = grid.outcomes or Outcomes(Path())
    runs = epochs.of(measured)
    bases = _bases(grid, rows, measured)
    gaps = {base: _differences(grid, rows, rows[base], outcomes) for base in bases}
    shown, _ = _drawn(measured, runs)
    drawn_rows = [(row.label, provenance.records(row)) for row in shown]
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
        "epochs": epochs.panels(grid, rows, runs),
        "runs": [(number, stem, len(own)) for number, (stem, own) in enumerate(runs.items())],
        "corruptions": _corruptions(measured),
        "rankings": [
            (architecture, one)
            for architecture in dict.fromkeys(row.architecture for row in measured)
            for one in ranking.agreements(architecture)
        ],
        "protocols": published.PROTOCOLS,
        "times": times.table([(row.label, provenance.records(row)) for row in measured]),
        "certificates": [provenance.certificate(row, outcomes.out) for row in measured],
        "sets": provenance.sets(measured),
        "environment": provenance.environment(measured),
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
            found[number].append((difference, error) if svg.can_be_drawn(difference, error) else None)
    return found


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
        dict(zip(("state", "columns", "reason", "log", "command", "rows"), (*key, listed(labels, 12)), strict=True))
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
        name: float(value)
        for name, value in values.items()
        if type(value) in (int, float) and svg.can_be_drawn(value, None)
    }
