"""A training killed at any moment ends with the weights of an unbroken one, for any number of loading processes."""

import contextlib
import dataclasses
import hashlib
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

from evaluate import detection, segmentation
from evaluate.encoder.model import Encoder
from evaluate.mm import hooks, resume
from evaluate.mm.runner import save_interval
from evaluate.runtime.env import Env

TASKS = {"coco": (detection, {"dataset": "coco"}), "lvis": (detection, {"dataset": "lvis"}), "ade20k": (segmentation, {})}
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
    """What ``trained`` returns in a process of its own, or None if that was killed: after so many seconds, or as soon as ``when()``."""
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


def killed_at_random(task: str, kills: int, cut: bool, encoder: Encoder, world: Path, folder: Path) -> tuple[Any, Any, str]:
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
        result = run_in_child(errors, task, encoder, world, broken, (number + 1) % 3, kill_after=draw.uniform(0.4, 1.0) * seconds)
        for newest in resume.newest_first(broken / "work/state")[:1] if cut else ():
            newest.write_bytes(newest.read_bytes()[: draw.randrange(2000)])
        if result is not None:
            break
    result = result or run_in_child(errors, task, encoder, world, broken, 2)
    return result, expected, f"seed {seed}: {errors.read_text()[-2000:]}"


@pytest.mark.parametrize("task", TASKS)
def test_killed_at_a_random_moment(task: str, encoder: Encoder, world: Path, tmp_path: Path) -> None:
    result, expected, how = killed_at_random(task, 1, True, encoder, world, tmp_path)
    assert result == expected, how


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_killed_twelve_times_at_random_moments(task: str, encoder: Encoder, world: Path, tmp_path: Path) -> None:
    for attempt in range(4):
        (tmp_path / str(attempt)).mkdir()
        result, expected, how = killed_at_random(task, 3, attempt % 2 == 1, encoder, world, tmp_path / str(attempt))
        assert result == expected, how


def test_the_newest_state_cut_short(encoder: Encoder, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Goes on from the one before, says so, and reads nothing but tensors and plain values; then the test alone is repeated."""
    expected = trained("ade20k", encoder, world, tmp_path / "whole", 0)
    states, errors = tmp_path / "broken" / "work" / "state", tmp_path / "errors"
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
    assert not states.exists(), "a finished task leaves no state"


def test_states_are_saved_between_steps() -> None:
    """Gradients that are still being summed are in no state."""
    assert [save_interval(*numbers) for numbers in ((160_000, 1), (160_000, 3), (21, 3), (3, 1))] == [1000, 1002, 6, 1]


def test_two_states_are_kept_and_others_ignored(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for iteration in (5, 10, 15):
        resume.save(tmp_path, iteration, {"identity": "a", "iteration": iteration})
    assert [path.name for path in resume.newest_first(tmp_path)] == ["iter_15.pt", "iter_10.pt"]
    assert resume.load(tmp_path, "a")["iteration"] == 15
    assert resume.load(tmp_path, "b") is None and "another training" in capsys.readouterr().err
    torch.save({"identity": "a", "iteration": 20, "code": dataclasses.field}, tmp_path / "iter_20.pt")
    assert resume.load(tmp_path, "a")["iteration"] == 15, "a state that would run code was opened"


@pytest.mark.parametrize("size", [0, 10, 200])
def test_a_truncated_state_is_passed_over(tmp_path: Path, size: int, capsys: pytest.CaptureFixture[str]) -> None:
    resume.save(tmp_path, 1, {"identity": "a", "iteration": 1})
    resume.save(tmp_path, 2, {"identity": "a", "iteration": 2})
    path = tmp_path / "iter_2.pt"
    path.write_bytes(path.read_bytes()[:size])
    assert resume.load(tmp_path, "a")["iteration"] == 1
    assert "iter_2.pt" in capsys.readouterr().err
