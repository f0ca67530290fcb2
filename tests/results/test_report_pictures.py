"""The report's pictures: the files that the tasks left, within a bound, and nothing that is no picture."""

import base64
import html
import io
import json
import re
import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from evaluate.data import thumbnails
from evaluate.data.thumbnails import Thumbnail
from results import record, tables
from results.report import pictures
from tests.results.entries import entry

HOSTILE = "\"><script>alert(1)<!--'{{ 7 * 7 }}"


def row(out: Path, name: str, task: str = "knn", **changes: Any) -> Path:
    """The folder of a task that has been measured."""
    known = {"encoder": name, "encoder_fingerprint": name.encode().hex()[:64].ljust(64, "0"), "toy_data": True}
    record.write(out / "records", entry(task, **{**known, "work": f"{name[:5].strip('/')}/{task}", **changes}))
    folder = out / changes.get("work", f"{name[:5].strip('/')}/{task}")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def photograph(number: int, size: int = 8) -> Image.Image:
    return Image.effect_noise((size, size), 60 + number).convert("RGB")


def drawn(folder: Path, given: list[Image.Image], kind: str = "neighbors", caption: str = "") -> None:
    found = []
    for number, image in enumerate(given):
        result = Image.new("RGB", (8, 8), (50 * number, sum(map(ord, folder.parent.name)) % 256, 3))
        found += [
            Thumbnail(image, f"image {number}", "image", ""),
            Thumbnail(result, f"image {number}", "result", caption),
        ]
    thumbnails.write(folder, kind, found, {"sky <b>": (0, 128, 255)})


def report(out: Path) -> str:
    entries, problems = record.read(out / "records")
    names = list(dict.fromkeys(one["encoder"] for one in entries))
    tables.write(out, tables.build(out, names, entries, problems), ["report"])
    return (out / "report.html").read_text()


def lines(text: str) -> list[tuple[str, list[bytes]]]:
    """Of each line of the section its label and the files in it."""
    (section,) = re.findall(r'<section id="pictures">.*?</section>', text, re.S)
    found = re.findall(r'<h3>(.*?)</h3>\s*<div class="line">(.*?)</div>', section, re.S)
    return [
        (html.unescape(label), [base64.b64decode(one) for one in re.findall(r'src="data:image/\w+;base64,(.*?)"', own)])
        for label, own in found
    ]


def files(folder: Path, part: str, kind: str = "neighbors") -> list[bytes]:
    index = json.loads((folder / f"pictures/{kind}.json").read_text())["pictures"]
    return [(folder / "pictures" / one["file"]).read_bytes() for one in index if one["part"] == part]


def test_the_page_has_the_files_and_what_rows_share_once(tmp_path: Path) -> None:
    shared, other = [photograph(1), photograph(2)], [photograph(3)]
    folders = {name: row(tmp_path, name) for name in ("one", "two", "three", "four")}
    for name, given in (("one", shared), ("two", shared), ("three", other)):
        drawn(folders[name], given)
    drawn(row(tmp_path, "one", "detection_coco"), shared, "detections")
    text = report(tmp_path)
    found = lines(text)
    assert [label for label, _ in found] == ["image", "one", "image", "one", "two", "image", "three"]
    assert found[:2] == [
        ("image", files(tmp_path / "one/detection_coco", "image", "detections")),
        ("one", files(tmp_path / "one/detection_coco", "result", "detections")),
    ]
    assert found[2] == ("image", files(folders["one"], "image")) and found[3][1] == files(folders["one"], "result")
    assert found[3][1] != found[4][1]
    assert found[4][1] == files(folders["two"], "result") and found[5] == ("image", files(folders["three"], "image"))
    assert "Without pictures: four." in text and text.index("detection coco: what is found") < text.index(
        "knn: nearest"
    )
    assert '<span class="key" style="--own:#0080ff">sky &lt;b&gt;</span>' in text


def test_captions_and_names_are_no_markup(tmp_path: Path) -> None:
    row(tmp_path, HOSTILE, work="a/knn")
    drawn(tmp_path / "a/knn", [photograph(1)], caption=HOSTILE)
    index = tmp_path / "a/knn/pictures/neighbors.json"
    content = json.loads(index.read_text())
    content["pictures"][0]["subject"] = HOSTILE
    content["legend"] += [["red", "#ff0000;background:url(//x)"], ["blue", 3], "green"]
    index.write_text(json.dumps(content))
    text = report(tmp_path)
    assert len(lines(text)) == 2 and text.count("<script") == 2
    (section,) = re.findall(r'<section id="pictures">.*?</section>', text, re.S)
    assert "<script" not in section and "7 * 7" in section and "alert(1)" in section and "url(" not in section
    assert not re.search(r"<img(?! src=\"data:image/(jpeg|png);base64,)", section)


