"""The epochs of a run: which rows are of one, and each metric along them."""

import re
from collections.abc import Mapping, Sequence

from markupsafe import Markup

from results.grid import NOT_RUN, Grid, Row
from results.report import svg


def of(measured: Sequence[Row]) -> dict[str, list[tuple[float, Row]]]:
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


def panels(
    grid: Grid, rows: Sequence[Row], runs: Mapping[str, list[tuple[float, Row]]]
) -> list[tuple[str, Markup, str]]:
    """A panel a column: the metric of each run over its epochs, comparable published numbers, what is absent."""
    found = []
    epochs = [[epoch for epoch, _ in own] for own in runs.values()]
    architectures = {row.architecture for own in runs.values() for _, row in own}
    for heading, *_ in grid.columns if runs else ():
        series, absent, differing = [], [], False
        for number, own in enumerate(runs.values()):
            points = []
            for epoch, row in own:
                cell = row.cells[heading]
                if cell.value is None or not svg.can_be_drawn(cell.value, cell.error):
                    absent.append(f"{row.label} ({'not run' if cell.text == NOT_RUN else cell.text})")
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
        told = [f"not here: {listed(absent)}"] if absent else []
        told += (
            ["measured by another protocol than the lines; see the marks in the table"] if differing and known else []
        )
        found.append((heading, svg.along_epochs(series, epochs, known), "; ".join(told)))
    return found


def listed(names: Sequence[str], most: int = 6) -> str:
    """The first of some names, and how many more there are."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
