"""Curves that are also logged elsewhere: the same numbers, no step twice after a kill, and one sentence without the
package.
"""

import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import run_all
from evaluate.harness.task import main
from evaluate.runtime import curves, scalars
from evaluate.runtime.errors import UserError
from tests.factories import mae_state
from tests.worlds import write_world

STAND_IN = """
import json, pathlib
class Run:
    def __init__(self, told): self.file = pathlib.Path(told["dir"], "said"); self.say(told)
    def say(self, told): self.file.open("a").write(json.dumps(told) + chr(10))
    def log(self, values, step): self.say([step, values])
    def finish(self): self.say("finished")
init = lambda **told: Run(told)
"""


@pytest.fixture(autouse=True)
def nothing_else() -> Iterator[None]:
    yield
    sys.modules.pop("wandb", None)
    scalars.choose(None, "")
    scalars.end()


def logged(folder: Path, name: str) -> list[tuple[int, float]]:
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(name)]


def test_tensorboard_has_no_step_twice_after_a_kill(tmp_path: Path) -> None:
    scalars.choose("tensorboard", "mine/finetune")
    curves.begin(tmp_path, 0)
    for step in (1, 2, 3):
        curves.append(tmp_path, step, epoch=step, rate=0.5, loss=step / 4)
        assert len(logged(tmp_path, "loss")) == step, "a process that is killed now would lose it"
    curves.begin(tmp_path, 2)
    curves.append(tmp_path, 3, epoch=3, rate=0.5, loss=8.0)
    scalars.end()
    assert logged(tmp_path, "loss") == [(1, 0.25), (2, 0.5), (3, 8.0)]
    assert logged(tmp_path, "rate") == [(step, 0.5) for step in (1, 2, 3)]


def test_nothing_is_logged_where_nothing_was_chosen(tmp_path: Path) -> None:
    curves.begin(tmp_path, 0)
    curves.append(tmp_path, 1, loss=1.0)
    assert [path.name for path in tmp_path.iterdir()] == ["curves.jsonl"]


def test_wandb_is_given_every_point_and_goes_on_in_the_same_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stand-in package; the real one needs an account or its offline mode."""
    (tmp_path / "wandb.py").write_text(STAND_IN)
    monkeypatch.syspath_prepend(str(tmp_path))
    scalars.require("wandb")
    scalars.choose("wandb", "mine/knn")
    for step in (1, 2):
        curves.begin(tmp_path / "task", step - 1)
        curves.append(tmp_path / "task", step, loss=0.5)
    scalars.end()
    first, point, end, second, other, last = map(json.loads, (tmp_path / "task/said").read_text().splitlines())
    assert first == second and first["resume"] == "allow" and first["name"] == "mine/knn" and len(first["id"]) == 16
    assert (point, other, end, last) == ([1, {"loss": 0.5}], [2, {"loss": 0.5}], "finished", "finished")


def test_a_package_that_is_not_installed_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "wandb" else find(name, *rest))
    with pytest.raises(UserError, match="needs the package wandb, which is not installed; uv pip install wandb"):
        scalars.require("wandb")
    given = [
        "--ckpt",
        str(tmp_path / "no.pth"),
        "--data-root",
        str(tmp_path),
        "--out",
        str(tmp_path / "out"),
        "--log",
        "wandb",
    ]
    assert main("knn", given) == 2 and run_all.main(given) == 2
    assert capsys.readouterr().err.count("needs the package wandb") == 2 and not (tmp_path / "out").exists()


def test_a_folder_of_that_name_is_no_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "wandb").mkdir()
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    with pytest.raises(UserError, match="which is not installed"):
        scalars.require("wandb")


def test_a_task_logs_what_its_curves_have(tmp_path: Path) -> None:
    torch.save({"model": mae_state()}, tmp_path / "mine.pth")
    data = write_world(tmp_path / "data")
    given = ["--ckpt", str(tmp_path / "mine.pth"), "--data-root", str(data), "--out", str(tmp_path), "--preset", "demo"]
    given += ["--set", "epochs=7", "--set", "warmup_epochs=1", "--device", "cpu", "--log", "tensorboard"]
    assert main("linear_probe", given) == 0
    (folder,) = (path.parent for path in tmp_path.glob("mine/*/curves.jsonl"))
    points = [json.loads(line) for line in (folder / "curves.jsonl").read_text().splitlines()]
    assert [(point["step"], pytest.approx(point["loss"], rel=1e-5)) for point in points] == logged(folder, "loss")
    (path,) = (tmp_path / "records").glob("*.json")
    assert {"tensorboard", "curves.jsonl", "head.safetensors", "predictions.npz"} <= set(
        json.loads(path.read_text())["artifacts"]
    )


@pytest.mark.parametrize("where", ["init", "log", "finish"])
def test_a_place_that_fails_costs_nothing_but_a_line(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    fails = {
        "init": "init = lambda **told: 1 / 0",
        "log": "Run.log = lambda self, values, step: 1 / 0",
        "finish": "Run.finish = lambda self: 1 / 0",
    }
    (tmp_path / "wandb.py").write_text(f"{STAND_IN}\n{fails[where]}\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    scalars.choose("wandb", "mine/knn")
    curves.begin(tmp_path / "task", 0)
    for step in (1, 2):
        curves.append(tmp_path / "task", step, loss=0.5)
    scalars.end()
    assert capsys.readouterr().err == "--log: wandb fails (ZeroDivisionError: division by zero); curves.jsonl has all\n"
    assert len((tmp_path / "task/curves.jsonl").read_text().splitlines()) == 2
