"""The report: its numbers are the records', nothing in it is markup or leaves it, and a browser opens and sorts it."""

import html
import http.server
import json
import re
import shutil
import subprocess
import threading
from functools import partial
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from evaluate.data.thumbnails import Thumbnail
from evaluate.data.thumbnails import write as write_pictures
from evaluate.harness import demo
from results import record, tables
from results.columns import COLUMNS
from results.report import content
from tests.results.entries import entry

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
HOSTILE = "<script>alert(1)<!--&lt;\"'{{ 7 * 7 }}"
CORRUPTIONS = {"fog": {"1": 20.125, "5": 60.5}, "snow": {"1": 30.0, "5": 71.0}}


class Page(HTMLParser):
    """The elements of a page with their attributes, and the text in its scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.scripts: list[str] = []
        self.feed(text)
        (self.data,) = (json.loads(script) for script in self.scripts if script.startswith("{"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_data(self, data: str) -> None:
        if self.elements and self.elements[-1][0] == "script" and data.strip():
            self.scripts.append(data)

    def having(self, tag: str, name: str) -> list[dict[str, str]]:
        return [attributes for own, attributes in self.elements if own == tag and name in attributes]


def write_rows(out: Path, names: list[str], leave_out: tuple[str, ...] = (), **changes: Any) -> None:
    """A record of every task for each row, with another number in every cell."""
    nodes = dict.fromkeys(node for _, node, _ in COLUMNS if node not in leave_out)
    for number, name in enumerate(names):
        for place, node in enumerate(nodes):
            metrics = {metric: 40 + number + place / 7 for _, own, metric in COLUMNS if own == node}
            errors = dict.fromkeys(metrics, 0.2 + place / 100)
            protocol = {"head": "linear"}
            if node == "robustness":
                means = {corruption: 40.25 + number for corruption in CORRUPTIONS}
                protocol |= {"corruption_errors": means, "severity_errors": CORRUPTIONS}  # type: ignore[dict-item]
            known = {"metrics": metrics, "standard_error": errors, "architecture": "ViT-B/16", "protocol": protocol}
            fields = {
                "encoder": name,
                "encoder_fingerprint": f"{number:064}",
                "seconds": 61.5 + number,
                **known,
                **changes,
            }
            record.write(out / "records", entry(node, **fields))


def report(out: Path, reference: str | None = None) -> str:
    """The page of a folder, as it is written beside the tables."""
    entries, problems = record.read(out / "records")
    names = list(dict.fromkeys(one["encoder"] for one in entries))
    tables.write(out, tables.build(out, names, entries, problems, reference=reference), ["report"])
    return (out / "report.html").read_text()


def test_every_figures_numbers_are_the_records(tmp_path: Path) -> None:
    write_rows(tmp_path, ["one", "two"])
    text = report(tmp_path, reference="one")
    page = Page(text)
    records = {(one["encoder"], one["task"]): one for one in record.read_all(tmp_path / "records")}
    columns = {heading: (node, metric) for heading, node, metric in COLUMNS}
    rows = page.data["rows"]
    for row in ("one", "two"):
        for index, (heading, (node, metric)) in enumerate(columns.items()):
            cell = page.data["cells"][rows.index(row)][index]
            assert cell["value"] == records[row, node]["metrics"][metric], heading
            assert cell["error"] == records[row, node]["standard_error"][metric], heading
    heats = re.search(r'id="corruptions".*?</section>', text, re.S)
    times = re.search(r'id="times".*?</section>', text, re.S)
    assert heats and times
    shown = [float(value) for value in re.findall(r'data-value="([^"]+)"', heats[0])]
    severities = [value for own in CORRUPTIONS.values() for value in own.values()]
    assert shown == [40.25, 40.25, 41.25, 41.25, *severities, *severities]
    seconds = [float(value) for value in re.findall(r'data-value="([^"]+)"', times[0])]
    assert seconds == [61.5] * (len(seconds) // 2) + [62.5] * (len(seconds) // 2)
    (chosen,) = re.findall(rf'data-base="{rows.index("one")}">(.*?)</div>', text, re.S)  # the one that is not hidden
    panels = re.findall(r'<figure data-column="(.*?)">(.*?)</figure>', chosen, re.S)
    assert [heading for heading, _ in panels] == list(columns)
    for heading, figure in panels:
        node, metric = columns[heading]
        values = [records[row, node]["metrics"][metric] for row in ("two", "one")]
        (dot,) = Page(f"<script>{{}}</script>{figure}").having("circle", "data-value")
        assert float(dot["data-value"]) == values[0] - values[1] and dot["data-name"] == "two"
        error = 2**0.5 * records["two", node]["standard_error"][metric]  # of two independent numbers
        assert float(dot["data-error"]) == pytest.approx(error)
        assert at(figure, "x", float(dot["cx"])) == pytest.approx(values[0] - values[1], abs=0.02)
        (bar,) = re.findall(r'class="bar [^>]*x1="([^"]+)"[^>]*x2="([^"]+)"', figure)
        ends = [at(figure, "x", float(end)) for end in bar]
        assert ends == pytest.approx([1 - 1.96 * error, 1 + 1.96 * error], abs=0.02)


def at(figure: str, axis: str, place: float, kind: str = "tick") -> float:
    """The number at a place of a figure, by the ticks that are drawn; text stands 4 px below its line's middle."""
    ticks = re.findall(rf'<text class="{kind}" x="([^"]+)" y="([^"]+)"[^>]*data-tick="([^"]+)"', figure)
    places = [(float(x) if axis == "x" else float(y) - 4, float(value)) for x, y, value in ticks]
    (first, low), (last, high) = places[0], places[-1]
    return low + (place - first) * (high - low) / (last - first)


