"""The report's numbers by class, curves of precision and confusions are the files'; a damaged file is left out."""

import csv
import html
import re
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from results import predictions, record, tables
from tests.results.entries import entry

HOSTILE = "<script>alert(1)<!--&lt;\"'{{ 7 * 7 }}"
NAMES = ("cat", HOSTILE, "dog, small", "never")
RECALL = np.linspace(0, 1, 101)


def write(out: Path, task: str, row: str, number: int, **changes: Any) -> Path:
    """A record, and the folder that its task left."""
    known = {"encoder": row, "encoder_fingerprint": f"{number:064}", "work": f"row{number}/{task}", **changes}
    record.write(out / "records", entry(task, **known))
    (out / f"row{number}/{task}").mkdir(parents=True, exist_ok=True)
    return out / f"row{number}/{task}"


def write_classes(path: Path, columns: dict[str, list[Any]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))


def report(out: Path) -> str:
    entries, problems = record.read(out / "records")
    names = list(dict.fromkeys(one["encoder"] for one in entries))
    tables.write(out, tables.build(out, names, entries, problems), ["report"])
    return (out / "report.html").read_text()


def section(text: str) -> str:
    (found,) = re.findall(r'<section id="classes">.*?</section>', text, re.S)
    return found


def lines_of(table: str) -> list[list[str]]:
    """The cells of each line of a table's body: the unrounded number where there is one, else the text."""
    body = table.partition("<tbody>")[2]
    return [
        [
            html.unescape(value or re.sub("<.*?>", "", text))
            for value, text in re.findall(r'<t[hd](?:[^>]*?data-value="([^"]*)")?[^>]*>(.*?)</t[hd]>', line, re.S)
        ]
        for line in re.findall(r"<tr>(.*?)</tr>", body, re.S)
    ]


def table(text: str, attribute: str) -> list[list[str]]:
    (found,) = re.findall(rf"<table [^>]*{re.escape(attribute)}[^>]*>.*?</table>", text, re.S)
    return lines_of(found)


def test_numbers_by_class_are_the_files_whatever_the_class_is_called(tmp_path: Path) -> None:
    box = {"one": [12.25, 1 / 3, "", 100.00000000000001], "two": [50.0, 7e-05, 99.125, ""]}
    for number, (row, values) in enumerate(box.items()):
        columns = {
            "id": [1, 2, 3, 9],
            "name": list(NAMES),
            "frequency": list("rcf") + ["f"],
            "instances": [5, 12345, 0, 1],
        }
        masks = [value if value == "" else float(value) / 2 for value in values]
        write_classes(
            write(tmp_path, "detection_lvis", row, number) / "classes.csv",
            {**columns, "box_ap": values, "mask_ap": masks},
        )
    columns = {"id": [0, 1], "name": ["sky", "tree"], "pixels": [10**12, 3], "iou": [80.5, ""], "accuracy": [1.0, ""]}
    write_classes(write(tmp_path, "segmentation", "two", 1) / "classes.csv", columns)
    text = report(tmp_path)
    shown = section(text)
    assert text.count("<script") == 2 and "alert(1)" in html.unescape(shown)
    groups = ["rare", "common", "frequent", "frequent"]
    for heading, factor in (("LVIS box", 1.0), ("LVIS mask", 0.5)):
        lines = table(shown, f'data-column="{heading}"')
        assert [line[0] for line in lines] == list(NAMES) and [line[1] for line in lines] == groups
        assert [line[2] for line in lines] == ["5", "12,345", "0", "1"]
        for place, values in enumerate(box.values()):
            told = [line[3 + place] for line in lines]
            assert told == ["–" if value == "" else repr(factor * value) for value in values]
    assert table(shown, 'data-column="ADE20k mIoU"') == [
        ["sky", "1,000,000,000,000", "–", "80.5"],
        ["tree", "3", "–", "–"],
    ]
    assert 'data-column="LVIS box rare"' not in shown, "the group is told in the table of all"


