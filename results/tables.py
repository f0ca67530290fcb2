"""The table, from records: CSV, LaTeX (booktabs), Markdown and HTML.

    python -m results.tables OUT [--rows NAME ...]

Every number is computed from a record; the published rows come from published.csv. Each row shows one encoder. A cell
that was not measured by the paper's protocol carries a mark, with a footnote made from its record. Records of toy data
never share a table with published numbers. If a cell's set has another number of images or classes than published, the
published numbers of its column are left out. If this holds for every number measured, the published rows are left out.
"""

import argparse
import contextlib
import sys
import zipfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from results import formats, marks, record, rows
from results.atomic import atomic_write
from results.columns import COLUMNS, EXTRA_COLUMNS
from results.escape import plain

PUBLISHED = Path(__file__).with_name("published.csv")
NOT_RUN, NOT_BESIDE = "–", ""  # of a cell; the second: a published number that is not shown beside a part of the data
TITLE = "SiameseIM table; percent."
TOY_TITLE = "Toy data: these numbers show that everything works and compare with nothing published."
Place = tuple[str, str]  # a row's label and a column's heading
Shown = Mapping[Place, tuple[Mapping[str, Any], str]]  # where there is a number: its record and its metric
PAIRED = (("FT", "finetune"), ("LIN", "linear_probe"), ("1%", "few_shot"), ("kNN", "knn"))


def published() -> pd.DataFrame:
    """The published rows, in percent, by the headings of COLUMNS."""
    numbers = pd.read_csv(PUBLISHED)
    table = numbers.pivot(index="row", columns="column", values="value")
    return table.reindex(index=numbers["row"].unique(), columns=[heading for heading, *_ in COLUMNS])


def cells(entries: Sequence[dict[str, Any]], encoders: Sequence[str]) -> tuple[pd.DataFrame, list[str]]:
    """The measured rows as text, and the footnotes of their marks. Other cells say skipped, failed or not run (–)."""
    table, notes, _ = _cells(entries, rows.labels_of(encoders, entries))
    return table, notes


def _cells(entries: Sequence[dict[str, Any]], labels: Sequence[str]) -> tuple[pd.DataFrame, list[str], Shown]:
    chosen = {label: rows.choose(own) for label, own in rows.by_row(entries).items()}
    columns = [
        *COLUMNS,
        *(column for column in EXTRA_COLUMNS if any(column[1] in chosen.get(label, {}) for label in labels)),
    ]
    table = pd.DataFrame(
        NOT_RUN, index=pd.Index(labels, dtype=object), columns=[heading for heading, *_ in columns], dtype=object
    )
    mixed = len({bool(entry.get("toy_data")) for entry in entries if entry["metrics"]}) == 2
    notes: list[str] = []
    shown: dict[Place, tuple[Mapping[str, Any], str]] = {}
    for number, label in enumerate(labels):
        for heading, node, metric in columns:
            entry, _ = chosen.get(label, {}).get(node, (None, []))
            if entry is None:
                continue
            column = table.columns.get_loc(heading)
            if entry["status"] == "ok" and metric in entry["metrics"]:
                shown[label, heading] = entry, metric
                own = [
                    *marks.differences(entry, metric),
                    *(["measured on toy data"] if mixed and entry.get("toy_data") else []),
                ]
                table.iloc[number, column] = (
                    f"{entry['metrics'][metric]:.1f}{''.join(_mark(note, notes) for note in own)}"
                )
            else:
                table.iloc[number, column] = "skipped" if entry["status"] == "ok" else entry["status"]
    return table, notes, shown


def _mark(note: str, notes: list[str]) -> str:
    """``[a]`` for the first note, ``[aa]`` for the 27th; a note not seen before is added to ``notes``."""
    if note not in notes:
        notes.append(note)
    return _name_of(notes.index(note))


def _name_of(index: int) -> str:
    letters = ""
    while index >= 0:
        index, rest = divmod(index, 26)
        letters, index = chr(ord("a") + rest) + letters, index - 1
    return f"[{letters}]"


