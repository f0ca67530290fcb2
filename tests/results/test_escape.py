"""Names and reasons from outside reach CSV, HTML, LaTeX and Markdown as text, whatever they are made of."""

import csv
import io
import itertools
import json
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from markdown_it import MarkdownIt

from results import escape, formats, record, tables
from tests.results.entries import entry

PARTS = (
    "<img src=x onerror=alert(1)>",
    "</td></tr></table><script>alert(1)</script>",
    "&lt;b&gt;",
    "\" onload='x",
    "<!--",
    "]]>",
    "\\input{/etc/passwd}",
    "\\write18{rm -rf ~}",
    "$x$",
    "100% & #1 _a_ ^2 ~ {}",
    "^^M",
    "\\",
    "\\\\",
    "%",
    "a%\nb",
    "| a | b |",
    "`code`",
    "``",
    "[text](http://x)",
    "![i](x)",
    "[a]: http://x",
    "**bold**",
    "*",
    "__init__",
    "_em_",
    "my_model_2",
    "~~s~~",
    "# h",
    "---",
    "> q",
    "1. x",
    "- x",
    "\n\n# heading",
    "line\r\nbreak",
    "\u2028next\u2029",
    "\x85",
    "\x0b\x0c",
    "tab\there",
    "\x1b[31mred\x1b[0m",
    "\x00",
    "=1+1",
    "+1",
    "-1+2",
    "@SUM(A1)",
    "\t=1",
    "\r=1",
    "\n=1",
    "-14.8",
    "+7",
    "1e5",
    "=cmd|' /C calc'!A0",
    "＝1",
    '"quoted", with comma',
    "'",
    "é – 模型 😀",
    "\ud800",
    "\ufeffx",
    "\u202egnp.exe",
    "a" * 300,
    " leading",
    "trailing ",
    "",
)


def hostile() -> Iterator[str]:
    """Each part, all pairs of some, and random mixtures of their signs."""
    yield from PARTS
    yield from ("".join(pair) for pair in itertools.product(PARTS[::4], PARTS[1::5]))
    rng, signs = np.random.default_rng(0), list("".join(PARTS))
    yield from ("".join(rng.choice(signs, rng.integers(1, 40))) for _ in range(1000))


