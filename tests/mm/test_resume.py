"""A training killed at any moment ends with the weights of an unbroken one, for any number of loading processes."""

import contextlib
import dataclasses
import hashlib
import json
import multiprocessing
import os
import random
import signal
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import Config

from evaluate import detection, segmentation
from evaluate.encoder.model import Encoder
from evaluate.harness.task import main
from evaluate.mm import detector, hooks, mixed_precision, recipes, resume, runner
from evaluate.mm.runner import identity_of, save_interval
from evaluate.runtime import curves, training_state
from evaluate.runtime.env import Env
from evaluate.runtime.training_state import DENSE_STATE
from results import record as records
from tests.factories import mae_state, shrink, tiny_resnet

TASKS = {
    "coco": (detection, {"dataset": "coco"}),
    "lvis": (detection, {"dataset": "lvis"}),
    "ade20k": (segmentation, {}),
}
ITERATIONS = 5  # a state is saved after each
FORK = multiprocessing.get_context("fork")  # the imports take longer than the training


def trained(task: str, encoder: Encoder, world: Path, out: Path, workers: int) -> tuple[dict[str, float], str]:
    """The metrics, and a digest of the trained model."""
    digest = hashlib.sha256()

    def after_train(self: hooks.Progress, runner: Any) -> None:
        for name, value in runner.model.state_dict().items():
            digest.update(name.encode() + value.numpy().tobytes())

    hooks.Progress.after_train = after_train
    module, changes = TASKS[task]
    out.mkdir(exist_ok=True)
    config = dataclasses.replace(module.PRESETS["demo"], iterations=ITERATIONS, batch_size=2, **changes)
    try:
        return module.run(encoder, config, Env(world, out, workers=workers, limit=4)), digest.hexdigest()
    finally:
        del hooks.Progress.after_train


def _child(sender: Connection, errors: Path, *arguments: Any) -> None:
    torch.set_num_threads(1)
    with errors.open("a", buffering=1) as file, contextlib.redirect_stderr(file):
        sender.send(trained(*arguments))


def run_in_child(errors: Path, *arguments: Any, kill_after: float | None = None, when: Any = None) -> Any:
    """What ``trained`` returns in a process of its own; None if that was killed, after a time or once ``when()``."""
    receiver, sender = FORK.Pipe(duplex=False)
    child = FORK.Process(target=_child, args=(sender, errors, *arguments))
    child.start()
    sender.close()
    until = time.monotonic() + (120 if kill_after is None else kill_after)
    while time.monotonic() < until and not receiver.poll(0.001) and not (when and when()):
        pass
    if not receiver.poll(0):
        os.kill(child.pid, signal.SIGKILL)
        child.join()
        return None
    result = receiver.recv()
    child.join()
    return result


def killed_at_random(
    task: str, kills: int, cut: bool, encoder: Encoder, world: Path, folder: Path
) -> tuple[Any, Any, str]:
    """Kills up to so many processes, each within an unbroken one's time and loading with another number of processes.

    Args:
        cut: shortens the newest state's file after each kill.

    Returns:
        What the killed training came to, what the unbroken one came to, and how to repeat it.
    """
    begun = time.monotonic()
    expected = trained(task, encoder, world, folder / "whole", 0)
    seconds = time.monotonic() - begun
    seed = random.SystemRandom().randrange(10**6)
    draw, broken, errors = random.Random(seed), folder / "broken", folder / "errors"
    result = None
    for number in range(kills):
        result = run_in_child(
            errors, task, encoder, world, broken, (number + 1) % 3, kill_after=draw.uniform(0.4, 1.0) * seconds
        )
        for newest in resume.newest_first(broken / DENSE_STATE)[:1] if cut else ():
            newest.write_bytes(newest.read_bytes()[: draw.randrange(2000)])
        if result is not None:
            break
    result = result or run_in_child(errors, task, encoder, world, broken, 2)
    return result, expected, f"seed {seed}: {errors.read_text()[-2000:]}"


