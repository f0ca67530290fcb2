"""The table as data: its rows, columns and cells, each cell with value, error, marks and source."""

import math
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from results import comparison, marks, published, record, rows
from results.columns import ACCURACY_IMAGES, COLUMNS, EXTRA_COLUMNS, FURTHER_COLUMNS, of_records
from results.escape import plain

NOT_RUN, NOT_BESIDE = "–", ""  # of a cell; the second: a published number that is not shown beside a part of the data
Entry = Mapping[str, Any]


@dataclass(frozen=True)
class Cell:
    """One place of the table."""

    text: str = NOT_RUN
    """What stands where there is no value: skipped, failed, or – for what was not run."""
    value: float | None = None
    """In percent; of a row of differences, in points."""
    error: float | None = None
    """Standard error in points, where it is known."""
    deviation: float | None = None
    """Standard deviation over seeds, where the value is their mean."""
    images: int | None = None
    """Of the test set."""
    protocol: str = ""
    """A key of ``published.PROTOCOLS``, or "" where no published number has this protocol."""
    marks: tuple[str, ...] = ()
    """How it differs from the published protocol, a sentence each."""
    source: str = ""
    """The record's file, or where the number was published."""
    entry: Entry | None = None
    """The record."""
    emphasis: str = ""
    """best, second, or nothing."""
    takes_part: bool = True
    """Whether it can be the best of its column: not where it was published by another protocol."""


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    label: str
    kind: str
    """published, measured or difference."""
    architecture: str
    cells: dict[str, Cell]
    """By heading."""


@dataclass
class Grid:
    """The whole table."""

    columns: tuple[tuple[str, str, str], ...]
    """Heading, node and metric of each."""
    rows: list[Row]
    toy: bool
    notes: list[str] = field(default_factory=list)
    """Sentences about rows and cells, besides the marks."""
    outcomes: comparison.Outcomes | None = None
    """What is kept of single images beside the records, as far as it was read."""
    reference: str | None = None
    """The row from which differences are shown."""

    @property
    def footnotes(self) -> list[str]:
        """The marks in the order in which the table has them, each once; those of measured rows first."""
        rows = sorted(self.rows, key=lambda row: row.kind == "published")
        return list(dict.fromkeys(mark for row in rows for cell in row.cells.values() for mark in cell.marks))


def build(
    out: Path,
    entries: Sequence[Entry],
    encoders: Iterable[str],
    baselines: Sequence[str] = (),
    reference: str | None = None,
) -> Grid:
    """The table of some encoders beside published rows.

    Args:
        encoders: rows by label or by the encoder's name, in this order.
        baselines: published rows, as ``published.rows`` takes them.
        reference: the label of a row from which every measured row's difference is shown.

    Raises published.NoSuchBaseline for a baseline or a reference that there is not.
    """
    labels = rows.labels_of(encoders, entries)
    by_row = rows.by_row(entries)
    chosen = {label: rows.choose(own) for label, own in by_row.items() if label in labels}
    filled = {task for own in chosen.values() for task in own}
    shown = [entry for own in chosen.values() for entry, *_ in own.values()]
    metrics = {(entry["task"], metric) for entry in shown for metric in entry["metrics"]}
    columns = (
        *COLUMNS,
        *(column for column in (*EXTRA_COLUMNS, *of_records(shown)) if column[1] in filled),
        *(column for column in FURTHER_COLUMNS if column[1:] in metrics),
    )
    if any("." in task for task in filled) and not any(node in filled for _, node, _ in COLUMNS):
        columns = columns[len(COLUMNS) :]  # labelled sets alone: the paper's columns were not asked for
    kinds = {bool(entry.get("toy_data")) for entry in entries if entry["metrics"]}
    measured = [
        Row(
            label,
            "measured",
            next((str(entry["architecture"]) for entry in by_row.get(label, ()) if entry.get("architecture")), ""),
            {column[0]: _measured(column, chosen.get(label, {}), len(kinds) == 2) for column in columns},
        )
        for label in labels
    ]
    grid = Grid(columns, measured, any(entry.get("toy_data") for entry in entries))
    if not grid.toy:
        _add_published(grid, baselines)
    elif baselines:
        grid.notes.append("no published row stands beside toy data")
    outcomes = grid.outcomes = comparison.Outcomes(out)
    grid.reference = reference
    grid.rows = [replace(row, cells=dict(row.cells)) for row in grid.rows]
    for heading, _, metric in columns:
        _emphasize(grid, heading, metric, outcomes)
    if reference is not None:
        grid.rows += _differences(grid, reference, outcomes)
    grid.notes += [*_not_run(grid), *_of_seeds(grid)]
    return grid