class Page(HTMLParser):
    """The tags of a page, and its text outside the title."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.cells: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.tags.append(tag)
        self.cells += [""] if tag in ("td", "th") else []
        assert not attrs or tag in ("meta", "table") and all("x" not in str(value) for _, value in attrs), attrs

    def handle_data(self, data: str) -> None:
        if self.tags[-1:] and self.tags[-1] in ("td", "th"):
            self.cells[-1] += data.rstrip("\n")

    def handle_comment(self, data: str) -> None:
        raise AssertionError(f"a comment: {data}")


def frame(name: str) -> pd.DataFrame:
    table = pd.DataFrame(
        [["71.3[a][b]", name], ["–", "-14.8"]],
        index=pd.Index([name, "other"], name="encoder"),
        columns=["FT", name + "1%"],
    )
    table.index.name = "encoder"
    return table


@pytest.mark.parametrize("start", range(8))
def test_hostile_text_stays_text(start: int) -> None:
    commonmark = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
    for name in itertools.islice(hostile(), start, None, 8):
        table, notes, plain = frame(name), [f"[a] {name}", name], escape.plain(name)
        assert plain.isprintable() and plain.encode() is not None

        page = Page(formats.as_html(table, name, notes))
        assert page.tags == [
            "meta",
            "title",
            "p",
            "table",
            *["tr", "th", "th", "th"],
            *2 * ["tr", "th", "td", "td"],
            "p",
            "br",
        ], name
        assert [cell.strip() for cell in page.cells[3:6]] == [plain.strip(), "71.3[a][b]", plain.strip()]

        text = formats.as_markdown(table, name, notes)
        rendered = commonmark.render(
            text.split("\n", 2)[2]
        )  # a title of "# h" is ours to choose, and never from outside
        table_html = Page(rendered.partition("</table>")[0])
        assert table_html.tags == ["table", "thead", "tr", "th", "th", "th", "tbody", *2 * ["tr", "td", "td", "td"]], (
            name,
            rendered,
        )
        assert [" ".join(cell.split()) for cell in table_html.cells[3:6]] == [
            " ".join(part.split()) for part in (plain, "71.3[a][b]", plain)
        ]
        after = rendered.partition("</table>")[2]
        assert set(re.findall(r"<[^>]*>", after)) <= {"<p>", "</p>", "<br />"}, (name, after)

        lines = formats.as_latex(table, name, notes).splitlines()
        assert len(lines) == 3 + 8 and all(line.startswith("% ") for line in lines[:3])
        for line in lines[5:6] + lines[7:9]:
            body = line.removesuffix(r" \\").replace("$^{a,b}$", "")
            bare = re.sub(
                r"\\(textbackslash|textasciicircum|textasciitilde|textless|textgreater)\{\}|\\[{}$&#_%]", "", body
            )
            assert bare.count("&") == 2 and not re.search(r"[\\{}$#^_~%<>]", bare), (name, line)

        rows = list(csv.reader(io.StringIO(formats.as_csv(table))))
        assert len(rows) == 3 and [len(row) for row in rows] == [3] * 3
        for cell in itertools.chain(*rows):
            assert not cell.startswith(escape.FORMULA) or escape.NUMBER.fullmatch(cell), cell
        assert rows[2][2] == "-14.8" and rows[1][0].removeprefix("'") == plain.removeprefix("'")


def test_numbers_stay_numbers_and_formulas_do_not_stay_formulas() -> None:
    assert [escape.csv(text) for text in ("-14.8", "71.3", "+1", "-1e-5")] == ["-14.8", "71.3", "+1", "-1e-5"]
    for formula in ("=1", "@x", "+1+1", "-x", "\t1", "\r1", "-14.8[a]"):
        assert escape.csv(formula).startswith("'")
    assert [escape.csv(text) for text in ("mine", "–", "", "a=1")] == ["mine", "–", "", "a=1"]


def test_words_stay_readable_in_markdown() -> None:
    for text in ("linear_probe: img_size 32; paper: 224", "box AP (rare) – 3.5 %", "/data/imagenet-a/x.JPEG"):
        assert escape.markdown(text) == text


@pytest.mark.parametrize(
    "hostile_text", ["<img src=x onerror=alert(1)>", "a\nb | c", "\\input{x}", "=1+1", "\x1b[31m", "\ud800"]
)
def test_no_field_of_a_record_is_markup(hostile_text: str, tmp_path: Path) -> None:
    entries = [
        entry(
            "knn",
            encoder=hostile_text.replace("/", ""),
            protocol={"other_protocol": hostile_text, "framework": hostile_text},
        ),
        entry("few_shot", encoder="b", status="failed", reason=hostile_text, encoder_fingerprint="b"),
        entry("finetune", encoder="b", encoder_fingerprint="b", settings={hostile_text: hostile_text}),
        entry("robustness", encoder="b", encoder_fingerprint="b", metrics={}, skipped={"imagenet_a": hostile_text}),
        entry(
            "segmentation",
            encoder="b",
            encoder_fingerprint="b",
            subset={hostile_text: hostile_text},
            versions={hostile_text: hostile_text},
        ),
        entry(
            "linear_probe",
            encoder="b",
            encoder_fingerprint="b",
            rests_on={hostile_text: {}},
            versions={hostile_text: "1"},
        ),
    ]
    for one in entries:
        (tmp_path / "records").mkdir(exist_ok=True)
        (tmp_path / "records" / f"{one['task']}.json").write_text(json.dumps(one))
    assert len(record.read_all(tmp_path / "records")) == len(entries)
    assert tables.main([str(tmp_path)]) == 0
    page = (tmp_path / "table.html").read_text()
    assert set(Page(page).tags) == {"meta", "title", "p", "table", "tr", "th", "td", "br"} and "<img" not in page
    tex = (tmp_path / "table.tex").read_text()
    assert all(line.startswith("%") for line in tex.partition("\\begin")[0].splitlines())
    assert "\\input" not in tex.partition("\\begin")[2]
    for path in tmp_path.glob("table.*"):
        assert all(line.isprintable() for line in path.read_text().split("\n")), path
    assert "\n=1" not in (tmp_path / "table.csv").read_text()