def test_epochs_of_a_run_are_one_line_which_a_missing_one_breaks(tmp_path: Path) -> None:
    write_rows(tmp_path, [f"run-{epoch}" for epoch in range(8, 408, 8)])
    for path in (tmp_path / "records").glob("run-160-knn-*"):
        path.unlink()
    failed = {"status": "failed", "reason": "memory is too small", "metrics": {}}
    for path in (tmp_path / "records").glob("run-80-finetune-*"):
        path.unlink()
    record.write(tmp_path / "records", entry(encoder="run-80", encoder_fingerprint=f"{9:064}", **failed))
    text = report(tmp_path)
    section = re.search(r'id="epochs".*?</section>', text, re.S)
    assert section
    figures = dict(re.findall(r'<figure data-column="(.*?)">(.*?)</figure>', section[0], re.S))
    assert list(figures) == [heading for heading, *_ in COLUMNS]
    dots = Page(f"<script>{{}}</script>{figures['FT']}").having("circle", "data-x")
    assert [float(dot["data-x"]) for dot in dots] == [epoch for epoch in range(8, 408, 8) if epoch != 80]
    for dot in dots:
        assert float(dot["data-value"]) == 40 + float(dot["data-x"]) / 8 - 1 + 0 / 7
        assert at(figures["FT"], "y", float(dot["cy"])) == pytest.approx(float(dot["data-value"]), abs=0.2)
        assert at(figures["FT"], "x", float(dot["cx"]), "epoch") == pytest.approx(float(dot["data-x"]), abs=0.1)
    assert (
        "not here: run-80 (failed)" in figures["FT"] and re.findall(r' d="([^"]+)"', figures["FT"])[0].count("M") == 2
    )
    assert "not here: run-160 (not run)" in figures["kNN"] and "memory is too small" in text
    lines = Page(f"<script>{{}}</script>{figures['FT']}").having("line", "data-name")
    assert {line["data-name"]: float(line["data-value"]) for line in lines}["MAE"] == 83.6
    assert "of several epochs of a run, the last is drawn" in text.lower()


def test_runs_of_other_epochs_are_whole_lines_of_one_figure(tmp_path: Path) -> None:
    write_rows(tmp_path, ["a1", "a2", "a3", "a4"])
    for number, name in enumerate(("b2", "b4", "b8")):
        write_rows(tmp_path, [name], encoder_fingerprint=f"b{number:063}")
    (section,) = re.findall(r'id="epochs".*?</section>', report(tmp_path), re.S)
    paths = re.findall(r'class="run (s\d)" d="([^"]+)"', section)
    assert len(paths) == 2 * len(COLUMNS) and {kind for kind, _ in paths} == {"s0", "s1"}
    assert all(path.count("M") == 1 for _, path in paths)