def _measured(column: tuple[str, str, str], chosen: Mapping[str, Any], mixed: bool) -> Cell:
    """The cell of one row; ``mixed``: toy and other data stand in one table, so it says which."""
    heading, node, metric = column
    if node not in chosen:
        return Cell()
    entry, _, seeds = chosen[node]
    if entry["status"] != "ok" or metric not in entry["metrics"]:
        return Cell("skipped" if entry["status"] == "ok" else entry["status"], entry=entry)
    values = [one["metrics"][metric] for one in seeds if metric in one["metrics"]]
    error = error_of(entry, metric)
    deviation = float(np.std(values, ddof=1)) if len(values) > 1 else None
    if deviation is not None:  # of the images, which are the same for all seeds, and of the seeds
        error = None if error is None else math.hypot(error, deviation / len(values) ** 0.5)
    toy = ("measured on toy data",) if mixed and entry.get("toy_data") else ()
    return Cell(
        text="",
        value=float(np.mean(values)),
        error=error,
        deviation=deviation,
        images=images_of(entry, metric),
        protocol=published.group_measured(heading, str(entry.get("architecture", "")), entry),
        marks=(*dict.fromkeys(mark for one in seeds for mark in marks.differences(one, metric)), *toy),
        source=record.path_of(Path("records"), entry["encoder"], entry).as_posix(),
        entry=entry,
    )


def error_of(entry: Entry, metric: str) -> float | None:
    """The standard error in points that a record has of a metric, or None."""
    error = entry.get("standard_error", {}).get(metric)
    return float(error) if isinstance(error, int | float) and math.isfinite(error) else None


def images_of(entry: Entry, metric: str) -> int | None:
    """How many images a metric is of: of the set that its name begins with, else of the only set that is no train."""
    evaluated = entry.get("images_evaluated", {})
    own = [count for name, count in evaluated.items() if metric.startswith(name)]
    test = own or [count for name, count in evaluated.items() if name == "val"]
    test = test or [count for name, count in evaluated.items() if name != "train"]
    return int(test[0]) if len(test) == 1 else None


def _add_published(grid: Grid, baselines: Sequence[str]) -> None:
    """Puts the published rows of the measured architectures above, without those that compare with nothing."""
    shown = [
        (heading, row.cells[heading].entry, metric)
        for row in grid.rows
        for heading, _, metric in grid.columns
        if row.cells[heading].value is not None
    ]
    if not shown and not baselines:
        return  # nothing was measured that could be compared
    parts = [heading for heading, entry, metric in shown if entry and marks.of_a_subset(entry, metric)]
    if shown and len(parts) == len(shown):
        grid.notes.append(
            "the published rows are left out: every number is of another number of images or classes than published"
        )
        return
    architectures = list(dict.fromkeys(row.architecture for row in grid.rows if row.architecture))
    unknown = [row.label for row in grid.rows if not row.architecture]
    if not architectures:
        architectures = [published.PAPERS]
        grid.notes.append(
            f"{', '.join(map(plain, unknown))}: the records do not say which architecture was measured; the published "
            f"rows are of {published.PAPERS}"
        )
    taken = {row.label for row in grid.rows}
    above: list[Row] = []
    for architecture in architectures:
        own = [row for row in grid.rows if row.architecture == architecture] or grid.rows
        measured = {heading: _first_record(own, heading) for heading, *_ in grid.columns}
        found, notes = published.rows(architecture, baselines, measured)
        grid.notes += notes
        if not found and not baselines:
            grid.notes.append(f"no published row is of {plain(architecture)}")
        for name, numbers in found.items():
            label = f"{name} ({architecture})" if len(architectures) > 1 else name
            label = f"{label} (published)" if label in taken else label
            cells = {heading: _published(heading, numbers.get(heading), heading in parts) for heading in measured}
            above.append(Row(label, "published", architecture, cells))
        if found:
            grid.notes.append(_protocols(architecture, found))
    left_out = [heading for heading, *_ in grid.columns if heading in parts]
    if left_out and above:
        grid.notes.append(
            f"{', '.join(left_out)}: no published numbers beside another number of images or classes than published"
        )
    grid.rows = above + grid.rows


def _first_record(own: Sequence[Row], heading: str) -> Entry | None:
    return next((row.cells[heading].entry for row in own if row.cells[heading].value is not None), None)


def _published(heading: str, number: published.Published | None, left_out: bool) -> Cell:
    if left_out or number is None:
        return Cell(NOT_BESIDE if left_out else NOT_RUN)
    images = ACCURACY_IMAGES.get(heading)
    return Cell(
        text="",
        value=number.value,
        error=comparison.binomial(number.value, images) if images else number.seed_std,
        images=images,
        protocol=number.group,
        marks=number.marks,
        source=number.source,
        takes_part=number.is_of_this_protocol,
    )


def _protocols(architecture: str, found: Mapping[str, Mapping[str, published.Published]]) -> str:
    """Which protocol the unmarked numbers of each column have, and where they were read."""
    groups: dict[str, list[str]] = {}
    sources: dict[str, None] = {}
    for numbers in found.values():
        for heading, number in numbers.items():
            sources[number.source] = None
            if number.is_of_this_protocol:
                headings = groups.setdefault(number.group, [])
                headings += [heading] if heading not in headings else []
    told = "; ".join(f"{', '.join(headings)}: {published.PROTOCOLS[group]}" for group, headings in groups.items())
    return f"published rows ({architecture}), where not marked: {told}. Sources: {'; '.join(sources)}"


