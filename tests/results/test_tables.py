"""Records and the tables made from them."""

import json
from types import SimpleNamespace

import pandas as pd

from evaluate import knn
from evaluate.harness.plan import NODES
from evaluate.harness.task import start
from evaluate.runtime.env import Env
from evaluate.runtime.settings import as_json
from results import __main__ as command
from results import record, tables
from tests.results.entries import shown


def entry(tmp_path, task="knn", encoder="mine", status="ok", metrics=None, **changes):
    env = Env(data_root=tmp_path, out_dir=tmp_path / encoder / task)
    identity = record.identity(
        task,
        as_json(knn.PRESETS["paper"]),
        seed=0,
        limit=None,
        encoder_fingerprint="f" * 64,
        data_fingerprint="d" * 16,
        inputs={},
    )
    (node,) = (node for node in NODES if node.name == task)
    made = start(
        identity, "paper", node, SimpleNamespace(source={}, spec=SimpleNamespace(architecture="ViT-B/16")), env
    )
    return {**made, "status": status, "metrics": metrics or {"top1": 71.26}, **changes}


def test_the_key_names_what_can_change_the_number_and_nothing_else(tmp_path):
    base = entry(tmp_path)
    for harmless in (
        {"seconds": 9.0},
        {"versions": {}},
        {"started_utc": "later"},
        {"device": "cuda"},
        {"git": {"commit": "x"}},
    ):
        assert record.key_of({**base, **harmless}) == record.key_of(base)
    for telling in (
        {"seed": 1},
        {"limit": 5},
        {"encoder_fingerprint": "e"},
        {"data_fingerprint": "e"},
        {"config": {}},
        {"inputs": {"classifier": "c"}},
    ):
        assert record.key_of({**base, **telling}) != record.key_of(base)


def test_an_ok_record_is_never_written_again_and_a_failed_one_is(tmp_path):
    folder = tmp_path / "records"
    failed = entry(tmp_path, status="failed", reason="no")
    path = record.write(folder, failed)
    assert record.find(folder, "mine", failed) is None
    record.write(folder, {**failed, "status": "ok"})
    assert record.find(folder, "mine", failed)["status"] == "ok"
    record.write(folder, {**failed, "metrics": {"top1": 0.0}})
    assert json.loads(path.read_text())["metrics"] == {"top1": 71.26}
    assert [file.name for file in folder.iterdir()] == [path.name]


def test_a_table_beside_the_published_rows_marks_what_is_not_the_papers_protocol(tmp_path):
    entries = [entry(tmp_path), entry(tmp_path, task="few_shot", metrics={"top1": 50.0}, limit=10)]
    text = tables.render(tmp_path, ["mine"], entries)
    assert "| SiameseIM" in text and "71.3" in text
    assert "50.0[" in text and "only 10 images" in text
    frame = pd.read_csv(tmp_path / "table.csv", index_col=0)
    assert set(map(str, frame.dtypes)) == {"float64"}, "a spreadsheet and pandas read numbers"
    assert frame.loc["mine", "kNN"] == 71.26 and frame.loc["MAE", "LIN"] == 68.0
    tidy = pd.read_csv(tmp_path / "results.csv")
    (limited,) = tidy[(tidy["row"] == "mine") & (tidy["column"] == "1%")].to_dict("records")
    assert (limited["value"], limited["kind"], limited["protocol"]) == (50.0, "measured", "one_logreg")
    assert "only 10 images" in limited["marks"] and limited["source"].startswith("records/mine-few_shot-")
    assert json.loads((tmp_path / "table.json").read_text())["numbers"][0]["row"] == "MoCo-v3"


def test_an_estimate_marks_its_own_cell_alone(tmp_path):
    metrics = {"imagenet_a_top1": 40.0, "imagenet_c": 57.0}
    made = entry(
        tmp_path, task="robustness", metrics=metrics, protocol={"estimates": {"imagenet_c": "IN-C is an estimate"}}
    )
    cells = tables.build(tmp_path, ["mine"], [made]).rows[-1].cells
    assert cells["IN-C"].marks == (*cells["IN-A"].marks, "IN-C is an estimate") and len(cells["IN-C"].marks) == 2


def test_toy_records_never_meet_published_numbers(tmp_path):
    text = tables.render(tmp_path, ["mine"], [entry(tmp_path, toy_data=True)])
    assert "Toy data" in text and "SiameseIM |" not in text and "84.1" not in text
    assert list(pd.read_csv(tmp_path / "table.csv")["encoder"]) == ["mine"]


def test_what_was_not_measured_says_so(tmp_path):
    entries = [
        entry(tmp_path, task="knn", status="skipped", metrics={"x": 0}, reason="no data"),
        entry(tmp_path, task="finetune", status="failed", metrics={"x": 0}, reason="broke"),
    ]
    text = tables.render(tmp_path, ["mine"], entries)
    frame, _ = shown(tmp_path)
    assert frame.loc["mine", ["kNN", "FT", "LIN"]].tolist() == ["skipped", "failed", "–"]
    assert "no data" in text and "broke" in text
    command = "uv run run_all.py --ckpt mine=FILE --data-root DIR"
    assert "LIN, 1%" in text and f"{command} --out OUT --tasks linear_probe,few" in text
    text = tables.render(tmp_path, ["mine"], [{**one, "limit": 40} for one in entries])
    assert f"{command} --limit 40 --out OUT --tasks" in text, "of all images it would be another number"
    text = tables.render(tmp_path, ["mine"], [{**one, "preset": "demo"} for one in entries])
    assert "--data-root DIR --preset demo --out OUT --tasks linear_probe,few" in text, (
        "the paper's would be another protocol"
    )


def test_a_table_that_cannot_be_written_is_named_and_the_others_are(tmp_path, capsys):
    record.write(tmp_path / "records", entry(tmp_path))
    for name in ("table.csv", "table.md"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine").touch()
    (tmp_path / "table.tex").symlink_to("nowhere")
    assert command.main([str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "71.3" in printed and printed.count("could not be written") == 2
    assert "table.md could not be written" in printed
    assert "71.3" in (tmp_path / "table.html").read_text() and "71.3" in (tmp_path / "table.tex").read_text()


def test_a_broken_record_is_named(tmp_path, capsys):
    (tmp_path / "records").mkdir()
    (tmp_path / "records" / "x.json").write_text("{")
    assert command.main([str(tmp_path)]) == 2
    assert "x.json is not a record" in capsys.readouterr().err


def test_a_further_column_is_shown_where_a_record_has_its_number(tmp_path):
    def made(*entries):
        tables.render(tmp_path, [own["encoder"] for own in entries], list(entries))
        return shown(tmp_path)

    first = entry(tmp_path, "robustness", metrics={"imagenet_a_top1": 40.0})
    table, _ = made(first)
    assert "IN-A" in table.columns and not {"IN-V2", "ReaL", "ObjectNet"} & set(table.columns)
    other = entry(tmp_path, "robustness", "other", metrics={"imagenet_a_top1": 40.0, "objectnet_top1": 20.0})
    table, notes = made(first, other)
    assert table.loc["other", "ObjectNet"].startswith("20.0") and not {"IN-V2", "ReaL"} & set(table.columns)
    assert "ReaL" not in notes