def render(out: Path, encoders: Sequence[str], entries: Sequence[dict[str, Any]]) -> str:
    """Writes table.csv, .tex, .md and .html below ``out``; returns the Markdown with its notes, and what went wrong."""
    labels = rows.labels_of(encoders, entries)
    measured, footnotes, shown = _cells(entries, labels)
    toy = any(entry.get("toy_data") for entry in entries)
    table, beside = (measured, []) if toy else _beside_published(measured, shown)
    table.index.name = "encoder"
    notes = [f"{_name_of(number)} {note}" for number, note in enumerate(footnotes)]
    notes += [
        *beside,
        *_assumptions(entries, labels),
        *_reasons(entries, labels),
        *_not_shown(entries, labels),
        *told_apart(shown),
        *record.read(out / "records")[1],
    ]
    title = TOY_TITLE if toy else TITLE
    markdown = formats.as_markdown(table, title, notes)
    texts = {
        "table.csv": formats.as_csv(table),
        "table.html": formats.as_html(table, title, notes),
        "table.tex": formats.as_latex(table, title, notes),
        "table.md": markdown,
    }
    faults = [_write(out / name, text) for name, text in texts.items()]
    return markdown + "".join(f"\n{fault}  \n" for fault in faults if fault)


def _beside_published(measured: pd.DataFrame, shown: Shown) -> tuple[pd.DataFrame, list[str]]:
    """The measured rows below the published ones, without published numbers that compare with nothing; and a note."""
    parts = list(
        dict.fromkeys(heading for (_, heading), (entry, metric) in shown.items() if marks.of_a_subset(entry, metric))
    )
    if shown and all(marks.of_a_subset(entry, metric) for entry, metric in shown.values()):
        return measured, [
            "the published rows are left out: every number is of another number of images or classes than published"
        ]
    above = published().map(lambda value: NOT_RUN if pd.isna(value) else f"{value:.1f}").astype(object)
    for heading in parts:
        if heading in above:
            above[heading] = NOT_BESIDE
    above.index = [f"{name} (published)" if name in measured.index else name for name in above.index]
    left_out = [heading for heading in parts if heading in above]
    note = f"{', '.join(left_out)}: no published numbers beside another number of images or classes than published"
    return pd.concat([above, measured]).fillna(NOT_RUN), [note] if left_out else []


def _assumptions(entries: Sequence[dict[str, Any]], labels: Sequence[str]) -> list[str]:
    """What no file said of a row's encoder and its conversion assumed: every number of the row rests on it."""
    sources = {
        label: [entry.get("encoder_source") or {} for entry in own] for label, own in rows.by_row(entries).items()
    }
    return [
        f"{label}: assumed of its encoder: {assumption}"
        for label, own in sources.items()
        if label in labels
        for assumption in dict.fromkeys(text for source in own for text in source.get("assumed", []))
    ]


def _reasons(entries: Sequence[dict[str, Any]], labels: Sequence[str]) -> list[str]:
    """Why a cell has no number: the task was skipped or failed, or it ran and skipped the column."""
    reasons = []
    for label, own in rows.by_row(entries).items():
        for task, (entry, _) in rows.choose(own).items() if label in labels else ():
            if entry["status"] != "ok":
                reasons.append(f"{label}, {task}: {entry['status']}: {entry['reason']}")
                continue
            for heading, node, metric in (*COLUMNS, *EXTRA_COLUMNS):
                if node == task and metric not in entry["metrics"]:
                    reasons.append(f"{label}, {heading}: skipped: {marks.why_skipped(entry, metric)}")
    return reasons


def _not_shown(entries: Sequence[dict[str, Any]], labels: Sequence[str]) -> list[str]:
    """The other measurements of a cell, each with what it differs in."""
    found = []
    for label, own in rows.by_row(entries).items():
        for task, (entry, others) in rows.choose(own).items() if label in labels else ():
            differing = list(dict.fromkeys(rows.how_it_differs(other, entry) for other in others))
            if differing:
                found.append(f"{label}, {task}: also measured, and not shown: {'; '.join(differing)}")
    return found


