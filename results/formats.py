"""A table and its notes as CSV, HTML, LaTeX and Markdown.

Every name, cell and note is escaped here, for the format that it goes into.
"""

import csv
import io
import re
from collections.abc import Sequence

import pandas as pd

from results import escape

MARKED = re.compile(r"(?P<number>[^\[\]]*)(?P<marks>(\[[a-z]+\])+)")  # 71.3[a][b]


def as_csv(table: pd.DataFrame) -> str:
    """A heading and a line a row; text that a spreadsheet would compute begins with an apostrophe."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    for line in _lines(table):
        writer.writerow([escape.csv(cell) for cell in line])
    return text.getvalue()


def as_html(table: pd.DataFrame, title: str, notes: Sequence[str]) -> str:
    """A page of its own."""
    head, *body = _lines(table)
    rows = [f"<tr>{''.join(f'<th>{escape.html(cell)}</th>' for cell in head)}</tr>"]
    rows += [
        f"<tr><th>{escape.html(name)}</th>{''.join(f'<td>{escape.html(cell)}</td>' for cell in line)}</tr>"
        for name, *line in body
    ]
    safe = escape.html(title)
    before = [
        "<!doctype html>",
        "<meta charset='utf-8'>",
        f"<title>{safe}</title>",
        f"<p>{safe}</p>",
        "<table border='1'>",
    ]
    after = ["</table>", f"<p>{'<br>'.join(map(escape.html, notes))}</p>"]
    return "\n".join([*before, *rows, *after]) + "\n"


def as_latex(table: pd.DataFrame, title: str, notes: Sequence[str]) -> str:
    """A booktabs tabular, with the title and the notes as comments: paste it into a paper that loads booktabs."""
    head, *body = [" & ".join(_latex_cell(cell) for cell in line) + r" \\" for line in _lines(table)]
    columns = "l" + "r" * len(table.columns)
    lines = [
        rf"\begin{{tabular}}{{{columns}}}",
        r"\toprule",
        head,
        r"\midrule",
        *body,
        r"\bottomrule",
        r"\end{tabular}",
    ]
    return "\n".join([*(f"% {escape.plain(line)}" for line in (title, *notes)), *lines]) + "\n"


def as_markdown(table: pd.DataFrame, title: str, notes: Sequence[str]) -> str:
    """For people: columns are as wide as their text; the only bare brackets are the marks of a cell and of its note."""
    lines = [[_markdown_cell(cell) for cell in line] for line in _lines(table)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    text = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines
    ]
    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return (
        "\n".join([escape.markdown(title), "", text[0], rule, *text[1:]])
        + "\n"
        + "".join(f"\n{_markdown_note(note)}  " for note in notes)
        + "\n"
    )


def _lines(table: pd.DataFrame) -> list[list[str]]:
    """The heading and the rows, each with its name first."""
    head = [str(table.index.name), *map(str, table.columns)]
    return [head, *([str(name), *map(str, row)] for name, row in zip(table.index, table.to_numpy(), strict=True))]


def _latex_cell(text: str) -> str:
    marked = MARKED.fullmatch(text)
    if not marked:
        return escape.latex(text)
    return f"{escape.latex(marked['number'])}$^{{{','.join(re.findall(r'[a-z]+', marked['marks']))}}}$"


def _markdown_cell(text: str) -> str:
    marked = MARKED.fullmatch(text)
    return f"{escape.markdown(marked['number'])}{marked['marks']}" if marked else escape.markdown(text)


def _markdown_note(text: str) -> str:
    """A line of its own, which is no heading, list, rule or code either."""
    mark, separator, note = text.partition("] ")
    if separator and re.fullmatch(r"\[[a-z]+", mark):
        return f"{mark}] {escape.markdown(note)}"
    return re.sub(r"^(\d*)([#+=.)-])", r"\1\\\2", escape.markdown(text).strip())
