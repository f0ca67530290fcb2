"""Columns of labelled sets besides ImageNet, from the command line to the table."""

import html
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score

import run_all
from evaluate.classification import metrics, neighbors, probe
from evaluate.data import sets
from evaluate.harness import plan, task
from results import columns, marks, record, tables
from results.predictions import Answers
from tests.factories import mae_state
from tests.labelled import write_everywhere, write_several

SOURCES = ("folders", "lists", "shards")
SHORT = {"epochs": "2", "warmup_epochs": "1", "batch_size": "16", "micro_batch": "16"}
SMALL = {"img_size": "32", "resize": "32"}
SETTINGS = {
    "knn": SMALL,
    "linear_probe": SMALL | SHORT,
    "few_shot": SMALL | {"shots": "3", "seeds": "2"},
    "finetune": SMALL | SHORT,
}
KINDS = {module: kind for kind, (module, *_) in plan.OF_SETS.items()}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_everywhere(tmp_path_factory.mktemp("labelled"))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoint") / "mine.pth"
    torch.save({"model": mae_state()}, path)
    return path


def measure(module: str, images: str, checkpoint: Path, root: Path, out: Path, *more: str) -> int:
    line = ["--ckpt", str(checkpoint), "--data-root", str(root), "--out", str(out), "--images", images, *more]
    line += [part for name, value in SETTINGS[module].items() for part in ("--set", f"{name}={value}")]
    return task.main(module, [*line, "--device", "cpu"])