def _emphasize(grid: Grid, heading: str, metric: str, outcomes: comparison.Outcomes) -> None:
    """Marks the best and the second best of a column; a published number of another protocol does not take part."""
    cells = {
        row.label: row.cells[heading]
        for row in grid.rows
        if row.cells[heading].value is not None and row.cells[heading].takes_part
    }
    values = {label: cell.value for label, cell in cells.items() if cell.value is not None}

    def error(first: str, second: str) -> float | None:
        return 0.0 if first == second else combined(cells[first], cells[second], metric, outcomes, cells.values())

    best, second = comparison.best_and_second(values, error)
    for row in grid.rows:
        emphasis = "best" if row.label in best else "second" if row.label in second else ""
        if emphasis:
            row.cells[heading] = replace(row.cells[heading], emphasis=emphasis)


def combined(
    first: Cell, second: Cell, metric: str, outcomes: comparison.Outcomes, column: Iterable[Cell]
) -> float | None:
    """Standard error of the difference of two cells: paired where both have outcomes of the same images.

    Where a published number has none, the largest of its column stands for it: the images are the same.
    """
    if first.entry and second.entry and first.deviation is None and second.deviation is None:
        paired = outcomes.error_of_difference(first.entry, second.entry, metric)
        if paired is not None:
            return paired
    known = [cell.error for cell in column if cell.error is not None]
    errors = [
        cell.error if cell.error is not None else max(known, default=None) if cell.entry is None else None
        for cell in (first, second)
    ]
    return None if errors[0] is None or errors[1] is None else math.hypot(errors[0], errors[1])


def _differences(grid: Grid, reference: str, outcomes: comparison.Outcomes) -> list[Row]:
    """A row for each measured row: by how much it exceeds the reference, with the error of the difference."""
    base = next((row for row in grid.rows if row.label == reference), None)
    if base is None:
        labels = ", ".join(row.label for row in grid.rows)
        raise published.NoSuchBaseline(f"there is no row {plain(reference)!r} to compare with; the rows are: {labels}")
    found = []
    for row in grid.rows:
        if row.kind != "measured" or row is base:
            continue
        cells = {}
        for heading, _, metric in grid.columns:
            own, other = row.cells[heading], base.cells[heading]
            if own.value is None or other.value is None:
                cells[heading] = Cell(NOT_BESIDE)
                continue
            column = [each.cells[heading] for each in grid.rows]
            error = combined(own, other, metric, outcomes, column)
            emphasis = "best" if comparison.differs(own.value - other.value, error) else ""
            cells[heading] = Cell(
                "", own.value - other.value, error, images=own.images, protocol=own.protocol, emphasis=emphasis
            )
        found.append(Row(f"{row.label} - {base.label}", "difference", row.architecture, cells))
    return found


def _of_seeds(grid: Grid) -> list[str]:
    places = [f"{row.label} {heading}" for row in grid.rows for heading, cell in row.cells.items() if cell.deviation]
    return [f"mean ± standard deviation over seeds: {', '.join(places)}"] if places else []


def _not_run(grid: Grid) -> list[str]:
    """The cells of measured rows that were not run, with the command that fills them."""
    lacking: dict[tuple[tuple[str, str], ...], list[Row]] = {}
    entries = [cell.entry for row in grid.rows for cell in row.cells.values() if cell.entry]
    of_sets = {entry["task"]: entry["column"]["sets"] for entry in entries if entry.get("column")}
    for row in grid.rows:
        missing = tuple((heading, node) for heading, node, _ in grid.columns if row.cells[heading].text == NOT_RUN)
        if row.kind == "measured" and missing:
            lacking.setdefault(missing, []).append(row)
    notes = []
    for missing, own in lacking.items():
        names = [next((cell.entry["encoder"] for cell in row.cells.values() if cell.entry), row.label) for row in own]
        presets = {cell.entry.get("preset") for row in own for cell in row.cells.values() if cell.entry} - {None}
        preset = "--preset demo " if presets == {"demo"} else ""
        files = " ".join(shlex.quote(plain(f"{name}=FILE")) for name in dict.fromkeys(names))
        nodes = list(dict.fromkeys(node for _, node in missing))
        sets = " ".join(shlex.quote(plain(of_sets[node])) for node in nodes if node in of_sets)
        preset += f"--sets {sets} " if sets else ""
        limits = {cell.entry["limit"] for row in own for cell in row.cells.values() if cell.entry}
        limit = f"--limit {limits.pop()} " if len(limits) == 1 and None not in limits else ""
        notes.append(
            f"{', '.join(row.label for row in own)}: {', '.join(heading for heading, _ in missing)} not run; this "
            f"fills them: uv run run_all.py {'' if grid.toy else f'--ckpt {files} --data-root DIR {preset}'}"
            f"{limit}--out OUT --tasks {','.join(nodes)}"
        )
    return notes
