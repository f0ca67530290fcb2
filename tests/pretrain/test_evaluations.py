"""An encoder is measured while it trains, and the training does not notice."""

import json
import signal
import time
from pathlib import Path

import pytest
import torch

from pretrain import checkpoint, evaluations, train
from pretrain.evaluations import Evaluations, Wanted
from tests.pretrain.runs import TINY, content, same
from tests.worlds import write_world

KNN = "--preset demo --device cpu --limit 8 --jobs 1"


def arguments(root: Path, out: Path, *more: str) -> list[str]:
    return ["--data", str(root / "imagenet/train"), "--out", str(out), *TINY, *more]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_world(tmp_path_factory.mktemp("world"), train=6, val=2)


def test_each_snapshot_is_a_row_of_the_table(root: Path, tmp_path: Path, capsys) -> None:
    evaluated = ("--evaluate", "knn", "--every", "2", "--evaluate-with", KNN)
    assert train.main(arguments(root, tmp_path / "run", *evaluated)) == 0
    folder = tmp_path / "run" / evaluations.FOLDER
    rows = {json.loads(path.read_text())["encoder"] for path in (folder / "records").glob("*.json")}
    assert rows == {"epoch2", "epoch3"}, "every second epoch, and the end"
    assert "Metric against epoch" in (folder / "report.html").read_text()
    assert "evaluated: " in capsys.readouterr().out
    assert train.main(arguments(root, tmp_path / "plain")) == 0
    assert same(content(tmp_path / "run"), content(tmp_path / "plain")), "the training is what it is without"
    last = torch.load(tmp_path / "run" / evaluations.SNAPSHOTS / "epoch3.pth", weights_only=True)
    whole = torch.load(tmp_path / "run" / checkpoint.NAME, weights_only=True)
    assert last["epoch"] == 3 and "optimizer" not in last
    assert all(torch.equal(last["model"][name], value) for name, value in whole["model"].items())


def test_a_measurement_that_fails_does_not_end_the_training(root: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    script = tmp_path / "run_all.py"
    script.write_text("import sys; '--dry-run' in sys.argv or sys.exit('run_all.py: the disk is gone')")
    monkeypatch.setattr(evaluations, "RUN_ALL", script)
    assert train.main(arguments(root, tmp_path / "run", "--evaluate", "knn")) == 0
    said = capsys.readouterr().out
    assert "the evaluation ended with status 1: run_all.py: the disk is gone" in said and "run.log" in said
    assert (tmp_path / "run" / checkpoint.NAME).is_file()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--evaluate", "knnn"), "there is no task 'knnn'"),
        (("--evaluate", "knn", "--evaluate-with", "--set knn.k=x"), "unknown setting 'k'"),
        (("--evaluate", "knn", "--evaluate-with", "--nonsense 1"), "--nonsense"),
    ],
)
def test_a_typing_error_is_told_before_the_training(root: Path, tmp_path: Path, options, says: str, capsys) -> None:
    assert train.main(arguments(root, tmp_path / "run", *options)) == 2
    said = capsys.readouterr().err
    assert says in said and said.count("\n") == 1 and not (tmp_path / "run" / checkpoint.NAME).exists()


def test_a_run_that_goes_on_measures_what_was_not(root: Path, tmp_path: Path, monkeypatch) -> None:
    counted = tmp_path / "counted"
    script = tmp_path / "run_all.py"
    script.write_text(f"import sys\nif '--dry-run' not in sys.argv:\n    open({str(counted)!r}, 'a').write('x')\n")
    monkeypatch.setattr(evaluations, "RUN_ALL", script)
    assert train.main(arguments(root, tmp_path / "run")) == 0
    command = arguments(root, tmp_path / "run", "--evaluate", "knn")
    assert train.main(command) == 0, "it had ended without measuring"
    snapshots = [path.name for path in (tmp_path / "run" / evaluations.SNAPSHOTS).iterdir()]
    assert snapshots == ["epoch3.pth"] and counted.read_text() == "x"
    assert train.main(command) == 0
    assert counted.read_text() == "xx", "whether all of it stands is for run_all.py to say"


