"""The table of an output folder, written in every format, and the sentences about pairs of its rows.

Every number is computed from a record; the published rows come from published.csv. Each row shows one encoder. A cell
that was not measured by the paper's protocol carries a mark, with a footnote made from its record. Records of toy data
never share a table with published numbers. If a cell's set has another number of images or classes than published, the
published numbers of its column are left out. If this holds for every number measured, the published rows are left out.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from results import comparison, formats, grid, marks, record, rows
from results.atomic import atomic_write
from results.columns import COLUMNS, EXTRA_COLUMNS, of_records
from results.comparison import Z, paired_difference
from results.escape import plain
from results.report import as_report

__all__ = ["build", "paired", "paired_difference", "render", "write"]
Entries = Sequence[dict[str, Any]]
FORMATS = {**formats.FORMATS, "report": ("report.html", as_report)}
PAIRED = (
    ("FT", "finetune", "top1"),
    ("LIN", "linear_probe", "top1"),
    ("1%", "few_shot", "top1"),
    ("kNN", "knn", "top1"),
)


def render(out: Path, encoders: Sequence[str], entries: Entries) -> str:
    """Writes the table below ``out`` in every format; returns the Markdown with its notes, and what went wrong."""
    return write(out, build(out, encoders, entries, record.read(out / "records")[1]))


def build(
    out: Path,
    encoders: Sequence[str],
    entries: Entries,
    problems: Sequence[str] = (),
    baselines: Sequence[str] = (),
    reference: str | None = None,
) -> grid.Grid:
    """The table with all its notes; ``problems`` are sentences on files that are no records."""
    labels = rows.labels_of(encoders, entries)
    made = grid.build(out, entries, labels, baselines, reference)
    made.notes += [
        *_of_encoders(entries, labels),
        *_reasons(entries, labels),
        *_not_shown(entries, labels),
        *told_apart(made),
        *problems,
    ]
    return made


def write(out: Path, made: grid.Grid, names: Iterable[str] = tuple(FORMATS)) -> str:
    """Writes a table below ``out`` in some formats; returns the Markdown, and a line for each file that failed."""
    faults = [_write(out / FORMATS[name][0], FORMATS[name][1](made)) for name in names]
    return formats.as_markdown(made) + "".join(f"\n{fault}  \n" for fault in faults if fault)


def _of_encoders(entries: Entries, labels: Sequence[str]) -> list[str]:
    """What every number of a row rests on: what its training says of itself, and what no file said of its encoder and
    its conversion assumed."""
    sources = {
        label: [entry.get("encoder_source") or {} for entry in own] for label, own in rows.by_row(entries).items()
    }
    return [
        f"{label}: {text}"
        for label, own in sources.items()
        if label in labels
        for text in dict.fromkeys(
            [source["remark"] for source in own if source.get("remark")]
            + [f"assumed of its encoder: {text}" for source in own for text in source.get("assumed", [])]
        )
    ]


def _reasons(entries: Entries, labels: Sequence[str]) -> list[str]:
    """Why a cell has no number: the task was skipped or failed, or it ran and skipped the column.

    What rows and columns have in common is said once.
    """
    missing: dict[tuple[str, str], list[str]] = defaultdict(list)  # what, by row and reason
    for label, own in rows.by_row(entries).items():
        for task, (entry, *_) in rows.choose(own).items() if label in labels else ():
            if entry["status"] != "ok":
                missing[label, f"{entry['status']}: {entry['reason']}"].append(task)
                continue
            for heading, node, metric in (*COLUMNS, *EXTRA_COLUMNS, *of_records([entry])):
                if node == task and metric not in entry["metrics"]:
                    missing[label, f"skipped: {marks.why_skipped(entry, metric)}"].append(heading)
    shared: dict[tuple[str, str], list[str]] = defaultdict(list)  # rows, by what and reason
    for (label, reason), what in missing.items():
        shared[", ".join(what), reason].append(label)
    return [f"{', '.join(own)}, {what}: {reason}" for (what, reason), own in shared.items()]


def _not_shown(entries: Entries, labels: Sequence[str]) -> list[str]:
    """The other measurements of a cell, each with what it differs in."""
    found = []
    for label, own in rows.by_row(entries).items():
        for task, (entry, others, _) in rows.choose(own).items() if label in labels else ():
            differing = list(dict.fromkeys(rows.how_it_differs(other, entry) for other in others))
            if differing:
                found.append(f"{label}, {task}: also measured, and not shown: {'; '.join(differing)}")
    return found


def told_apart(made: grid.Grid) -> list[str]:
    """A line for each package, and for this code, whose version at some cells is another than at most of them."""
    facts: dict[str, dict[tuple[str, str], str]] = {}
    for row in made.rows:
        for heading, cell in row.cells.items():
            if cell.entry is None or cell.value is None:
                continue
            for package, version in cell.entry.get("versions", {}).items():
                facts.setdefault(package, {})[row.label, heading] = version
            git: Mapping[str, Any] = cell.entry.get("git", {})
            if git.get("commit"):
                changes = " with changes" if git.get("dirty") else ""
                facts.setdefault("this code", {})[row.label, heading] = f"{str(git['commit'])[:8]}{changes}"
    notes = []
    for name, versions in facts.items():
        (usual, _), *others = Counter(versions.values()).most_common()
        for version, _ in others:
            places = ", ".join(f"{label} {heading}" for (label, heading), own in versions.items() if own == version)
            notes.append(f"measured with {name} {version}, the others with {usual}: {places}")
    return notes


def paired(out: Path, entries: Entries, first: str, second: str) -> str:
    """A sentence for each column of PAIRED and of labelled sets: the difference of two encoders on the same images,
    with its 95 % interval."""
    lines = []
    outcomes = comparison.Outcomes(out)
    chosen = {label: rows.choose(own) for label, own in rows.by_row(entries).items() if label in (first, second)}
    for heading, node, metric in (*PAIRED, *of_records(entries)):
        measured = [chosen[label][node][0] for label in (first, second) if node in chosen.get(label, {})]
        if len(measured) < 2 or any(entry["status"] != "ok" for entry in measured):
            continue
        error = outcomes.error_of_difference(measured[0], measured[1], metric)
        if error is not None:  # else it was of other images, or their outcomes were removed
            difference = measured[0]["metrics"][metric] - measured[1]["metrics"][metric]
            lines.append(_in_words(plain(first), plain(second), heading, difference, Z * error))
    return "\n".join(lines)


def _in_words(first: str, second: str, heading: str, difference: float, half: float) -> str:
    interval = f"95 % interval [{difference - half:+.1f}, {difference + half:+.1f}]"
    if abs(difference) <= half:
        return f"{heading}: {first} and {second} cannot be told apart: {difference:+.1f} points, {interval}"
    word = "ahead of" if difference > 0 else "behind"
    return f"{heading}: {first} is {word} {second} by {abs(difference):.1f} points, {interval}"


def _write(path: Path, text: str) -> str:
    """Why a file could not be written, or nothing: tasks that run meanwhile go on, and their records have all of it."""
    try:
        with atomic_write(path) as written:
            written.write_text(text, encoding="utf-8")
    except OSError as error:
        return f"{plain(str(path))} could not be written ({error.strerror or error})"
    return ""
