"""run_all.py as a person uses it: whole runs in processes of their own, on a small toy world."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

import run_all
from evaluate.data import toy
from pretrain import train

HERE = Path(run_all.__file__).parent
SMALL = toy.World(
    unlabelled_per_class=1,
    train_per_class=24,
    val_per_class=8,
    list_per_class=5,
    shifted_per_class=2,
    corrupted_per_class=1,
)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return toy.make(tmp_path_factory.mktemp("world"), SMALL)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, world):
    out = tmp_path_factory.mktemp("checkpoint")
    assert (
        train.main(["--preset", "demo", "--data", str(world / "imagenet/train"), "--out", str(out), "--init-only"]) == 0
    )
    return (out / "checkpoint.pth").rename(out / "mine.pth")


def command(checkpoint, world, out, *options):
    fixed = [
        "--ckpt",
        str(checkpoint),
        "--data-root",
        str(world),
        "--out",
        str(out),
        "--preset",
        "demo",
        "--device",
        "cpu",
    ]
    return [sys.executable, "run_all.py", *fixed, *options]


def run(*arguments):
    return subprocess.run(command(*arguments), cwd=HERE, capture_output=True, text=True, timeout=400)


def test_finishes_after_kill_9_with_the_table_of_an_unbroken_run_and_repeats_nothing(checkpoint, world, tmp_path):
    tasks = (
        "--tasks",
        "finetune,few_shot,knn,robustness",
        "--set",
        "finetune.epochs=3",
        "--set",
        "finetune.warmup_epochs=1",
    )
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    result = run(checkpoint, world, whole, *tasks)
    assert result.returncode == 0, result.stderr + result.stdout

    process = subprocess.Popen(
        command(checkpoint, world, broken, *tasks), cwd=HERE, stdout=subprocess.DEVNULL, start_new_session=True
    )
    deadline = time.monotonic() + 200
    while not list(broken.glob("records/*.json")) and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)  # run_all and the task that is in its middle
    process.wait()
    first = {path: path.read_bytes() for path in broken.glob("records/*.json")}
    assert first and len(first) < 4

    again = run(checkpoint, world, broken, *tasks)
    assert again.returncode == 0, again.stderr
    assert "stands already" in again.stdout
    assert all(path.read_bytes() == content for path, content in first.items())
    assert (broken / "table.csv").read_text() == (whole / "table.csv").read_text()
    frame = pd.read_csv(whole / "table.csv", index_col=0)
    assert {"FT", "1%", "IN-A", "IN-R", "IN-Sketch", "IN-C", "kNN"} <= {
        name for name in frame if pd.notna(frame.loc["mine", name])
    }

    (broken / "logs/imports.log").unlink()  # of the fork servers
    third = run(checkpoint, world, broken, *tasks)
    assert third.stdout.count("stands already") == 5  # the conversion and four tasks
    assert not (broken / "logs/imports.log").exists(), "it imported for nothing"


def test_a_failing_task_is_recorded_and_the_others_go_on(checkpoint, world, tmp_path):
    data = tmp_path / "data"
    (data / "imagenet").mkdir(parents=True)
    for name in ("train", "1percent.txt"):
        (data / "imagenet" / name).symlink_to(world / "imagenet" / name)
    val = data / "imagenet/val"
    subprocess.run(["cp", "-r", str(world / "imagenet/val"), str(val)], check=True)
    broken = sorted(val.glob("*/*"))[3]
    broken.write_bytes(broken.read_bytes()[:200])
    result = run(checkpoint, data, tmp_path / "out", "--tasks", "knn,segmentation")
    assert result.returncode == 1
    assert broken.name in result.stderr
    records = {
        entry["task"]: entry
        for entry in map(json.loads, (path.read_text() for path in (tmp_path / "out/records").iterdir()))
    }
    assert records["knn"]["status"] == "failed" and broken.name in records["knn"]["reason"]
    assert (
        records["segmentation"]["status"] == "skipped" and "ade20k/images/training" in records["segmentation"]["reason"]
    )


def test_a_file_that_is_no_checkpoint_fails_every_column_with_its_reason(world, tmp_path):
    bad = tmp_path / "bad.pth"
    bad.write_bytes(b"not a checkpoint")
    result = run(bad, world, tmp_path / "out", "--tasks", "knn,few_shot")
    assert result.returncode == 1 and "Traceback" not in result.stderr
    records = [json.loads(path.read_text()) for path in (tmp_path / "out/records").iterdir()]
    assert [entry["status"] for entry in records] == ["failed"] * 2
    assert all("bad.pth" in entry["reason"] for entry in records)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--tasks", "knn,juggling"], "there is no task 'juggling'; the tasks are"),
        (["--set", "knn.height=3"], "unknown setting 'height'; the settings here are"),
        (["--set", "juggling.height=3"], "write TASK.NAME=VALUE, where TASK is one of"),
        (["--set", "knn.temperature"], "--set takes NAME=VALUE"),
        (["--set", "finetune.epochs=soon"], "setting 'epochs' is a whole number above 0, not 'soon'"),
        (["--ckpt", "absent.pth", "--data-root", "."], "there is no checkpoint absent.pth"),
        (["--ckpt", "run_all.py"], "need --data-root"),
        (["--ckpt", "run_all.py", "--data-root", ".", "--format", "tim"], "there is no format 'tim'; the formats are"),
        (["--minutes", "5"], "goes with --demo or --ablate and --data-root DIR"),
        (["--demo", "--data-root", ".", "--minutes", "nan"], "--minutes N is a number above 0"),
        (["--demo", "--data-root", "."], "what pretrains on your images takes imagenet/train: imagenet is not under"),
        (["--ablate", "demo", "--data-root", "."], "what pretrains on your images takes imagenet/train: imagenet is"),
        (["--ablate", "demo", "mae=demo", "mae=mae_demo"], "two rows are called 'mae'"),
        (["--ablate", "demo", "--ckpt", "run_all.py"], "leave out --ckpt"),
        (["--demo", "--ckpt", "run_all.py"], "leave out --ckpt"),
        (["--ckpt", "run_all.py", "--data-root", "nowhere"], "the data root nowhere is not a folder"),
    ],
)
def test_bad_arguments_get_one_sentence(tmp_path, monkeypatch, capsys, options, says):
    monkeypatch.chdir(HERE)
    assert run_all.main(["--out", str(tmp_path / "out"), *options]) == 2
    error = capsys.readouterr().err
    assert says in error and error.count("\n") == 1


def test_an_output_folder_that_cannot_be_written(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert run_all.main(["--out", str(tmp_path / "file" / "out")]) == 2
    assert "cannot be written" in capsys.readouterr().err


def test_a_dry_run_prints_every_node_and_writes_nothing(tmp_path, capsys):
    assert run_all.main(["--out", str(tmp_path / "out"), "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(run_all.demo.TOY) * len(run_all.plan.choose([])) and not (tmp_path / "out").exists()


def test_a_dry_run_says_which_tasks_are_compiled(tmp_path, capsys):
    line = ["--out", str(tmp_path / "out"), "--dry-run", "--tasks", "segmentation,knn"]
    for options, said in ([], []), (["--compile"], [False, True, False, True, False, True]):
        assert run_all.main([*line, *options]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert [", compiled)" in printed for printed in lines] == (said or [False] * 6)


def test_a_node_brings_what_it_needs():
    assert [node.name for node in run_all.plan.choose(["robustness"])] == ["finetune", "robustness"]
    assert [node.name for node in run_all.plan.choose(["detection"])] == ["detection_coco", "detection_lvis"]


def test_importing_pretrain_and_the_imagenet_tasks_leaves_mm_alone():
    names = (
        "pretrain.train, evaluate.finetune, evaluate.linear_probe, evaluate.few_shot, evaluate.knn, "
        "evaluate.robustness, run_all"
    )
    code = (
        f"import sys, {names}; print([m for m in sys.modules if m.split('.')[0] in ('mmengine', 'mmcv', 'mmdet', "
        f"'mmseg')])"
    )
    assert (
        subprocess.run(
            [sys.executable, "-c", code], cwd=HERE, capture_output=True, text=True, check=True
        ).stdout.strip()
        == "[]"
    )


def test_without_mm_packages_a_dense_column_is_skipped_with_the_command(checkpoint, world, tmp_path):
    (tmp_path / "hide").mkdir()
    (tmp_path / "hide/sitecustomize.py").write_text(
        "import sys\nsys.modules.update(dict.fromkeys(('mmengine', 'mmcv', 'mmdet', 'mmseg')))\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "hide")}
    options = ("--tasks", "detection_coco,segmentation,knn")
    result = subprocess.run(
        command(checkpoint, world, tmp_path / "out", *options),
        cwd=HERE,
        capture_output=True,
        text=True,
        timeout=300,
        env=environment,
    )
    assert result.returncode == 0, result.stderr
    records = {
        entry["task"]: entry
        for entry in map(json.loads, (path.read_text() for path in (tmp_path / "out/records").iterdir()))
    }
    assert {name: entry["status"] for name, entry in records.items()} == {
        "detection_coco": "skipped",
        "segmentation": "skipped",
        "knn": "ok",
    }
    assert "uv sync" in records["detection_coco"]["reason"]


def test_the_data_are_checked_before_anything_runs(world, tmp_path, capsys):
    options = ["--data-root", str(world), "--out", str(tmp_path / "out"), "--check-data", "--tasks", "knn,robustness"]
    assert run_all.main(options) == 0
    assert "imagenet_c: ok: 15 corruptions" in capsys.readouterr().out and not (tmp_path / "out").exists()
    assert run_all.main(["--check-data", "--data-root", str(tmp_path)]) != 0
    assert run_all.main(["--check-data"]) == 2
    assert "need --data-root" in capsys.readouterr().err


def test_the_check_reads_every_image_when_asked_to(world, tmp_path, capsys, monkeypatch):
    data = tmp_path / "data"
    data.mkdir()
    subprocess.run(["cp", "-r", str(world / "imagenet"), str(data / "imagenet")], check=True)
    monkeypatch.setattr("evaluate.data.check.SAMPLES", 1)
    broken = sorted((data / "imagenet/val").glob("*/*"))[3]
    broken.write_bytes(broken.read_bytes()[:200])
    options = ["--data-root", str(data), "--check-data", "--tasks", "knn", "--subset"]
    assert run_all.main(options) == 0, "one image of each set is read"
    assert run_all.main([*options, "--verify-data"]) == 2
    assert broken.name in capsys.readouterr().err


def test_only_a_fine_tuned_checkpoint_calibrates(checkpoint, world, capsys):
    assert run_all.main(["--calibrate", str(checkpoint), "--data-root", str(world)]) == 2
    assert "is not known, since its name holds none of" in capsys.readouterr().err


def test_seeds_repeat_what_draws_something(checkpoint, world, tmp_path):
    """kNN draws nothing and is measured once; robustness takes the classifier of its own seed."""
    tasks = ("--tasks", "linear_probe,knn,robustness", "--seeds", "2", "--seed", "3")
    short = [f"--set={name}={value}" for name, value in {"finetune.epochs": 2, "finetune.warmup_epochs": 1}.items()]
    short += [
        "--set=linear_probe.epochs=2",
        "--set=linear_probe.warmup_epochs=1",
        "--set=robustness.corrupted_images=2",
    ]
    result = run(checkpoint, world, tmp_path, *tasks, *short)
    assert result.returncode == 0, result.stderr + result.stdout
    entries = [json.loads(path.read_text()) for path in tmp_path.glob("records/*.json")]
    found = sorted((entry["task"], entry["seed"]) for entry in entries)
    expected = [(task, seed) for task in ("finetune", "linear_probe", "robustness") for seed in (3, 4)]
    assert found == sorted([("knn", 3), *expected])
    of_tuning = {
        entry["seed"]: entry["files"]["classifier.safetensors"] for entry in entries if entry["task"] == "finetune"
    }
    for entry in entries:
        if entry["task"] == "robustness":
            assert entry["inputs"]["classifier"] == of_tuning[entry["seed"]]
    text = (tmp_path / "table.md").read_text()
    assert "mean ± standard deviation over seeds: mine FT, mine LIN" in text
    again = run(checkpoint, world, tmp_path, *tasks, *short)
    assert again.returncode == 0 and ": started" not in again.stdout and (tmp_path / "table.md").read_text() == text
    one = run(checkpoint, world, tmp_path, *tasks[:2], "--seed", "3", *short)
    assert one.returncode == 0 and ": started" not in one.stdout, "the first seed is a run of its own"
    assert "over seeds" not in (tmp_path / "table.md").read_text()


def test_data_that_are_verified_fill_the_table_and_stand(checkpoint, world, tmp_path):
    options = ("--tasks", "knn", "--verify-data")
    assert run(checkpoint, world, tmp_path, *options).returncode == 0
    again = run(checkpoint, world, tmp_path, *options)
    assert "mine/knn: stands already" in again.stdout, again.stdout
    assert len(list((tmp_path / "records").iterdir())) == 1