def test_a_snapshot_is_taken_before_a_signal_ends_the_run(root: Path, tmp_path: Path, monkeypatch) -> None:
    script = tmp_path / "run_all.py"
    script.write_text("")
    monkeypatch.setattr(evaluations, "RUN_ALL", script)
    step = train.Log.step

    def stop(self, number: int, *others: object) -> None:
        step(self, number, *others)
        if number == 3:  # of 3 an epoch
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(train.Log, "step", stop)
    assert train.main(arguments(root, tmp_path / "run", "--evaluate", "knn", "--every", "1")) == train.EXIT_SAVED
    assert [path.name for path in (tmp_path / "run" / evaluations.SNAPSHOTS).iterdir()] == ["epoch1.pth"]


def test_a_folder_that_cannot_be_written_is_told_and_ends_nothing(root: Path, tmp_path: Path, capsys) -> None:
    own = Evaluations(Wanted("knn", 1, root), tmp_path)
    (tmp_path / evaluations.FOLDER).touch()  # a file in its place
    own.waits = True
    own.look()
    assert "nothing is measured now: " in capsys.readouterr().out


def test_what_comes_meanwhile_is_measured_by_the_next_and_a_stop_ends_it(
    root: Path, tmp_path: Path, monkeypatch
) -> None:
    counted, stopped = tmp_path / "counted", tmp_path / "stopped"
    script = tmp_path / "run_all.py"
    script.write_text(
        f"""
import pathlib, signal, sys, time
count = pathlib.Path({str(counted)!r})
count.write_text(count.read_text() + "x" if count.exists() else "x")
def stop(*_):
    pathlib.Path({str(stopped)!r}).touch()
    sys.exit(143)
signal.signal(signal.SIGTERM, stop)
while not pathlib.Path({str(tmp_path / "go")!r}).exists():
    time.sleep(0.02)
"""
    )
    monkeypatch.setattr(evaluations, "RUN_ALL", script)
    own = Evaluations(Wanted("knn", 1, root), tmp_path)
    config, method = train.configure("demo", ["depth=1"], None), train.method_of(train.configure("demo", [], None))
    model = method.build(config)
    for epoch in (1, 2, 3):
        own.take(model, method, config, epoch)
    assert own.process and own.waits
    while not counted.exists():
        time.sleep(0.02)
    (tmp_path / "go").touch()
    own.end(done=True)
    assert counted.read_text() == "xx", "two came while the first was measured, and one process measured both"
    assert [path.name for path in sorted((tmp_path / evaluations.SNAPSHOTS).iterdir())] == [
        f"epoch{epoch:02}.pth" for epoch in (1, 2, 3)
    ]
    (tmp_path / "go").unlink()
    own.take(model, method, config, 4)
    while counted.read_text() != "xxx":
        time.sleep(0.02)
    time.sleep(0.2)
    own.end(done=False)
    assert stopped.exists() and own.process.returncode != 0


def test_the_variables_of_torchrun_are_not_handed_on(root: Path, tmp_path: Path, monkeypatch) -> None:
    """run_all.py would take itself for a process of the run, and wait for the others."""
    script = tmp_path / "run_all.py"
    script.write_text(f"import json, os; json.dump(dict(os.environ), open({str(tmp_path / 'seen')!r}, 'w'))")
    monkeypatch.setattr(evaluations, "RUN_ALL", script)
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "TORCHELASTIC_RUN_ID"):
        monkeypatch.setenv(name, "1")
    own = Evaluations(Wanted("knn", 1, root), tmp_path)
    own.waits = True
    own.end(done=True)
    seen = json.loads((tmp_path / "seen").read_text())
    assert not {"RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "TORCHELASTIC_RUN_ID"} & set(seen) and "PATH" in seen


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--evaluate", "knn", "--evaluate-data-root", "nowhere"), "is not a folder; it should hold imagenet/"),
        (("--evaluate-with", "--preset demo"), "go with --evaluate TASKS"),
        (("--evaluate", "knn", "--every", "0"), "--every"),
    ],
)
def test_options_that_do_not_go_together(root: Path, tmp_path: Path, options, says: str, capsys) -> None:
    with pytest.raises(SystemExit) as ended:
        train.main(arguments(root, tmp_path, *options))
    assert ended.value.code == 2 and says in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_the_data_root_is_found_above_the_images() -> None:
    assert evaluations.data_root_of(Path("/data/imagenet/train")) == Path("/data")
    assert evaluations.data_root_of(Path("toy/unlabelled")) == Path("toy")
