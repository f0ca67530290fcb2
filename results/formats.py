"""A grid as Markdown, HTML, LaTeX, CSV, JSON and a model card.

Every name, cell and note is escaped here, for the format that it goes into.
"""

import csv
import io
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass

from results import escape
from results.columns import group_of
from results.comparison import Z
from results.grid import Cell, Grid, Row

TITLE = "SiameseIM table; percent."
TOY_TITLE = "Toy data: these numbers show that everything works and compare with nothing published."
ERRORS = "±"  # the name of the line below a row that has its errors
TASKS = {  # of a Hugging Face model card, by node
    **dict.fromkeys(("detection_coco", "detection_lvis", "detection_voc"), "object-detection"),
    "segmentation": "image-segmentation",
}
SETS = {
    "detection_coco": "COCO",
    "detection_lvis": "LVIS",
    "detection_voc": "PASCAL VOC",
    "segmentation": "ADE20k",
    "robustness": "ImageNet-A, -R, -Sketch, -C",
}
NOTES_IN_TABLE = 25  # below the table itself; more would not fit its page and follow it
LATEX_HEAD = r"""% Compiles as it stands. A paper that loads booktabs and graphicx can \input it, or take the table*.
\ifx\toprule\undefined
\documentclass[twocolumn]{article}
\usepackage{booktabs,graphicx}
\begin{document}
\def\endoftable{\end{document}}
\else
\def\endoftable{}
\fi"""
TIDY = ("row", "kind", "architecture", "column", "task", "metric", "value", "error", "deviation", "n", "protocol")


@dataclass(frozen=True)
class Text:
    """What a place of the table shows."""

    number: str
    marks: tuple[str, ...] = ()
    """Letters, each of a footnote."""
    emphasis: str = ""
    """best, second, or nothing."""


def title_of(grid: Grid) -> str:
    """The line over the table."""
    return TOY_TITLE if grid.toy else TITLE


def notes_of(grid: Grid) -> list[str]:
    """What stands below the table: how to read it, then the footnotes of the marks, then the other notes."""
    cells = [cell for row in grid.rows for cell in row.cells.values()]
    legend = []
    if any(row.kind != "published" and any(cell.error is not None for cell in row.cells.values()) for row in grid.rows):
        legend.append(
            f"{ERRORS}: half of the 95 % interval over the test images. It says nothing of another pretraining or "
            "training run"
        )
    if any(cell.emphasis for row in grid.rows if row.kind != "difference" for cell in row.cells.values()):
        legend.append(
            "bold: best of its column; italic or underlined: second best. Numbers whose difference does not "
            "exceed its 95 % interval are marked alike, and a column without such a difference has no mark. A "
            "published number without an error is taken to have that of its column"
        )
    if any(row.kind == "difference" for row in grid.rows):
        legend.append("A - B: the difference of two rows; bold where it exceeds its 95 % interval")
    if any(cell.marks for cell in cells):
        legend.append("letters: the footnotes say how a number's protocol differs from the published one of its column")
    numbered = [f"[{letters(number)}] {note}" for number, note in enumerate(grid.footnotes)]
    return [*numbered, *legend, *grid.notes]


def letters(index: int) -> str:
    """``a`` for the first footnote, ``aa`` for the 27th."""
    text = ""
    while index >= 0:
        index, rest = divmod(index, 26)
        text, index = chr(ord("a") + rest) + text, index - 1
    return text


