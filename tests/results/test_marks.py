"""Which cells carry a mark, what its footnote says, and where the published numbers stand beside them."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from results import __main__ as command
from results import marks, record, tables
from results.columns import COLUMNS
from tests.results.entries import PAPER, entry, shown

SET_COLUMNS = {"IN-A": "imagenet_a", "IN-R": "imagenet_r", "IN-Sketch": "imagenet_sketch", "IN-C": "imagenet_c"}


def made(**changes: Any) -> dict[str, Any]:
    settings = changes.pop("settings", {})
    return {
        "config": {**PAPER, **settings},
        "paper_config": PAPER,
        "immaterial": [],
        "limit": None,
        "subset": {},
        **changes,
    }


def table_of(tmp_path: Path, *entries: dict[str, Any]) -> tuple[pd.DataFrame, str]:
    for one in entries:
        record.write(tmp_path / "records", one)
    assert command.main([str(tmp_path)]) == 0
    return shown(tmp_path)


def test_the_papers_protocol_has_no_mark(tmp_path: Path) -> None:
    table, text = table_of(tmp_path, entry(), entry("robustness", rests_on={"finetune": made()}, preset="demo"))
    assert [table.loc["mine", heading] for heading in ("FT", *SET_COLUMNS)] == ["50.0"] * 5, text
    assert table.loc["SiameseIM", "FT"] == "84.1"


def test_a_footnote_names_the_setting_and_both_values(tmp_path: Path) -> None:
    short = entry(settings={"epochs": 50, "precision": "bf16"})
    assert marks.differences(short, "top1") == ["finetune: epochs 50; paper: 100 · precision bf16; paper: auto"]
    missing = entry(settings={"mixup": None}, paper_config={**PAPER, "erasing": 0.25})
    assert marks.differences(missing, "top1") == [
        "finetune: mixup none; paper: no such setting · erasing no such setting; paper: 0.25"
    ]


def test_a_shortened_fine_tuning_marks_what_is_measured_on_its_classifier(tmp_path: Path) -> None:
    short = made(settings={"epochs": 50})
    table, text = table_of(tmp_path, entry(settings={"epochs": 50}), entry("robustness", rests_on={"finetune": short}))
    assert [table.loc["mine", heading] for heading in ("FT", *SET_COLUMNS)] == ["50.0[a]"] * 5
    assert text.count("epochs 50; paper: 100") == 1, "one fact, one footnote"
    assert table.loc["MAE", "IN-A"], "the same images stand beside the published numbers"


@pytest.mark.parametrize(
    ("behind", "says", "part"),
    [
        ({}, "rests on a result of finetune that does not say how it was made", False),
        (made(limit=100), "finetune: only 100 images of each set", True),
        (made(toy_data=True), "finetune: trained on toy data", True),
        (
            made(subset={"train": "train has 9 images; published: 10"}),
            "finetune: train has 9 images; published: 10",
            True,
        ),
    ],
)
def test_whatever_is_wrong_with_the_classifier_marks_the_cells_on_it(
    behind: dict, says: str, part: bool, tmp_path: Path
) -> None:
    table, text = table_of(tmp_path, entry("linear_probe"), entry("robustness", rests_on={"finetune": behind}))
    assert says in text and all(table.loc["mine", heading] == "50.0[a]" for heading in SET_COLUMNS)
    assert table.loc["mine", "LIN"] == "50.0" and table.loc["MAE", "LIN"] == "68.0"
    assert all((table.loc["MAE", heading] == "") == part for heading in SET_COLUMNS)


def test_a_set_marks_its_own_column_alone(tmp_path: Path) -> None:
    sizes = {name: {"images": 1, "classes": 1} for name in ("val", *SET_COLUMNS.values())}
    robust = entry(
        "robustness",
        sizes=sizes,
        subset={"imagenet_r": "imagenet_r has 9 images; published: 30,000", "val": "val has 1 images"},
    )
    table, text = table_of(tmp_path, robust)
    assert [table.loc["mine", heading] for heading in SET_COLUMNS] == ["50.0", "50.0[a]", "50.0", "50.0"]
    assert [bool(table.loc["MAE", heading]) for heading in SET_COLUMNS] == [True, False, True, True]
    assert "[a] robustness: imagenet_r has 9 images; published: 30,000" in text
    assert "IN-R: no published numbers beside" in text


@pytest.mark.parametrize("change", [{"subset": {"val": "val has 40 images; published: 50,000"}}, {"limit": 40}])
@pytest.mark.parametrize("task", ["finetune", "few_shot", "detection_coco", "detection_lvis", "segmentation"])
def test_no_published_row_stands_beside_a_part_of_the_data(task: str, change: dict, tmp_path: Path) -> None:
    table, text = table_of(tmp_path, entry(task, **change))
    assert list(table.index) == ["mine"] and "the published rows are left out" in text
    assert "[a]" in text and "40 images" in text
    mixed, _ = table_of(tmp_path, entry("knn"))
    assert list(mixed.index) == ["MoCo-v3", "MAE", "SiameseIM", "mine"]
    for heading, node, _ in COLUMNS:
        assert (mixed.loc["MAE", heading] == "") == (node == task), heading


def test_settings_that_do_not_matter_mark_nothing() -> None:
    other = {"micro_batch": 32, "max_unreadable_images": 9, "precision": "fp32"}
    same = entry(settings=other, immaterial={"": ["micro_batch", "max_unreadable_images", "precision"]})
    assert marks.differences(same, "top1") == []
    own = entry("robustness", settings={"corrupted_images": 9}, immaterial={"imagenet_a": ["corrupted_images"], "": []})
    assert marks.differences(own, "imagenet_a_top1") == [] and marks.differences(own, "imagenet_c")


def test_images_that_were_left_out_mark_the_cell_and_an_unused_allowance_does_not() -> None:
    unused = entry(settings={"max_unreadable_images": 5}, unreadable_images={"val": []})
    assert marks.differences(unused, "top1") == []
    used = entry(settings={"max_unreadable_images": 5}, unreadable_images={"val": ["a.jpg", "b.jpg"]})
    assert marks.differences(used, "top1") == ["finetune: 2 images were left out of val, since unreadable; paper: none"]


def test_a_column_that_is_skipped_in_a_task_that_ran_gives_its_reason(tmp_path: Path) -> None:
    robust = entry(
        "robustness", metrics={"imagenet_a_top1": 1.0}, skipped={"imagenet_c": "imagenet_c is not under DATA"}
    )
    table, text = table_of(tmp_path, robust)
    assert [table.loc["mine", heading] for heading in SET_COLUMNS] == ["1.0", "skipped", "skipped", "skipped"]
    assert "mine, IN-C: skipped: imagenet_c is not under DATA" in text
    assert "mine, IN-R: skipped: the task with these settings measures no imagenet_r_top1" in text


def test_a_column_of_a_set_that_another_row_has_says_that_it_was_not_there() -> None:
    robust = entry("robustness", metrics={"imagenet_a_top1": 1.0}, skipped={"objectnet": "its mappings are damaged"})
    assert marks.why_skipped(robust, "objectnet_top1") == "its mappings are damaged"
    assert "its set was not there" in marks.why_skipped(robust, "imagenet_real_top1")


def test_what_rows_and_tasks_lack_for_one_reason_is_said_once(tmp_path: Path) -> None:
    failed = [
        entry(task, encoder=name, encoder_fingerprint=name, status="failed", metrics={}, reason="its file is cut short")
        for name in ("a", "b")
        for task in ("finetune", "knn")
    ]
    other = entry("knn", encoder="c", encoder_fingerprint="c", status="skipped", metrics={}, reason="no images")
    text = tables.build(tmp_path, ["a", "b", "c"], [*failed, other]).notes
    said = [note for note in text if "its file is cut short" in note or "no images" in note]
    assert said == ["a, b, finetune, knn: failed: its file is cut short", "c, knn: skipped: no images"]


def test_more_than_26_footnotes_have_names_of_their_own(tmp_path: Path) -> None:
    entries = [
        entry("knn", encoder=f"row{n}", encoder_fingerprint=f"{n}" * 8, settings={"epochs": n}) for n in range(60)
    ]
    table, text = table_of(tmp_path, *entries)
    assert len(set(table.loc[[f"row{n}" for n in range(60)], "kNN"])) == 60
    assert "\n[aa] knn: epochs 26; paper: 100" in text and "\n[bh] knn: epochs 59" in text


def test_cells_of_other_versions_are_told_apart(tmp_path: Path) -> None:
    def about(torch: str, commit: str, dirty: bool = False) -> dict[str, Any]:
        return {"versions": {"torch": torch, "timm": "1"}, "git": {"commit": commit * 10, "dirty": dirty}}

    entries = [
        entry("finetune", **about("2.12", "ab", True)),
        entry("knn", **about("2.13", "ab")),
        entry("few_shot", **about("2.13", "ab")),
    ]
    _, text = table_of(tmp_path, *entries)
    assert "measured with torch 2.12, the others with 2.13: mine FT" in text
    assert "measured with this code abababab with changes, the others with abababab: mine FT" in text
    assert "timm" not in text


def test_toy_cells_among_others_are_marked(tmp_path: Path) -> None:
    table, text = table_of(tmp_path, entry("knn", toy_data=True), entry("few_shot"))
    assert table.loc["mine", ["kNN", "1%"]].tolist() == ["50.0[a]", "50.0"]
    assert list(table.index) == ["mine"] and "measured on toy data" in text