def test_curves_are_the_files(tmp_path: Path) -> None:
    files = {}
    for number, name in enumerate(("one", HOSTILE)):
        for task, axis in (("finetune", "epoch"), ("segmentation", "step")):
            known = {"encoder": name, "encoder_fingerprint": f"{number:064}", "work": f"row{number}/{task}"}
            record.write(tmp_path / "records", entry(task, **known))
            points = [
                {
                    "step": 10 * place,
                    axis: 10 * place + number,
                    "rate": 0.1,
                    "loss": 2.5 / place,
                    "accuracy": 7.5 * place,
                }
                for place in range(1, 5)
            ]
            lines = [*map(json.dumps, points), '{"step": 50, "lo', "[]", '{"step": 60, "loss": NaN}']
            (tmp_path / f"row{number}/{task}").mkdir(parents=True)
            (tmp_path / f"row{number}/{task}/curves.jsonl").write_text("\n".join(lines))
            files[task, name] = points, axis
    text = report(tmp_path)
    (section,) = re.findall(r'id="curves".*?</section>', text, re.S)
    figures = re.findall(r'<figure data-task="(.*?)"><figcaption>.*?: (.*?)</figcaption>(.*?)</figure>', section, re.S)
    assert len(figures) == 4
    for task, told, figure in figures:
        paths = Page(f"<script>{{}}</script>{figure}").having("path", "data-y")
        assert [path["data-name"] for path in paths] == ["one", HOSTILE]
        for path in paths:
            points, axis = files[task, path["data-name"]]
            assert [float(x) for x in path["data-x"].split()] == [point[axis] for point in points]
            values = [float(y) for y in path["data-y"].split()]
            assert values == [point[told.split(",")[0].split()[0]] for point in points]
            drawn = [tuple(map(float, place.split())) for place in path["d"][1:].split("L")]
            assert [at(figure, "y", y) for _, y in drawn] == pytest.approx(values, abs=0.1)
            assert [at(figure, "x", x, "epoch") for x, _ in drawn] == pytest.approx([p[axis] for p in points], abs=0.1)


def test_estimates_and_memory_stand_beside_the_times(tmp_path: Path) -> None:
    told = {
        "estimate": {"seconds": 90.0, "source": "assumed: <an H100>", "memory": 2**31},
        "memory": {"process": 3 * 2**30, "gpu": 2**31},
    }
    write_rows(tmp_path, ["one"], **told)
    write_rows(tmp_path, ["older"], encoder_fingerprint="e" * 64, estimate=[3], memory={"process": "much"})
    (section,) = re.findall(r'id="times".*?</section>', report(tmp_path), re.S)
    cells = [own for own in Page(f"<script>{{}}</script>{section}").having("td", "data-value")]
    known = [cell for cell in cells if "data-estimate" in cell]
    assert len(cells) == 2 * len(known) > 0
    assert {(one["data-estimate"], one["data-process"], one["data-gpu"]) for one in known} == {
        ("90.0", str(3.0 * 2**30), str(2.0**31))
    }
    assert (
        "est. 1 min 30 s · 3.0 GiB · GPU 2.0 GiB (est. 2.0 GiB)" in section and "(assumed: &lt;an H100&gt;)" in section
    )


def test_no_finite_number_ends_the_report(tmp_path: Path) -> None:
    for name, value in (("run1", 1e308), ("run2", -1e308), ("run3", 1e17), ("run4", 50.0)):
        odd = {"metrics": {"top1": value}, "standard_error": {"top1": 1e300}, "seconds": float("nan")}
        record.write(tmp_path / "records", entry(encoder=name, encoder_fingerprint=name, **odd))
    assert "run4" in report(tmp_path)


def test_names_that_end_in_numbers_are_no_run_if_their_architectures_differ(tmp_path: Path) -> None:
    write_rows(tmp_path, ["resnet50"], architecture="ResNet-50")
    write_rows(tmp_path, ["resnet101"], architecture="ResNet-101", encoder_fingerprint="e" * 64)
    assert 'id="epochs"' not in report(tmp_path)


