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
import pytest
from markdown_it import MarkdownIt

from results import __main__ as command
from results import escape, formats, grid, record
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
        assert not attrs or tag in ("meta", "table", "th") and all("x" not in str(value) for _, value in attrs), attrs

    def handle_data(self, data: str) -> None:
        if self.tags[-1:] and self.tags[-1] in ("td", "th"):
            self.cells[-1] += data.rstrip("\n")

    def handle_comment(self, data: str) -> None:
        raise AssertionError(f"a comment: {data}")


def table(name: str) -> grid.Grid:
    """Two rows and two columns, with a name from outside wherever one can stand."""
    columns = (("FT", "finetune", "top1"), ("kNN", "knn", "top1"))
    first = {"FT": grid.Cell("", 71.3, marks=(name, f"{name} too"), emphasis="best"), "kNN": grid.Cell(name)}
    second = {"FT": grid.Cell(), "kNN": grid.Cell("", -14.8, source=name)}
    rows = [grid.Row(name, "measured", name, first), grid.Row("other", "measured", "", second)]
    return grid.Grid(columns, rows, toy=False, notes=[name])


@pytest.mark.parametrize("start", range(8))
def test_hostile_text_stays_text(start: int) -> None:
    commonmark = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
    for name in itertools.islice(hostile(), start, None, 8):
        made, plain = table(name), escape.plain(name)
        assert plain.isprintable() and plain.encode() is not None
        notes = len(formats.notes_of(made))

        page = Page(formats.as_html(made))
        assert page.tags == [
            *["meta", "title", "p", "table"],
            *2 * ["tr", "th", "th"],
            *["th", "tr", "th", "td", "b", "sup", "td"],
            *["tr", "th", "td", "td", "p", *["br"] * (notes - 1)],
        ], name
        assert [page.cells[place].strip() for place in (5, 7)] == 2 * [plain.strip()]

        for text in (formats.as_markdown(made), formats.as_card(made).partition("\n---\n\n")[2]):
            rendered = commonmark.render(text.split("\n", 2)[2])  # the title is ours, and never from outside
            inside, _, after = rendered.partition("</table>")
            html = Page(inside)
            body = ["tr", "td", "td", "strong", "td", "tr", "td", "td", "td"]
            assert html.tags == ["table", "thead", "tr", "th", "th", "th", "tbody", *body], (name, rendered)
            assert [" ".join(html.cells[place].split()) for place in (3, 5)] == 2 * [" ".join(plain.split())]
            assert set(re.findall(r"<[^>]*>", after)) <= {"<p>", "</p>", "<br />"}, (name, after)
        header = formats.as_card(made).split("\n---\n")[0]
        assert json.loads(header.partition("model-index: ")[2])[0]["name"] == plain

        lines = formats.as_latex(made).partition(r"\midrule")[2].splitlines()
        cells = [line for line in lines if line.endswith(r" \\")]
        assert len(cells) == 2
        for line in [*cells, *(line for line in lines if line.startswith(r"\noindent"))]:
            body = re.sub(r"\\(textbf|textsuperscript)\{([\w.,]*)\}|^\\noindent|\\par$| \\\\$", r"\2", line)
            bare = re.sub(
                r"\\(text[a-z]+|ldots|allowbreak)\{\}|\\[{}$&#_%]|-\{\}|\{[\[\]*]\}|\$(\\[a-z]+|-)\$", "", body
            )
            assert bare.count("&") == 2 * (line in cells) and not re.search(r"[\\{}$#^_~%<>|]", bare), (name, line)

        for text in (formats.as_csv(made), formats.as_tidy(made)):
            rows = list(csv.reader(io.StringIO(text)))
            assert len(rows) == 3 and len({len(row) for row in rows}) == 1
            for cell in itertools.chain(*rows):
                assert not cell.startswith(escape.FORMULA) or escape.NUMBER.fullmatch(cell), cell
            assert rows[1][0].removeprefix("'") == plain.removeprefix("'") and "-14.8" in rows[2]
        assert json.loads(formats.as_json(made))["numbers"][0]["value"] == 71.3


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
    assert command.main([str(tmp_path)]) == 0
    page = (tmp_path / "table.html").read_text()
    tags = {"meta", "title", "p", "table", "tr", "th", "td", "br", "b", "u", "sup"}
    assert set(Page(page).tags) <= tags and "<img" not in page
    assert "\\input" not in (tmp_path / "table.tex").read_text().partition("\\begin{table*}")[2]
    for path in tmp_path.glob("table.*"):
        assert all(line.isprintable() for line in path.read_text().split("\n")), path
    assert "\n=1" not in (tmp_path / "table.csv").read_text()