def test_precision_against_recall_is_the_file(tmp_path: Path) -> None:
    rng, files = np.random.default_rng(0), {}
    for number, row in enumerate(("one", HOSTILE)):
        curves = {
            f"{kind}{end}": np.sort(rng.random(101).round(6))[::-1]
            for kind in ("box_ap", "mask_ap")
            for end in ("", "50", "75")
        }
        np.savez(write(tmp_path, "detection_coco", row, number) / "precision_recall.npz", recall=RECALL, **curves)
        files[row] = curves
    figures = re.findall(
        r'<figure data-column="(.*?)" data-level="(.*?)">(.*?)</figure>', section(report(tmp_path)), re.S
    )
    assert len(figures) == 6
    ends = {"IoU 0.5": "50", "IoU 0.75": "75", "mean of IoU 0.5 to 0.95": ""}
    for heading, level, figure in figures:
        paths = re.findall(
            r'class="run curve s(\d)" d="([^"]+)" data-name="([^"]+)" data-x="([^"]+)" data-y="([^"]+)"', figure
        )
        assert [(series, html.unescape(name)) for series, _, name, *_ in paths] == [("0", "one"), ("1", HOSTILE)]
        for _, _, name, xs, ys in paths:
            kind = {"COCO box": "box_ap", "COCO mask": "mask_ap"}[heading]
            assert [float(x) for x in xs.split()] == RECALL.tolist()
            assert [float(y) for y in ys.split()] == files[html.unescape(name)][kind + ends[level]].tolist()


