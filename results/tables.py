"""The table, from records: CSV, LaTeX (booktabs), Markdown and HTML.

    python -m results.tables OUT [--rows NAME ...]

Every number is computed from a record; the published rows come from published.csv. Records of toy data never share a table with
published numbers. A cell that is not the paper's protocol carries a mark, with a footnote made from its record.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from results import record
from results.atomic import atomic_write
from results.columns import COLUMNS, EXTRA_COLUMNS

PUBLISHED = Path(__file__).with_name("published.csv")
MARKS = "abcdefghijklmnopqrstuvwxyz"


def published() -> pd.DataFrame:
    """The published rows, in percent, by the headings of COLUMNS."""
    numbers = pd.read_csv(PUBLISHED)
    table = numbers.pivot(index="row", columns="column", values="value")
    return table.reindex(index=numbers["row"].unique(), columns=[heading for heading, *_ in COLUMNS])


def latest(entries: Sequence[dict[str, Any]]) -> dict[tuple[str, str], dict[str, Any]]:
    """By (encoder, node): the newest ``ok`` record, or the newest of any status where none is ok."""
    chosen: dict[tuple[str, str], dict[str, Any]] = {}
    for entry in sorted(entries, key=lambda entry: (entry["status"] == "ok", entry["started_utc"])):
        chosen[entry["encoder"], entry["task"]] = entry
    return chosen


def cells(entries: Sequence[dict[str, Any]], rows: Sequence[str]) -> tuple[pd.DataFrame, list[str]]:
    """The measured rows as text and the footnotes. An empty cell says why: skipped, failed, or not run (–)."""
    chosen = latest(entries)
    notes: list[str] = []
    columns = [*COLUMNS, *(column for column in EXTRA_COLUMNS if any((row, column[1]) in chosen for row in rows))]
    table = pd.DataFrame("–", index=list(rows), columns=[heading for heading, *_ in columns], dtype=object)
    for row in rows:
        for heading, node, metric in columns:
            entry = chosen.get((row, node))
            if entry is None:
                continue
            if metric in entry["metrics"]:
                table.loc[row, heading] = f"{entry['metrics'][metric]:.1f}{_marks(entry, metric, notes)}"
            else:
                table.loc[row, heading] = "skipped" if entry["status"] == "ok" else entry["status"]
    return table, notes


def _marks(entry: dict[str, Any], metric: str, notes: list[str]) -> str:
    """The marks of a cell; a footnote not seen before is added to ``notes``."""
    marks = ""
    for note in differences(entry, metric):
        if note not in notes:
            notes.append(note)
        marks += f"[{MARKS[notes.index(note) % len(MARKS)]}]"
    return marks


def differences(entry: dict[str, Any], metric: str) -> list[str]:
    """How the protocol behind one number of a record differs from the published one, a sentence each."""
    other = entry["protocol"].get("other_protocol")
    found = [other] if other else []
    if entry.get("toy_data"):
        return found  # no cell of a toy table is the paper's, and its caption says so
    if entry["preset"] != "paper" or entry["config"] != entry["paper_config"]:
        found.append(f"{entry['task']}: not the paper's settings (preset {entry['preset']}, overridden where the record says so)")
    if entry["limit"]:
        found.append(f"{entry['task']}: only {entry['limit']} images of each set")
    framework, published_framework = (entry["protocol"].get(name) for name in ("framework", "published_framework"))
    if published_framework and framework != published_framework:
        found.append(f"measured in {framework}; the published numbers come from {published_framework}")
    estimates = entry["protocol"].get("estimates", {})
    if metric in estimates:
        found.append(estimates[metric])
    return found


def render(out: Path, rows: Sequence[str], entries: Sequence[dict[str, Any]]) -> str:
    """Writes table.csv, .tex, .md and .html below ``out`` and returns the Markdown with its footnotes."""
    measured, notes = cells(entries, rows)
    toy = any(entry.get("toy_data") for entry in entries)
    table = measured if toy else pd.concat([published().map(lambda value: "–" if pd.isna(value) else f"{value:.1f}"), measured]).fillna("–")
    table.index.name = "encoder"
    title = "Toy data: these numbers show that everything works and compare with nothing published." if toy else "SiameseIM table; percent."
    reasons = [
        f"{row}, {task}: {entry['status']}: {entry['reason']}"
        for (row, task), entry in latest(entries).items()
        if row in rows and entry["status"] != "ok"
    ]
    footnotes = [f"[{MARKS[i % len(MARKS)]}] {note}" for i, note in enumerate(notes)] + reasons
    _write(out / "table.csv", table.to_csv())
    _write(
        out / "table.html",
        f"<!doctype html><meta charset='utf-8'><title>{title}</title><p>{title}</p>\n{table.to_html()}<p>{'<br>'.join(footnotes)}</p>\n",
    )
    markdown = f"{title}\n\n{_markdown(table)}\n" + "".join(f"\n{note}  " for note in footnotes) + "\n"
    _write(out / "table.md", markdown)
    _write(out / "table.tex", latex(table, title, footnotes))
    return markdown


PAIRED = (("LIN", "linear_probe"), ("kNN", "knn"))


def paired(out: Path, entries: Sequence[dict[str, Any]], first: str, second: str) -> str:
    """A line a column of PAIRED: the difference of two encoders on the same images, with its 95 % interval."""
    chosen, lines = latest(entries), []
    for heading, node in PAIRED:
        measured = [chosen.get((row, node), {}) for row in (first, second)]
        files = [out / entry["work"] / "predictions.npz" for entry in measured if entry.get("status") == "ok"]
        if len(files) == 2 and all(path.is_file() for path in files):
            difference, half = paired_difference(*(np.load(path)["correct"] for path in files))
            lines.append(
                f"{heading}: {first} - {second} = {difference:+.1f} points, 95 % interval [{difference - half:+.1f}, {difference + half:+.1f}]"
            )
    return "\n".join(lines)


def paired_difference(first: np.ndarray, second: np.ndarray) -> tuple[float, float]:
    """Mean difference of two boolean (N,) outcomes on the same images, and the half width of its normal 95 % interval, in points.

    Raises ValueError where the images are not the same number.
    """
    if first.shape != second.shape:
        raise ValueError(f"{len(first)} and {len(second)} images cannot be paired")
    difference = first.astype(float) - second.astype(float)
    return 100 * difference.mean(), 100 * 1.96 * difference.std(ddof=1) / len(difference) ** 0.5


def _markdown(table: pd.DataFrame) -> str:
    lines = [[table.index.name, *table.columns], *([name, *row] for name, row in zip(table.index, table.to_numpy(), strict=True))]
    widths = [max(len(str(line[i])) for line in lines) for i in range(len(lines[0]))]
    text = ["| " + " | ".join(str(value).ljust(width) for value, width in zip(line, widths, strict=True)) + " |" for line in lines]
    return "\n".join([text[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *text[1:]])


def latex(table: pd.DataFrame, title: str, footnotes: Sequence[str]) -> str:
    """A booktabs tabular, with the title and the footnotes as comments: paste it into a paper that loads booktabs."""
    safe = table.rename(columns=_escape, index=_escape).map(lambda text: _superscripts(_escape(text)))
    body = safe.reset_index().to_latex(index=False, escape=False, column_format="l" + "r" * len(table.columns))
    return "".join(f"% {line}\n" for line in (title, *footnotes)) + body


def _escape(text: str) -> str:
    return text.replace("%", r"\%").replace("_", r"\_").replace("&", r"\&").replace("–", "--")


def _superscripts(text: str) -> str:
    number, *marks = text.split("[")
    return number + (f"$^{{{','.join(mark.rstrip(']') for mark in marks)}}}$" if marks else "")


def _write(path: Path, text: str) -> None:
    with atomic_write(path) as written:
        written.write_text(text)


def main(argv: list[str] | None = None) -> int:
    """Renders the tables of an output folder again."""
    parser = argparse.ArgumentParser(
        prog="python -m results.tables", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path, help="an output folder of run_all.py")
    parser.add_argument("--rows", nargs="+", help="encoders, in this order (default: all)")
    arguments = parser.parse_args(argv)
    try:
        entries = record.read_all(arguments.out / "records")
    except ValueError as error:
        print(f"results.tables: {error}", file=sys.stderr)
        return 2
    if not entries:
        print(f"results.tables: no records below {arguments.out / 'records'}; run run_all.py --out {arguments.out} first", file=sys.stderr)
        return 2
    print(render(arguments.out, arguments.rows or list(dict.fromkeys(entry["encoder"] for entry in entries)), entries))
    return 0


if __name__ == "__main__":
    sys.exit(main())