def as_markdown(grid: Grid) -> str:
    """For people: columns are as wide as their text; the only bare brackets are the marks of a cell and of its note."""
    around = {"best": "**", "second": "*", "": ""}

    def cell(text: Text) -> str:
        sign = around[text.emphasis]
        return f"{sign}{escape.markdown(text.number)}{sign}{''.join(f'[{mark}]' for mark in text.marks)}"

    lines = [["encoder", *(heading for heading, *_ in grid.columns)]]
    lines = [[escape.markdown(text) for text in lines[0]]]
    lines += [[escape.markdown(label), *map(cell, texts)] for label, texts in _lines(grid)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    text = ["| " + " | ".join(map(str.ljust, line, widths)) + " |" for line in lines]
    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    table = "\n".join([escape.markdown(title_of(grid)), "", text[0], rule, *text[1:]])
    return table + "\n" + "".join(f"\n{_markdown_note(note)}  " for note in notes_of(grid)) + "\n"


def as_html(grid: Grid) -> str:
    """A page of its own."""
    tags = {"best": "b", "second": "u"}

    def cell(text: Text) -> str:
        tag, number = tags.get(text.emphasis), escape.html(text.number)
        marks = f"<sup>{','.join(text.marks)}</sup>" if text.marks else ""
        return f"<td>{f'<{tag}>{number}</{tag}>' if tag else number}{marks}</td>"

    over = "".join(f"<th colspan='{len(own)}'>{escape.html(group)}</th>" for group, own in _groups(grid))
    head = "".join(f"<th>{escape.html(text)}</th>" for text in ("encoder", *_short_headings(grid)))
    rows = [f"<tr><th></th>{over}</tr>", f"<tr>{head}</tr>"]
    rows += [f"<tr><th>{escape.html(label)}</th>{''.join(map(cell, texts))}</tr>" for label, texts in _lines(grid)]
    safe = escape.html(title_of(grid))
    before = ["<!doctype html>", "<meta charset='utf-8'>", f"<title>{safe}</title>", f"<p>{safe}</p>"]
    after = ["</table>", f"<p>{'<br>'.join(map(escape.html, notes_of(grid)))}</p>"]
    return "\n".join([*before, "<table border='1'>", *rows, *after]) + "\n"


def as_latex(grid: Grid) -> str:
    """A table* of booktabs, shrunk where it is wider than the page, and the notes below it; a document of its own."""
    commands = {"best": r"\textbf{%s}", "second": r"\underline{%s}", "": "%s"}

    def cell(text: Text) -> str:
        number = commands[text.emphasis] % escape.latex(text.number).replace("-{}", "$-$") if text.number else ""
        return number + (rf"\textsuperscript{{{','.join(text.marks)}}}" if text.marks else "")

    groups, rules, first = _groups(grid), [], 2
    for group, own in groups:
        rules += [rf"\cmidrule(lr){{{first}-{first + len(own) - 1}}}"] if group else []
        first += len(own)
    over = [rf"\multicolumn{{{len(own)}}}{{c}}{{{escape.latex(group)}}}" for group, own in groups]
    body, kinds = [], [row.kind for row in grid.rows for _ in _lines_of(row, {})]
    for number, (label, texts) in enumerate(_lines(grid)):
        size = r"\tiny " if label == ERRORS else ""
        body += [r"\midrule"] if number and kinds[number] != kinds[number - 1] else []
        body.append(" & ".join(size + part for part in (escape.latex(label), *map(cell, texts))) + r" \\")
    notes = [rf"\noindent {_latex_note(note)}\par" for note in notes_of(grid)]
    below = [r"\begingroup\scriptsize\raggedright", *notes, r"\endgroup"]
    lines = [
        LATEX_HEAD,
        r"\begin{table*}",
        r"\centering\scriptsize\setlength{\tabcolsep}{3pt}%",
        rf"\setbox0\hbox{{\begin{{tabular}}{{l{'r' * len(grid.columns)}}}",
        r"\toprule",
        " & ".join(["", *over]) + r" \\",
        " ".join(rules),
        " & ".join(map(escape.latex, ["encoder", *_short_headings(grid)])) + r" \\",
        r"\midrule",
        *body,
        r"\bottomrule",
        r"\end{tabular}}%",
        r"\leavevmode\ifdim\wd0>\textwidth\resizebox{\textwidth}{!}{\box0}\else\box0\fi",
        rf"\caption{{{escape.latex(title_of(grid))}}}",
        *(below if len(notes) <= NOTES_IN_TABLE else []),
        r"\end{table*}",
        *(below if len(notes) > NOTES_IN_TABLE else []),
        r"\endoftable",
    ]
    return "\n".join(lines) + "\n"


def as_csv(grid: Grid) -> str:
    """A line a row and a number a cell, which is empty where there is none; differences are in points."""
    lines: list[list[str]] = [["encoder", *(heading for heading, *_ in grid.columns)]]
    for row in grid.rows:
        lines.append([row.label, *(_number(row.cells[heading].value) for heading, *_ in grid.columns)])
    return _csv(lines)


def as_tidy(grid: Grid) -> str:
    """``results.csv``: a line a number, with its error, images, protocol, marks and source."""
    return _csv([[*TIDY, "marks", "source"], *([_number(value) for value in line.values()] for line in tidy(grid))])


def as_json(grid: Grid) -> str:
    """The numbers as in ``results.csv``, with the title and the notes."""
    content = {"title": title_of(grid), "numbers": tidy(grid), "notes": grid.notes}
    return json.dumps(content, indent=1, ensure_ascii=True) + "\n"


def as_card(grid: Grid) -> str:
    """A model card: the metadata header of Hugging Face, of the measured rows, and the table."""
    models = []
    for row in (row for row in grid.rows if row.kind == "measured"):
        results = [
            {
                "task": {"type": TASKS.get(node, "image-classification")},
                "dataset": {
                    "name": (name := _set_of(node, heading, grid)),
                    "type": re.sub(r"\W+", "-", name.lower()),
                },
                "metrics": [{"type": metric, "name": heading, "value": round(float(row.cells[heading].value or 0), 4)}],
            }
            for heading, node, metric in grid.columns
            if row.cells[heading].value is not None
        ]
        if results:
            models.append({"name": escape.plain(row.label), "results": results})
    header = ["---", "tags:", "- self-supervised-learning"]
    if models:  # JSON is YAML, and quotes whatever a name has in it
        header += ["pipeline_tag: image-feature-extraction", f"model-index: {json.dumps(models)}"]
    return "\n".join([*header, "---", "", as_markdown(grid)])


def tidy(grid: Grid) -> list[dict[str, object]]:
    """One entry a number that the table shows."""
    return [
        dict(
            zip(
                (*TIDY, "marks", "source"),
                (row.label, row.kind, row.architecture, heading, node, metric, cell.value, cell.error, cell.deviation)
                + (cell.images, cell.protocol, " | ".join(cell.marks), cell.source),
                strict=True,
            )
        )
        for row in grid.rows
        for heading, node, metric in grid.columns
        if (cell := row.cells[heading]).value is not None
    ]


FORMATS = {  # name, file, and what makes it
    "csv": ("table.csv", as_csv),
    "tidy": ("results.csv", as_tidy),
    "tex": ("table.tex", as_latex),
    "md": ("table.md", as_markdown),
    "html": ("table.html", as_html),
    "json": ("table.json", as_json),
    "card": ("model_card.md", as_card),
}


def _lines(grid: Grid) -> list[tuple[str, list[Text]]]:
    """The table's lines with their names: the rows, each with a line of its errors where it was measured."""
    numbers = {note: letters(number) for number, note in enumerate(grid.footnotes)}
    return [line for row in grid.rows for line in _lines_of(row, numbers)]


def _lines_of(row: Row, numbers: dict[str, str]) -> list[tuple[str, list[Text]]]:
    signed = row.kind == "difference"
    lines = [(row.label, [_text(cell, signed, numbers) for cell in row.cells.values()])]
    errors = [
        Text("" if cell.error is None or cell.deviation is not None else f"{Z * cell.error:.1f}")
        for cell in row.cells.values()
    ]
    if row.kind != "published" and any(text.number for text in errors):
        lines.append((ERRORS, errors))
    return lines


def _text(cell: Cell, signed: bool, numbers: dict[str, str]) -> Text:
    if cell.value is None:
        return Text(cell.text)
    number = f"{cell.value:{'+' if signed else ''}.1f}"
    if cell.deviation is not None:
        number += f" ± {cell.deviation:.1f}"
    return Text(number, tuple(numbers.get(mark, "") for mark in cell.marks), cell.emphasis)


def _groups(grid: Grid) -> list[tuple[str, list[str]]]:
    """What stands over neighboring columns, and their headings."""
    groups: list[tuple[str, list[str]]] = []
    for heading, node, _ in grid.columns:
        if not groups or groups[-1][0] != group_of(node, heading):
            groups.append((group_of(node, heading), []))
        groups[-1][1].append(heading)
    return groups


def _short_headings(grid: Grid) -> list[str]:
    """The headings without what stands over them."""
    return [heading.removeprefix(f"{group_of(node, heading)} ") for heading, node, _ in grid.columns]


def _set_of(node: str, heading: str, grid: Grid) -> str:
    if "." in node:  # a labelled set's
        return group_of(node, heading)
    return ("toy " if grid.toy else "") + SETS.get(node, "ImageNet-1K")


def _number(value: object) -> str:
    """As pandas reads it."""
    return "" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)


def _csv(lines: Sequence[Sequence[str]]) -> str:
    """Text that a spreadsheet would compute begins with an apostrophe."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([escape.csv(cell) for cell in line] for line in lines)
    return text.getvalue()


def _markdown_note(text: str) -> str:
    """A line of its own, which is no heading, list, rule or code either."""
    mark, separator, note = text.partition("] ")
    if separator and re.fullmatch(r"\[[a-z]+", mark):
        return f"{mark}] {escape.markdown(note)}"
    return re.sub(r"^(\d*)([#+=.)-])", r"\1\\\2", escape.markdown(text).strip())


def _latex_note(text: str) -> str:
    mark, separator, note = text.partition("] ")
    if separator and re.fullmatch(r"\[[a-z]+", mark):
        return rf"\textsuperscript{{{mark[1:]}}} {_breakable(note)}"
    return _breakable(text)


def _breakable(text: str) -> str:
    """LaTeX whose long words, as file names are, may be broken anywhere after some signs."""
    pieces = (re.findall(r".{1,20}", word) for word in escape.plain(text).split(" "))
    return " ".join(r"\allowbreak{}".join(map(escape.latex, parts)) for parts in pieces)