@pytest.mark.parametrize("task", TASKS)
def test_killed_at_a_random_moment(task: str, encoder: Encoder, world: Path, tmp_path: Path) -> None:
    result, expected, how = killed_at_random(task, 1, True, encoder, world, tmp_path)
    assert result == expected, how
    whole, broken = ((tmp_path / run / curves.FILE).read_text() for run in ("whole", "broken"))
    points = [json.loads(line) for line in whole.splitlines()]
    assert broken == whole and [point["step"] for point in points] == [1, 2, 3, 4, 5]
    assert all(point["loss"] > 0 and point["rate"] >= 0 and 0 <= point["accuracy"] <= 100 for point in points)


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_killed_twelve_times_at_random_moments(task: str, encoder: Encoder, world: Path, tmp_path: Path) -> None:
    for attempt in range(4):
        (tmp_path / str(attempt)).mkdir()
        result, expected, how = killed_at_random(task, 3, attempt % 2 == 1, encoder, world, tmp_path / str(attempt))
        assert result == expected, how


def test_the_newest_state_cut_short(
    encoder: Encoder, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Goes on from the one before, says so, reads only tensors and plain values; then the test alone is repeated."""
    expected = trained("ade20k", encoder, world, tmp_path / "whole", 0)
    states, errors = tmp_path / "broken" / DENSE_STATE, tmp_path / "errors"
    arguments = ("ade20k", encoder, world, tmp_path / "broken")
    assert run_in_child(errors, *arguments, 1, when=(states / "iter_3.pt").exists) is None
    newest = resume.newest_first(states)[0]
    newest.write_bytes(newest.read_bytes()[:1000])
    assert run_in_child(errors, *arguments, 0, when=(states / "iter_5.pt").exists) is None
    told = errors.read_text()
    assert f"{newest} cannot be read" in told and f"goes on at iteration {int(newest.stem[5:]) - 1} of 5" in told
    original, safe = torch.load, []

    def load(*positional: Any, **named: Any) -> Any:
        safe.append(named.get("weights_only"))
        return original(*positional, **named)

    monkeypatch.setattr(torch, "load", load)
    with errors.open("a") as file, contextlib.redirect_stderr(file):
        assert trained(*arguments, 0) == expected
    assert "goes on at iteration 5 of 5" in errors.read_text()
    assert safe and all(safe), "something was unpickled that may run code"
    assert not (tmp_path / "broken/work").exists(), "a finished task leaves mmengine's folder"


def test_killed_between_the_last_iteration_and_the_record(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command started again only tests, and gives the same; what it trained from is gone once its record stands."""
    torch.save({"model": mae_state()}, tmp_path / "mae.pth")
    command = ["--ckpt", str(tmp_path / "mae.pth"), "--data-root", str(world), "--preset", "demo", "--limit", "2"]
    command += ["--set", "iterations=3", "--device", "cpu", "--workers", "0", "--out"]

    def ended(out: Path) -> dict[str, float]:
        assert main("segmentation", [*command, str(out)]) == 0
        (record,) = (out / "records").glob("*.json")
        return json.loads(record.read_text())["metrics"]

    whole = ended(tmp_path / "whole")
    with monkeypatch.context() as patched:
        patched.setattr(records, "write", lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL))
        child = FORK.Process(target=main, args=("segmentation", [*command, str(tmp_path / "broken")]))
        child.start()
        child.join()
    (states,) = (tmp_path / "broken").rglob(DENSE_STATE)
    assert child.exitcode == -signal.SIGKILL and not list((tmp_path / "broken").rglob("records/*.json"))
    assert (states / "iter_3.pt").exists()
    assert ended(tmp_path / "broken") == whole
    assert "goes on at iteration 3 of 3" in capsys.readouterr().err
    assert not list(tmp_path.rglob(DENSE_STATE)), "a record stands, and its training's states too"