def told_apart(shown: Shown) -> list[str]:
    """A line for each package, and for this code, whose version at some cells is another than at most of them."""
    facts: dict[str, dict[Place, str]] = {}
    for place, (entry, _) in shown.items():
        for package, version in entry.get("versions", {}).items():
            facts.setdefault(package, {})[place] = version
        git = entry.get("git", {})
        if git.get("commit"):
            facts.setdefault("this code", {})[place] = (
                f"{str(git['commit'])[:8]}{' with changes' if git.get('dirty') else ''}"
            )
    notes = []
    for name, versions in facts.items():
        (usual, _), *others = Counter(versions.values()).most_common()
        for version, _ in others:
            places = ", ".join(f"{label} {heading}" for (label, heading), own in versions.items() if own == version)
            notes.append(f"measured with {name} {version}, the others with {usual}: {places}")
    return notes


def paired(out: Path, entries: Sequence[dict[str, Any]], first: str, second: str) -> str:
    """A sentence for each column of PAIRED: the difference of two encoders on the same images, with its 95 %
    interval."""
    lines = []
    chosen = {label: rows.choose(own) for label, own in rows.by_row(entries).items()}
    for heading, node in PAIRED:
        measured = [chosen[label][node][0] for label in (first, second) if node in chosen.get(label, {})]
        if len(measured) < 2 or any(entry["status"] != "ok" for entry in measured):
            continue
        if len({(entry["data_fingerprint"], entry["limit"]) for entry in measured}) > 1:
            continue  # other images
        with contextlib.suppress(
            OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile
        ):  # it was removed, or is damaged
            difference, half = paired_difference(
                *(np.load(out / entry["work"] / "predictions.npz")["correct"] for entry in measured)
            )
            lines.append(_in_words(plain(first), plain(second), heading, difference, half))
    return "\n".join(lines)


def _in_words(first: str, second: str, heading: str, difference: float, half: float) -> str:
    interval = f"95 % interval [{difference - half:+.1f}, {difference + half:+.1f}]"
    if abs(difference) <= half:
        return f"{heading}: {first} and {second} cannot be told apart: {difference:+.1f} points, {interval}"
    word = "ahead of" if difference > 0 else "behind"
    return f"{heading}: {first} is {word} {second} by {abs(difference):.1f} points, {interval}"


def paired_difference(first: np.ndarray, second: np.ndarray) -> tuple[float, float]:
    """Mean difference of two boolean (N,) outcomes on the same images, and half of its normal 95 % interval, in points.

    Raises ValueError where the images are not the same number.
    """
    if first.shape != second.shape:
        raise ValueError(f"{len(first)} and {len(second)} images cannot be paired")
    difference = first.astype(float) - second.astype(float)
    return 100 * difference.mean(), 100 * 1.96 * difference.std(ddof=1) / len(difference) ** 0.5


def _write(path: Path, text: str) -> str:
    """Why a file could not be written, or nothing: tasks that run meanwhile go on, and their records have all of it."""
    try:
        with atomic_write(path) as written:
            written.write_text(text, encoding="utf-8")
    except OSError as error:
        return f"{plain(str(path))} could not be written ({error.strerror or error})"
    return ""


def main(argv: list[str] | None = None) -> int:
    """Renders the tables of an output folder again."""
    parser = argparse.ArgumentParser(
        prog="python -m results.tables", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path, nargs="?", help="an output folder of run_all.py")
    parser.add_argument(
        "--out", type=Path, dest="folder", metavar="OUT", help="the same, as the other commands take it"
    )
    parser.add_argument("--rows", nargs="+", help="encoders, in this order (default: all)")
    arguments = parser.parse_args(argv)
    if (arguments.out is None) == (arguments.folder is None):
        parser.error("give one output folder: OUT, or --out OUT")
    out = arguments.out or arguments.folder
    entries, problems = record.read(out / "records")
    if not entries:
        for problem in problems:
            print(f"results.tables: {problem}", file=sys.stderr)
        print(f"results.tables: no records below {out / 'records'}; run run_all.py --out {out} first", file=sys.stderr)
        return 2
    print(render(out, arguments.rows or list(dict.fromkeys(entry["encoder"] for entry in entries)), entries))
    return 0


if __name__ == "__main__":
    sys.exit(main())
