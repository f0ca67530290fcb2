"""A row is of one encoder, and says which; of several measurements the right one is shown, and the others are named."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from results import __main__ as command
from results import record, tables
from tests.results.entries import entry, shown


def table_of(tmp_path: Path, *entries: dict[str, Any], options: tuple[str, ...] = ()) -> tuple[pd.DataFrame, str]:
    for one in entries:
        record.write(tmp_path / "records", one)
    assert command.main([str(tmp_path), *options]) == 0
    return shown(tmp_path)


def of(fingerprint: str, task: str, **changes: Any) -> dict[str, Any]:
    return entry(task, encoder_fingerprint=fingerprint * 16, **changes)


def test_two_encoders_of_one_name_are_two_rows(tmp_path: Path) -> None:
    table, _ = table_of(
        tmp_path, of("aaaa", "knn", metrics={"top1": 1.0}), of("bbbb", "few_shot", metrics={"top1": 2.0})
    )
    assert list(table.index[-2:]) == ["mine (aaaaaaaa)", "mine (bbbbbbbb)"]
    assert table.loc["mine (aaaaaaaa)", ["kNN", "1%"]].tolist() == ["1.0", "–"]
    assert table.loc["mine (bbbbbbbb)", ["kNN", "1%"]].tolist() == ["–", "2.0"]
    one, _ = table_of(tmp_path, options=("--rows", "mine (bbbbbbbb)"))
    assert list(one.index[3:]) == ["mine (bbbbbbbb)"]
    both, _ = table_of(tmp_path, options=("--rows", "mine", "absent"))
    assert list(both.index[3:]) == ["mine (aaaaaaaa)", "mine (bbbbbbbb)", "absent"]


@pytest.mark.parametrize(
    ("sources", "labels"),
    [
        ([{"branch": "online"}, {"branch": "target"}], ["mine (online)", "mine (target)"]),
        ([{"branch": "online", "epoch": 3}, {"branch": "online", "epoch": 4}], ["mine (epoch 3)", "mine (epoch 4)"]),
        ([{"branch": "online", "epoch": 3}, {"branch": "online", "epoch": 3}], ["mine (aaaaaaaa)", "mine (bbbbbbbb)"]),
        ([{"branch": "online"}, {}], ["mine (aaaaaaaa)", "mine (bbbbbbbb)"]),
    ],
)
def test_what_tells_them_apart(sources: list[dict], labels: list[str], tmp_path: Path) -> None:
    entries = [of(sign, "knn", encoder_source=source) for sign, source in zip(("aaaa", "bbbb"), sources, strict=True)]
    assert list(table_of(tmp_path, *entries)[0].index[3:]) == labels


def test_nobody_takes_a_label_by_calling_an_encoder_so(tmp_path: Path) -> None:
    entries = [
        of("aaaa", "knn"),
        of("bbbb", "knn"),
        of("cccc", "knn", encoder="mine (aaaaaaaa)", metrics={"top1": 3.0}),
    ]
    table, _ = table_of(tmp_path, *entries)
    assert len(table) == 6 and table.loc["mine (aaaaaaaa)", "kNN"] == "3.0"


def test_an_encoder_called_like_a_published_row_is_told_from_it(tmp_path: Path) -> None:
    table, _ = table_of(tmp_path, of("aaaa", "knn", encoder="MAE"))
    assert list(table.index) == ["MoCo-v3", "MAE (published)", "SiameseIM", "MAE"]
    assert table.loc["MAE (published)", "FT"] == "83.6" and table.loc["MAE", "kNN"] == "50.0"


def test_a_failure_before_there_was_an_encoder_goes_to_its_own_row(tmp_path: Path) -> None:
    first, second = of("aaaa", "knn", work="mine/knn-0"), of("bbbb", "knn", work="mine-2/knn-0")
    known = {**record.without_run("mine", "few_shot", "failed", "broke", 0, None), "folder": "mine-2"}
    table, text = table_of(tmp_path, first, second, known)
    assert table["1%"].tolist()[3:] == ["–", "failed"] and "mine (bbbbbbbb), few_shot: failed: broke" in text
    other = {**record.without_run("mine", "finetune", "failed", "no encoder", 0, None), "folder": "mine-3"}
    table, _ = table_of(tmp_path, other)
    assert list(table.index[3:]) == ["mine (aaaaaaaa)", "mine (bbbbbbbb)", "mine (no encoder)"]


def test_all_images_come_before_a_later_limit_and_the_others_are_named(tmp_path: Path) -> None:
    late = {"started_utc": "2027-01-01T00:00:00+00:00"}
    table, text = table_of(tmp_path, of("aaaa", "knn"), of("aaaa", "knn", limit=9, metrics={"top1": 1.0}, **late))
    assert table.loc["mine", "kNN"] == "50.0" and "mine, knn: also measured, and not shown: limit 9" in text
    table, text = table_of(tmp_path, of("aaaa", "knn", settings={"epochs": 7}, metrics={"top1": 2.0}, **late))
    assert table.loc["mine", "kNN"] == "50.0" and "limit 9; epochs 7" in text, "the paper's settings come first"
    table, text = table_of(tmp_path, of("aaaa", "knn", data_fingerprint="other", metrics={"top1": 3.0}, **late))
    assert table.loc["mine", "kNN"] == "3.0" and "other data" in text


def test_pairs_are_of_the_same_images_and_a_damaged_file_ends_nothing(tmp_path: Path) -> None:
    entries = [
        of(sign, "knn", encoder=name, work=f"{name}/knn-0", metrics={"top1": 75.0})
        for sign, name in (("aaaa", "first"), ("bbbb", "second"))
    ]
    for one in entries:
        (tmp_path / one["work"]).mkdir(parents=True)
        np.savez(tmp_path / one["work"] / "predictions.npz", correct=np.array([True, False, True, True]))
    assert tables.paired(tmp_path, entries, "first", "second").startswith(
        "kNN: first and second cannot be told apart: +0.0 points, 95 % interval ["
    )
    assert tables.paired(tmp_path, [entries[0], {**entries[1], "data_fingerprint": "other"}], "first", "second") == ""
    for content in (b"", b"PK\x03\x04", (tmp_path / "first/knn-0/predictions.npz").read_bytes()[:80], b"\x80\x04N."):
        (tmp_path / "second/knn-0/predictions.npz").write_bytes(content)
        assert tables.paired(tmp_path, entries, "first", "second") == ""
