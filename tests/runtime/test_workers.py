"""How many data loading processes there are where nobody says."""

import os

import pytest

import run_all
from evaluate.runtime import cli
from pretrain import distributed, train


@pytest.mark.parametrize(
    ("asked", "device", "side_by_side", "found"),
    [
        (None, "cuda", 8, 7),
        (None, "cuda:1", 1, 16),
        (None, "cuda", 100, 1),
        (None, "cpu", 1, 0),
        (5, "cpu", 1, 5),
        (0, "cuda", 1, 0),
    ],
)
def test_a_gpu_gets_its_share_of_the_cores_and_a_cpu_keeps_them(asked, device, side_by_side, found, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(64)), raising=False)
    assert cli.loading_processes(asked, device, side_by_side) == found


def test_the_processes_of_torchrun_share_the_cores(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(64)), raising=False)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    assert distributed.cores() == 64
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    assert distributed.cores() == 8


@pytest.mark.parametrize(
    ("device", "options", "workers"), [("cpu", [], 0), ("cuda", [], 16), ("cuda", ["--workers", "3"], 3)]
)
def test_pretraining_takes_them(device, options, workers, tmp_path, monkeypatch):
    taken = []
    monkeypatch.setattr(train, "train", lambda config, data, out, execution, _: taken.append(execution) or out)
    monkeypatch.setattr(train.torch.cuda, "is_available", lambda: device == "cuda")
    monkeypatch.setattr(train.torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(64)), raising=False)
    assert train.main(["--data", str(tmp_path), "--out", str(tmp_path), *options]) == 0
    assert [(execution.device, execution.workers) for execution in taken] == [(device, workers)]


def test_a_negative_number_is_refused(capsys):
    with pytest.raises(SystemExit, match="2"):
        run_all.main(["--workers", "-1"])
    assert "must be at least 0, not -1" in capsys.readouterr().err