def test_statistics_made_anew_survive_an_interruption(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """C4's statistics of BatchNorm, made after the last iteration, are the same after a kill and with any workers."""
    encoder = tiny_resnet()

    def run(folder: str, workers: int) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
        env = Env(world, tmp_path / folder, limit=4, workers=workers)
        env.out_dir.mkdir(exist_ok=True)
        cfg = recipes.read_recipe("mask_rcnn_resnet_c4_1x_coco")
        detector.fill_encoder(cfg, encoder)
        recipes.shorten(cfg, 3, 2, None)
        detector.fill_data(cfg, "coco", env)
        shrink(cfg)
        cfg.precise_bn = 2
        tested: dict[str, torch.Tensor] = {}
        hooks.Progress.before_test = lambda self, runner: tested.update(runner.model.state_dict())
        try:
            return runner.train_and_test(cfg, "coco", encoder, env), tested
        finally:
            del hooks.Progress.before_test

    expected, weights = run("a", 0)
    for iterations, workers in ((3, 0), (2, 0), (2, 1)):
        for path in resume.newest_first(tmp_path / "a" / DENSE_STATE):
            if int(path.stem[5:]) > iterations:
                path.unlink()
        found, again = run("a", workers)
        assert f"goes on at iteration {iterations} of 3" in capsys.readouterr().err and found == expected
        # how often a norm was updated is a count of batches, and of no consequence
        assert not [
            name for name in weights if not torch.equal(weights[name], again[name]) and "num_batches" not in name
        ]


def test_clearing_removes_both_kinds_of_state(tmp_path: Path) -> None:
    training_state.clear(tmp_path)
    training_state.save(tmp_path, "a", {"epoch": 1})
    resume.save(tmp_path / DENSE_STATE, 1, {"identity": "a", "iteration": 1})
    (tmp_path / "coco.log").write_text("kept")
    training_state.clear(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["coco.log"]


def test_the_identity_of_a_training(encoder: Encoder, world: Path, tmp_path: Path) -> None:
    """It tells settings apart, and neither the order of keys nor the process nor the number of loading processes."""

    def identity(
        device: str, workers: int = 0, reverse: bool = False, lr: float = 1e-3, precision: str = "bf16", seed: int = 0
    ) -> str:
        env = Env(world, tmp_path, device=device, workers=workers, seed=seed)
        cfg = recipes.read_recipe("mask_rcnn_vitdet_demo_coco")
        detector.fill_encoder(cfg, encoder)
        recipes.shorten(cfg, None, None, lr)
        detector.fill_data(cfg, "coco", env)
        mixed_precision.use(cfg, precision, device)
        if reverse:
            content = cfg.to_dict()
            cfg = Config({key: _reversed(content[key]) for key in reversed(content)})
        return identity_of(cfg, encoder, env)

    first = identity("cuda:0")
    assert first == identity("cuda:1") == identity("cuda", 3) == identity("cuda:0", reverse=True)
    others = [
        identity("cpu"),
        identity("cuda:0", lr=1e-4),
        identity("cuda:0", precision="fp16"),
        identity("cuda:0", seed=1),
    ]
    assert len({first, *others}) == 5


def _reversed(value: Any) -> Any:
    return {key: _reversed(value[key]) for key in reversed(value)} if isinstance(value, dict) else value


def test_curves_are_bounded_and_no_point_lies_across_a_state() -> None:
    for iterations, parts in ((5, 1), (5, 4), (999, 1), (90_000, 1), (160_000, 4), (184_375, 1)):
        saved = save_interval(iterations, parts)
        apart = hooks.points_apart(iterations, saved, parts)
        assert saved % apart == apart % parts == 0 and iterations / apart <= curves.MOST
    assert hooks.points_apart(90_000, 1000, 1) == 100


def test_states_are_saved_between_steps() -> None:
    """Gradients that are still being summed are in no state."""
    assert [save_interval(*numbers) for numbers in ((160_000, 1), (160_000, 3), (21, 3), (3, 1))] == [1000, 1002, 6, 1]


def test_two_states_are_kept_and_others_ignored(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for iteration in (5, 10, 15):
        resume.save(tmp_path, iteration, {"identity": "a", "iteration": iteration})
    assert [path.name for path in resume.newest_first(tmp_path)] == ["iter_15.pt", "iter_10.pt"]
    assert resume.load(tmp_path, "a")[1]["iteration"] == 15
    assert resume.load(tmp_path, "b") is None and "another training" in capsys.readouterr().err
    torch.save({"identity": "a", "iteration": 20, "code": dataclasses.field}, tmp_path / "iter_20.pt")
    assert resume.load(tmp_path, "a")[1]["iteration"] == 15, "a state that would run code was opened"


@pytest.mark.parametrize("size", [0, 10, 200])
def test_a_truncated_state_is_passed_over(tmp_path: Path, size: int, capsys: pytest.CaptureFixture[str]) -> None:
    resume.save(tmp_path, 1, {"identity": "a", "iteration": 1})
    resume.save(tmp_path, 2, {"identity": "a", "iteration": 2})
    path = tmp_path / "iter_2.pt"
    path.write_bytes(path.read_bytes()[:size])
    assert resume.load(tmp_path, "a")[1]["iteration"] == 1
    assert "iter_2.pt" in capsys.readouterr().err