def test_a_half_finished_run_says_what_is_missing(tmp_path: Path) -> None:
    write_rows(tmp_path, ["one", "two"], leave_out=("knn", "segmentation"))
    reason = f"no such file {HOSTILE}"
    broken = {"status": "failed", "reason": reason, "metrics": {}}
    record.write(tmp_path / "records", entry("knn", encoder="two", encoder_fingerprint=f"{1:064}", **broken))
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "two-knn.log").touch()
    text = report(tmp_path)
    missing = re.search(r'id="missing".*?</section>', text, re.S)
    assert missing
    said = html.unescape(re.sub(r"<[^>]+>", "", missing[0]))
    assert reason in said and "logs/two-knn.log" in said and "--tasks knn" in said
    assert "one: ADE20k mIoU, kNN" in said and "two: ADE20k mIoU" in said
    assert "26</b> of 30 numbers measured" in text and "1</b> failed" in text


def test_nothing_was_measured_yet(tmp_path: Path) -> None:
    tables.render(tmp_path, ["mine"], [])
    text = (tmp_path / "report.html").read_text()
    assert "0</b> of 15 numbers measured" in text and "Nothing was measured yet" in text


def test_a_certificate_is_told_and_only_for_its_own_encoder(tmp_path: Path) -> None:
    write_rows(tmp_path, ["one"])
    assert "no certificate beside the records" in report(tmp_path)
    (tmp_path / "one").mkdir()
    checks = {"timm": {"difference": 4e-6, "passed": True}}
    for fingerprint, said in ((f"{0:064}", ">passed<"), ("another", ">is of another encoder<")):
        whole = {"passed": True, "fingerprint": fingerprint, "checks": checks, "tolerance": 1e-4}
        (tmp_path / "one" / "encoder.certificate.json").write_text(json.dumps(whole))
        assert said in report(tmp_path)
    for damaged in ("{", "[]", '{"checks": 3}'):
        (tmp_path / "one" / "encoder.certificate.json").write_text(damaged)
        assert "no certificate beside the records" in report(tmp_path)


def test_no_name_is_markup_and_nothing_is_loaded(tmp_path: Path) -> None:
    write_rows(tmp_path, [HOSTILE, "run1", "run2"], preset=HOSTILE, device=HOSTILE, versions={HOSTILE: HOSTILE})
    text = report(tmp_path)
    page = Page(text)
    assert text.count("<script") == 2 and text.count("</script") == 2 and "<!--" not in text
    assert "{{ 7 * 7 }}" in html.unescape(text) and HOSTILE in page.data["rows"]
    assert page.having("meta", "content")[0]["content"].startswith("default-src 'none';")
    outside = [
        value for _, own in page.elements for name, value in own.items() if name in ("src", "href", "srcset", "action")
    ]
    assert outside and all(value.startswith("#") for value in outside)
    assert not re.search(r"@import|url\(", text) and not any(
        name.startswith("on") for _, own in page.elements for name in own
    )


CLICKS = """<!doctype html><iframe src="report.html" width="900" height="700"></iframe><pre></pre><script>
const frame = document.querySelector("iframe"), said = [];
addEventListener("load", () => {
  const page = frame.contentDocument;
  const names = () => [...page.querySelectorAll("#grid tbody tr")].map((row) => row.cells[0].textContent);
  const heading = (column) => page.querySelector(`#grid thead button[data-column="${column}"]`);
  const cell = (name) => [...page.querySelectorAll("#grid tbody tr")].find((row) => row.cells[0].textContent === name)
    .cells[1];
  said.push(names());
  for (const column of [0, 0, 0, -1]) { heading(column).click(); said.push(names()); }
  cell("b").click();
  said.push(page.getElementById("tip").textContent);
  const base = page.getElementById("base");
  base.value = [...base.options].find((one) => one.text === "differences from a").value;
  base.dispatchEvent(new Event("change"));
  said.push([cell("b").textContent, cell("a").textContent]);
  base.value = ""; base.dispatchEvent(new Event("change"));
  said.push([cell("b").querySelector(".number").textContent]);
  said.push([...page.images].map((image) => image.naturalWidth));
  document.querySelector("pre").textContent = JSON.stringify(said);
});
</script>"""