@pytest.fixture(scope="module")
def measured(root: Path, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("out")
    for source in SOURCES:
        for module in SETTINGS:
            assert measure(module, f"{root / 'sets.toml'}:{source}", checkpoint, root, out) == 0
    return out


@pytest.mark.parametrize("module", SETTINGS)
def test_folders_lists_and_shards_give_the_same_numbers(module: str, measured: Path) -> None:
    entries = {entry["task"]: entry for entry in record.read_all(measured / "records")}
    own = [entries[f"{source}.{KINDS[module]}"] for source in SOURCES]
    assert own[0]["metrics"] == own[1]["metrics"] == own[2]["metrics"] and own[0]["metrics"]["top1"] > 25
    assert len({entry["data_fingerprint"] for entry in own}) == 3
    assert own[0]["images_evaluated"]["val"] == 20 and own[0]["subset"] == {}
    if module == "few_shot":
        assert own[0]["metrics"]["mean_per_class_deviation"] == pytest.approx(own[0]["metrics"]["top1_deviation"])
    assert own[0]["metrics"]["mean_per_class"] == pytest.approx(own[0]["metrics"]["top1"])  # classes of one size


def test_the_columns_stand_in_every_table_and_in_the_report(measured: Path) -> None:
    entries = record.read_all(measured / "records")
    text = tables.render(measured, ["mine"], entries)
    for heading in ("Four LIN", "Four kNN", "Four few-shot", "Four FT", "lists kNN", "shards LIN"):
        assert heading in text
    assert "COCO" not in text, "columns that nobody asked for"
    for file, word in (("table.tex", "lists"), ("table.csv", "Four kNN"), ("report.html", "Four")):
        assert word in (measured / file).read_text()
    assert r"\multicolumn{4}{c}{Four}" in (measured / "table.tex").read_text()
    found = re.findall(r"uv run run_all.py --ckpt mine=FILE[^\"\\]*", (measured / "report.html").read_text())
    (line,) = {html.unescape(text) for text in found if "--tasks lists.linear " in text}
    toml = next(entry for entry in entries if entry["task"] == "lists.linear")["column"]["sets"]
    assert line.startswith(f"uv run run_all.py --ckpt mine=FILE --sets {toml} --tasks lists.linear --set lists.linear.")
    assert "--set lists.linear.epochs=2" in line and "--data-root" not in line
    card = (measured / "model_card.md").read_text()
    assert '"dataset": {"name": "Four", "type": "four"}' in card
    names = [heading for heading, *_ in columns.of_records(entries)]
    assert len(names) == 12 and [name.split()[0] for name in names] == sorted(
        (name.split()[0] for name in names), key=[name.split()[0] for name in names].index
    )


def test_a_limit_and_an_image_in_both_mark_the_cell(checkpoint: Path, tmp_path: Path, capsys) -> None:
    root = write_everywhere(tmp_path / "data", train=4, val=2)
    (root / "val/ant/003.png").write_bytes((root / "train/ant/003.png").read_bytes())
    assert measure("knn", f"{root / 'sets.toml'}:folders", checkpoint, root, tmp_path / "out") == 0
    assert "folders: 1 images of val are in train too" in capsys.readouterr().err
    (entry,) = record.read_all(tmp_path / "out/records")
    assert any("in train too" in mark for mark in marks.differences(entry, "top1"))
    assert measure("knn", f"{root / 'sets.toml'}:lists", checkpoint, root, tmp_path / "out", "--limit", "4") == 0
    entry = next(entry for entry in record.read_all(tmp_path / "out/records") if entry["limit"])
    found = marks.differences(entry, "top1")
    assert "lists.knn: only 4 images of each set (--limit); default: all" in found
    assert "lists.knn: img_size 32; default: 224 · resize 32; default: 256" in found
    assert not any("in train too" in mark for mark in marks.differences(entry, "top1"))


def test_the_plan_prices_each_column(root: Path, checkpoint: Path, tmp_path: Path, capsys) -> None:
    line = ["--ckpt", f"mine={checkpoint}", "--sets", str(root / "sets.toml"), "--out", str(tmp_path / "out")]
    assert run_all.main([*line, "--dry-run", "--gpus", "1"]) == 0
    printed = capsys.readouterr().out
    rows = {words[0]: words for words in map(str.split, printed.splitlines()) if words and "/" in words[0]}
    assert set(rows) == {f"mine/{source}.{kind}" for source in SOURCES for kind in plan.OF_SETS}
    assert rows["mine/folders.knn"][1] == "68" and rows["mine/lists.finetune"][1] == "4,820"
    assert rows["mine/shards.linear"][1] == "68" and float(rows["mine/shards.linear"][5]) > 0.1
    assert not (tmp_path / "out").exists()
    assert run_all.main([*line, "--dry-run", "--tasks", "lists,shards.knn"]) == 0
    printed = capsys.readouterr().out
    assert "mine/lists.few_shot" in printed and "mine/shards.knn" in printed and "mine/shards.linear" not in printed
    assert "mine/detection_coco" not in printed
    own = plan.of_sets(sets.choose([str(root / "sets.toml")], None))
    assert plan.choose(["all"], own) == (*plan.choose([]), *own) and plan.choose([], own) == own
    assert [node.name for node in plan.choose(["knn"], own)] == ["knn", "folders.knn", "lists.knn", "shards.knn"]


def test_a_setting_of_a_set_is_for_all_its_tasks(root: Path) -> None:
    own = plan.of_sets(sets.choose([f"{root / 'sets.toml'}:{name}" for name in ("folders", "lists")], None))
    given = {"folders": {"img_size": "32"}, "knn": {"img_size": "48"}, "folders.few_shot": {"img_size": "64"}}
    sizes = {name: config.img_size for name, (_, config) in plan.configure(own, None, given).items()}
    assert (sizes["folders.knn"], sizes["folders.linear"], sizes["folders.few_shot"]) == (32, 32, 64)
    assert (sizes["lists.knn"], sizes["lists.linear"]) == (48, 224)
    presets = {name: preset for name, (preset, _) in plan.configure(own, None, {}).items()}
    assert presets["lists.knn"] == "paper" and presets["lists.finetune"] == "small_set"


def test_slurm_jobs_know_the_sets(root: Path, checkpoint: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(root)
    line = ["--ckpt", f"mine={checkpoint}", "--sets", "sets.toml", "--tasks", "folders", "--out", str(tmp_path / "out")]
    line += ["--launch", "slurm", "--slurm", "partition=a,time=1:00:00", "--set", "folders.linear.epochs=30"]
    assert run_all.main([*line, "--dry-run"]) == 0
    commands = [line for line in capsys.readouterr().out.splitlines() if "run_all.py" in line]
    assert len(commands) > 4 and all(f"--sets {root}/sets.toml " in line for line in commands)
    assert all(f"--data-root={root} " in line for line in commands)
    assert any("--tasks=folders.linear " in line and "--set=folders.linear.epochs=30" in line for line in commands)


def test_a_set_that_is_absent_is_skipped_in_its_column(checkpoint: Path, tmp_path: Path, capsys) -> None:
    assert measure("knn", "cifar10", checkpoint, tmp_path, tmp_path / "out") == 3
    (entry,) = record.read_all(tmp_path / "out/records")
    text = tables.render(tmp_path / "out", ["mine"], [entry])
    assert "CIFAR-10 kNN" in text and "skipped: CIFAR-10 is not under" in text


def test_what_does_not_go_with_sets(root: Path, checkpoint: Path, tmp_path: Path, capsys) -> None:
    toml = str(root / "sets.toml")
    assert run_all.main(["--sets", toml, "--out", str(tmp_path)]) == 2
    assert "--sets goes with --ckpt" in capsys.readouterr().err
    assert run_all.main(["--ckpt", str(checkpoint), "--sets", "cifar10", "--out", str(tmp_path)]) == 2
    assert "cifar10 lies below the data root; give --data-root" in capsys.readouterr().err
    assert run_all.main(["--ckpt", str(checkpoint), "--sets", toml, "--tasks", "nothing", "--dry-run"]) == 2
    assert "there is no task 'nothing'" in capsys.readouterr().err
    assert measure("knn", toml, checkpoint, root, tmp_path / "out") == 2
    assert "name one: FILE.toml:NAME" in capsys.readouterr().err
    for val, says in (("gone.csv", "the list .*gone.csv is not there"), ("gone", "gone is not there, or is none of")):
        (tmp_path / "gone.toml").write_text(f'[one]\ntrain = "{root}/train"\nval = "{val}"\n')
        line = ["--ckpt", str(checkpoint), "--sets", str(tmp_path / "gone.toml"), "--out", str(tmp_path / "not made")]
        assert run_all.main(line) == 2 and re.search(says, capsys.readouterr().err)
        assert not (tmp_path / "not made").exists()
    (tmp_path / "one.toml").write_text(f'[one]\ntrain = "{root}/train"\nval = "{root}/val"\ntask = "knn"\n')
    assert measure("linear_probe", str(tmp_path / "one.toml"), checkpoint, root, tmp_path / "out") == 2
    assert "linear_probe is not measured on one, but knn (task linear in its file)" in capsys.readouterr().err


def test_the_data_are_checked(root: Path, tmp_path: Path, capsys) -> None:
    line = ["--check-data", "--sets", str(root / "sets.toml")]
    assert run_all.main(line) == 0
    assert "lists: ok: train 48 images (48 read), val 20 images (20 read), 4 classes" in capsys.readouterr().out
    assert run_all.main(["--check-data", "--sets", "cifar10", "--data-root", str(root)]) == 3
    assert "CIFAR-10 is not under" in capsys.readouterr().out


def test_average_precision_is_scikit_learns() -> None:
    rng = np.random.default_rng(0)
    scores, marked = rng.integers(0, 9, (200, 7)) / 8, rng.random((200, 7)) < [0.02, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99]
    marked[0] = True  # each class has an image
    found = metrics.average_precision(scores, marked)
    assert found.mean() == pytest.approx(average_precision_score(marked, scores, average="macro"), abs=1e-12)
    marked[:, 0] = False
    assert np.isnan(metrics.average_precision(scores, marked)[0])


@pytest.mark.parametrize("module", ["knn", "linear_probe"])
def test_several_labels_are_scored_as_scikit_learn_does(
    module: str, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = []
    own = metrics.average_precision
    monkeypatch.setattr(metrics, "average_precision", lambda *given: kept.append(given) or own(*given))
    root = write_several(tmp_path / "data")
    assert measure(module, str(root / "several.toml"), checkpoint, root, tmp_path / "out") == 0
    (entry,) = record.read_all(tmp_path / "out/records")
    ((scores, marked),) = kept
    _, val = sets.choose([str(root / "several.toml")], None)[0].read()
    assert np.array_equal(marked, val.several) and scores.shape == (12, 3)
    expected = 100 * average_precision_score(marked, scores, average="macro")
    assert entry["metrics"] == {"map": pytest.approx(expected, abs=1e-9)} and expected > 50
    assert set(entry["protocol"]["average_precision"]) == {"blue", "green", "red"}
    assert f"colors {'kNN' if module == 'knn' else 'LIN'}" in tables.render(tmp_path / "out", ["mine"], [entry])


def test_the_mean_over_classes_weighs_each_class_alike() -> None:
    labels, top = np.array([0, 0, 0, 2]), np.array([[0], [0], [1], [1]])
    value, outcome = metrics.mean_per_class(Answers(labels, top, np.ones((4, 1)), np.empty(0, int)))
    assert value == pytest.approx(100 * (2 / 3 + 0) / 2) and 100 * outcome.mean() == pytest.approx(value)


def test_a_table_names_the_sets_of_what_was_not_run(measured: Path) -> None:
    entries = [entry for entry in record.read_all(measured / "records") if entry["task"] != "lists.knn"]
    other = json.loads(
        json.dumps(next(entry for entry in record.read_all(measured / "records") if entry["task"] == "lists.knn"))
    )
    other |= {"encoder": "other", "encoder_fingerprint": "other"}
    notes = "\n".join(tables.build(measured, ["mine", "other"], [*entries, other]).notes)
    assert f"--sets {other['column']['sets']} --out OUT --tasks lists.knn" in notes


def test_shares_of_votes_are_those_of_single_labels() -> None:
    generator = torch.Generator().manual_seed(0)
    train, test = (torch.nn.functional.normalize(torch.randn(n, 8, generator=generator), dim=1) for n in (40, 9))
    labels = torch.arange(40) % 4
    marked = torch.nn.functional.one_hot(labels).bool()
    shares = neighbors.shares_of_votes(train, marked, test, 10, 0.07)
    top, expected = neighbors.classify(train, labels, test, (10,), 0.07)[10]
    assert torch.allclose(shares.gather(1, top), expected.double(), atol=1e-3) and torch.allclose(
        shares.sum(1), torch.ones(9).double()
    )


def test_each_of_several_labels_has_a_cross_entropy_of_its_own() -> None:
    logits, labels = torch.randn(5, 3, generator=torch.Generator().manual_seed(0)), torch.eye(5, 3)
    own = -(labels * logits.sigmoid().log() + (1 - labels) * (1 - logits.sigmoid()).log()).sum()
    assert torch.allclose(probe.loss_of(logits, labels), own)