@pytest.mark.parametrize(
    "damage",
    [
        {"file": "../../../records/a.json"},
        {"file": "neighbors-00.svg"},
        {"file": None},
        {"file": "neighbors-77.jpg"},
        {"content": b"<svg onload='alert(1)'/>"},
        {"content": b"\xff\xd8\xff" + bytes(70_000)},
    ],
)
def test_what_is_no_picture_is_left_out(tmp_path: Path, damage: dict[str, Any]) -> None:
    folder = row(tmp_path, "one")
    drawn(folder, [photograph(1), photograph(2)])
    if "content" in damage:
        (folder / "pictures/neighbors-00.jpg").write_bytes(damage["content"])
    else:
        index = folder / "pictures/neighbors.json"
        content = json.loads(index.read_text())
        content["pictures"][0] |= damage
        index.write_text(json.dumps(content))
    assert [len(own) for _, own in lines(report(tmp_path))] == [1, 2]


@pytest.mark.parametrize("text", ["", "[]", "{", '{"pictures": 3}', '{"pictures": [3], "legend": 4}', "[" * 50_000])
def test_a_damaged_index_is_passed_over(tmp_path: Path, text: str) -> None:
    folder = row(tmp_path, "one")
    drawn(folder, [photograph(1)])
    (folder / "pictures/neighbors.json").write_text(text)
    assert 'id="pictures"' not in report(tmp_path)


def test_ten_rows_stay_below_the_bound_and_say_what_is_left_out(tmp_path: Path) -> None:
    """Every picture as large as it may be."""
    buffer = io.BytesIO()
    Image.effect_noise((240, 240), 200).convert("RGB").save(buffer, "JPEG", quality=50)
    content = buffer.getvalue() + bytes(pictures.LARGEST_FILE - len(buffer.getvalue()))
    assert len(content) == pictures.LARGEST_FILE
    for name in "abcdefghij":
        for task, kind in (("knn", "patches"), ("detection_coco", "detections"), ("finetune", "mistakes")):
            folder = row(tmp_path, name, task)
            drawn(folder, [photograph(one) for one in range(12)], kind)
            for path in (folder / "pictures").glob("*.jpg"):
                path.write_bytes(content)
    begun = time.process_time()
    text = report(tmp_path)
    assert time.process_time() - begun < 10 and len(text) < 20e6
    (told,) = re.findall(r"the first (\d+) pictures of each line are shown; all lie in the tasks", text)
    shown = lines(text)
    assert {len(own) for _, own in shown} == {int(told)} and 0 < int(told) < 12
    more = sum(len(own[0]) for _, own in shown) * 4 / 3  # one picture more in each line would not fit
    assert len(text) + more > min(pictures.BYTES, 8 * pictures.BYTES_OF_ROW)


def test_three_rows_stay_below_5_megabytes(tmp_path: Path) -> None:
    for name in "abc":
        for task, kind in (("knn", "patches"), ("detection_coco", "detections")):
            drawn(row(tmp_path, name, task), [photograph(one, 240) for one in range(12)], kind)
    assert len(report(tmp_path)) < 5e6


def test_of_200_epochs_the_last_ones_pictures_are_shown(tmp_path: Path) -> None:
    """A run that is not at its end: two epochs have failed, and the newest has no detections yet."""
    for epoch in range(4, 804, 4):
        ended = {"status": "failed", "reason": "memory is too small", "metrics": {}} if epoch in (80, 84) else {}
        row(tmp_path, f"run-{epoch}", work=f"run-{epoch}/knn", **ended)
        if epoch in (796, 800):
            drawn(tmp_path / f"run-{epoch}/knn", [photograph(epoch)])
    begun = time.process_time()
    text = report(tmp_path)
    assert time.process_time() - begun < 10 and len(text) < 5e6
    assert [label for label, _ in lines(text)] == ["image", "run-800"]
    assert lines(text)[1][1] == files(tmp_path / "run-800/knn", "result")
    assert "Of several epochs of a run, the last is drawn." in text
    assert "memory is too small" in text and "run-80, run-84" in text and "there is no record of it yet" in text