@pytest.mark.skipif(BROWSER is None, reason="no Chromium or Chrome is installed")
def test_a_browser_opens_it_sorts_it_and_asks_for_nothing_else(tmp_path: Path) -> None:
    assert BROWSER is not None
    for name, number in (("b", 7), ("c", 1), ("a", 3), (HOSTILE, 5)):
        known = {"encoder_fingerprint": f"{number:064}", "metrics": {"top1": 40.0 + number}, "toy_data": True}
        record.write(tmp_path / "records", entry(encoder=name, standard_error={"top1": 0.5}, **known))
    red = Image.new("RGB", (24, 12), (200, 0, 0))
    shown = [Thumbnail(red, "a.jpg", "result", HOSTILE), Thumbnail(red, "b.jpg", "result", "", flat=True)]
    write_pictures(tmp_path / "b/finetune-0", "mistakes", shown)
    report(tmp_path)
    (tmp_path / "clicks.html").write_text(CLICKS)
    asked: list[str] = []

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *parts: object) -> None:
            asked.append(self.path)

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_address[1]}/clicks.html"
        options = [
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--enable-logging=stderr",
            "--virtual-time-budget=4000",
        ]
        profile = f"--user-data-dir={tmp_path / 'profile'}"
        command = [BROWSER, *options, profile, "--dump-dom", address]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        server.shutdown()
    told = re.search(r"<pre>(.+?)</pre>", done.stdout, re.S)
    assert told, done.stdout[-500:] + done.stderr[-2000:]
    usual, falling, rising, again, named, tip, differences, numbers, widths = json.loads(html.unescape(told[1]))
    assert usual == ["b", "c", "a", HOSTILE] == again
    assert falling == ["b", HOSTILE, "a", "c"] and rising == falling[::-1]
    assert named[-3:] == ["a", "b", "c"]
    assert "b, FT: 47.00 ± 0.98" in tip and "records/b-finetune-" in tip and "run_all.py" in tip
    assert differences == ["+4.0± 1.4", "0"] and numbers == ["47.0"]
    assert widths == [24, 24]  # they are shown, though nothing may be loaded
    assert not [line for line in done.stderr.splitlines() if "CONSOLE" in line and "favicon" not in line], done.stderr
    assert set(asked) <= {"/clicks.html", "/report.html", "/favicon.ico"} and "/report.html" in asked


@pytest.mark.parametrize(
    ("task", "preset", "said"),
    [
        ("linear_probe", "paper", " --preset paper --tasks linear_probe"),  # without it, by the encoder's method
        ("linear_probe", "simsiam", " --set linear_probe.preset=simsiam --tasks linear_probe"),
        ("linear_probe", "demo", " --preset demo --tasks linear_probe"),
        ("finetune", "paper", " --tasks finetune"),
    ],
)
def test_the_command_of_a_cell_asks_for_its_preset(tmp_path: Path, task: str, preset: str, said: str) -> None:
    (measured,) = tables.build(tmp_path, ["mine"], [entry(task, preset=preset)]).rows[-1:]
    (told,) = (cell.entry for cell in measured.cells.values() if cell.entry)
    assert content.command(measured, task, told) == f"uv run run_all.py --ckpt mine=FILE --data-root DIR{said}"


def test_only_a_row_of_the_demo_is_measured_again_by_the_demo(tmp_path: Path) -> None:
    assert tuple(demo.TOY) == content.DEMO_ROWS
    said = {}
    for row in ("mae", "demo+same_view"):
        told = entry("knn", encoder=row, preset="demo", toy_data=True)
        (measured,) = tables.build(tmp_path, [row], [told]).rows[-1:]
        said[row] = content.command(measured, "knn", told)
    assert said["mae"] == "uv run run_all.py --tasks knn"
    assert said["demo+same_view"].endswith("demo+same_view=FILE --data-root DIR --preset demo --tasks knn")