def test_confusions_are_counted_from_the_answers(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    expected = {}
    for number, row in enumerate(("one", "two")):
        labels = rng.integers(0, 4, 400)
        said = np.where(rng.random(400) < 0.4, rng.integers(0, 4, 400), labels)
        answers = predictions.Answers(labels, said[:, None], np.ones((400, 1)), labels[:0])
        predictions.save(write(tmp_path, "knn", row, number), {"top1": answers}, ("a", "b", "c", "d"), NAMES)
        counts = {(r, s): int(((labels == r) & (said == s)).sum()) for r in range(4) for s in range(4) if r != s}
        most = sorted(counts, key=lambda pair: (-counts[pair], pair))[:8]
        expected[row] = [
            [NAMES[r], NAMES[s], counts[r, s], 100 * counts[r, s] / int((labels == r).sum())] for r, s in most
        ]
    pixels = np.array([[50, 7, 0], [0, 3, 10**11], [0, 0, 0]])
    folder = write(tmp_path, "segmentation", "two", 1)
    np.savez(folder / "confusion.npz", pixels=pixels, names=np.array(["sky", "tree", "car"]))
    shown = section(report(tmp_path))
    for row, pairs in expected.items():
        told = table(shown, f'data-task="knn" data-row="{row}"')
        assert [[right, said, int(count), float(share)] for right, said, count, share in told] == [
            [right, said, count, pytest.approx(share)] for right, said, count, share in pairs
        ]
    told = table(shown, 'data-task="segmentation" data-row="two"')
    assert [line[:3] for line in told] == [["tree", "car", str(10**11)], ["sky", "tree", "7"]]
    assert float(told[1][3]) == pytest.approx(700 / 57)


def test_a_damaged_or_older_file_or_a_failed_record_is_left_out(tmp_path: Path) -> None:
    coco, knn = write(tmp_path, "detection_coco", "one", 0), write(tmp_path, "knn", "one", 0)
    segmented = write(tmp_path, "segmentation", "one", 0, status="failed", reason="broke", metrics={})
    write_classes(segmented / "classes.csv", {"id": [0], "name": ["sky"], "pixels": [1], "iou": [1.0]})
    np.savez(knn / "predictions.npz", correct=np.array([True, False]))  # an older file
    assert 'id="classes"' not in report(tmp_path)
    for content in (
        b"",
        b"\x00\xff",
        b"id,name\n1,a\n",
        b"id,name,box_ap\n1\n",
        b'id,name,box_ap\n1,"a',
        b"id,name,box_ap\n1,a,b,c\n",
    ):
        (coco / "classes.csv").write_bytes(content)
        report(tmp_path)
    (coco / "classes.csv").write_text("id,name,instances,box_ap\n1,a,many,1e999\n")
    assert table(section(report(tmp_path)), 'data-column="COCO box"') == [["a", "–", "–"]]
    (coco / "classes.csv").unlink()
    good = np.linspace(1, 0, 101)
    for arrays in (
        {"recall": RECALL},
        {"recall": RECALL, "box_ap": good[1:]},
        {"recall": RECALL, "box_ap": good + np.nan},
    ):
        np.savez(coco / "precision_recall.npz", **arrays)
        assert 'id="classes"' not in report(tmp_path)
    (coco / "precision_recall.npz").write_bytes((coco / "precision_recall.npz").read_bytes()[:300])
    labels = np.array([0, 9])  # a class that has no name
    answers = predictions.Answers(labels, labels[::-1, None], np.ones((2, 1)), labels[:0])
    predictions.save(knn, {"top1": answers}, ("a",), ("a",))
    assert 'id="classes"' not in report(tmp_path)


def test_eight_rows_of_lvis_have_a_bound(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for number in range(8):
        columns = {"id": list(range(1203)), "name": [f"a class {place}" for place in range(1203)]}
        columns |= {"frequency": ["r"] * 1203, "instances": [7] * 1203}
        columns |= {kind: (100 * rng.random(1203)).tolist() for kind in ("box_ap", "mask_ap")}
        write_classes(write(tmp_path, "detection_lvis", "abcdefgh"[number], number) / "classes.csv", columns)
    begun = time.process_time()
    text = report(tmp_path)
    size = len(text)
    assert section(text).count("data-value") == 8 * 2 * 1203
    print(f"{size:,} bytes, {time.process_time() - begun:.1f} s")
    assert size < 2.5e6 and time.process_time() - begun < 10


def test_the_files_are_named_with_what_they_are(tmp_path: Path) -> None:
    write(tmp_path, "knn", "one", 0, artifacts={"predictions.npz": "x", "odd": HOSTILE})
    write(tmp_path, "finetune", "one", 0, artifacts=[HOSTILE])
    (found,) = re.findall(r'<section id="files">.*?</section>', report(tmp_path), re.S)
    assert lines_of(found) == [["one", "knn", "row0/knn", "predictions.npz"]]
    assert "of each test image the right class" in found and "alert" not in found


@pytest.mark.parametrize(
    "changed",
    [
        {"label": np.array(["a", "b"])},
        {"top": np.array([[0.5], [0.5]])},
        {"probability": np.array([["x"], ["y"]])},
        {"names": np.array("one name")},
    ],
    ids=["labels", "top", "probability", "names"],
)
def test_answers_of_another_kind_are_left_out(changed: dict[str, np.ndarray], tmp_path: Path) -> None:
    knn, labels = write(tmp_path, "knn", "one", 0), np.array([0, 1])
    answers = predictions.Answers(labels, labels[::-1, None], np.ones((2, 1)), labels[:0])
    predictions.save(knn, {"top1": answers}, ("a", "b"), ("a", "b"))
    assert 'id="classes"' in report(tmp_path)
    np.savez(knn / "predictions.npz", **{**predictions.load(knn), **changed})
    assert 'id="classes"' not in report(tmp_path)


@pytest.mark.parametrize(
    "changed", [{"pixels": np.array([[1, -5], [2, 1]])}, {"names": np.array("one")}], ids=["negative", "names"]
)
def test_a_confusion_of_another_kind_is_left_out(changed: dict[str, np.ndarray], tmp_path: Path) -> None:
    folder = write(tmp_path, "segmentation", "one", 0)
    good = {"pixels": np.array([[1, 5], [2, 1]]), "names": np.array(["sky", "sea"])}
    np.savez(folder / "confusion.npz", **good)
    assert "sky" in section(report(tmp_path))
    np.savez(folder / "confusion.npz", **{**good, **changed})
    assert 'id="classes"' not in report(tmp_path)
