"""Checkpoints are written from a thread: training goes on meanwhile, and neither an error nor a step is lost."""

import threading

import pytest
import torch
from torch import nn

from pretrain import checkpoint, train
from pretrain.methods import mae
from pretrain.methods.siameseim import DEMO
from tests.pretrain.runs import EVERY_STEP, TINY

SECONDS = 30  # that no test needs


def test_training_goes_on_while_a_file_is_written(images, tmp_path, monkeypatch):
    """The first save ends only after the second step has been taken."""
    put, log, second_step, waited = checkpoint.put, train.Log.step, threading.Event(), []

    def slow(*arguments):
        waited.append(second_step.wait(SECONDS))
        return put(*arguments)

    def step(self, number, *rest):
        log(self, number, *rest)
        if number == 2:
            second_step.set()

    monkeypatch.setattr(checkpoint, "put", slow)
    monkeypatch.setattr(train.Log, "step", step)
    assert train.main(["--data", str(images), "--out", str(tmp_path), *TINY, *EVERY_STEP]) == 0
    assert waited == [True] * 9


def test_what_is_saved_is_the_state_of_its_step(tmp_path, monkeypatch):
    put, changed = checkpoint.put, threading.Event()
    monkeypatch.setattr(checkpoint, "put", lambda *arguments: changed.wait(SECONDS) and put(*arguments))
    model = nn.Linear(2, 2)
    before, state = model.weight.detach().clone(), {"momenta": [torch.zeros(3)]}
    with checkpoint.Saver() as saver:
        saver.save(tmp_path, model, mae, DEMO, 3, step=1, optimizer=state)
        with torch.no_grad():
            model.weight.add_(1)
        state["momenta"][0].add_(1)
        changed.set()
        saver.wait()
    found = checkpoint.load(*checkpoint.newest(tmp_path))
    assert torch.equal(found["model"]["weight"], before) and not found["optimizer"]["momenta"][0].any()


def test_one_file_is_written_at_a_time(tmp_path, monkeypatch):
    running, steps, together = threading.Lock(), [], []

    def put(folder, content, keep):
        together.append(not running.acquire(blocking=False))
        threading.Event().wait(0.05)
        steps.append(content["step"])
        running.release()

    monkeypatch.setattr(checkpoint, "put", put)
    with checkpoint.Saver() as saver:
        for step in range(3):
            saver.save(tmp_path, nn.Linear(2, 2), mae, DEMO, 3, step=step)
    assert steps == [0, 1, 2] and not any(together)


@pytest.mark.parametrize("asked", ["save", "wait"])
def test_an_error_of_the_thread_is_raised_once_where_the_run_trains(tmp_path, monkeypatch, asked):
    def put(*_):
        raise OSError("no room")

    model = nn.Linear(2, 2)
    with checkpoint.Saver() as saver:
        with monkeypatch.context() as broken:
            broken.setattr(checkpoint, "put", put)
            saver.save(tmp_path, model, mae, DEMO, 3, step=1)
            with pytest.raises(OSError, match="no room"):
                saver.save(tmp_path, model, mae, DEMO, 3, step=2) if asked == "save" else saver.wait()
        saver.save(tmp_path, model, mae, DEMO, 3, step=3)
        saver.wait()
    assert checkpoint.load(*checkpoint.newest(tmp_path))["step"] == 3
