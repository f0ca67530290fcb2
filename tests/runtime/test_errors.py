"""Faults that come from outside a task are one sentence in its record, a mistake of ours keeps its traceback."""

import os
import signal
import types
from pathlib import Path

import pytest
import torch
from torch._inductor.exc import InductorError, InvalidCxxCompiler
from torch.utils.data import DataLoader, Dataset

from evaluate import detection
from evaluate.harness import task
from evaluate.runtime.env import Env
from evaluate.runtime.errors import from_outside


class Dies(Dataset):
    """One whose loading process gets the signal that a full /dev/shm sends."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> torch.Tensor:
        os.kill(os.getpid(), signal.SIGBUS)
        return torch.zeros(1)


def fails(error: Exception | None, tmp_path: Path) -> dict:
    """The record of a task that meets an error, or a loading process that dies."""

    def run(encoder: object, config: object, env: Env) -> dict:
        if error:
            raise error
        return {"x": float(sum(batch.sum() for batch in DataLoader(Dies(), num_workers=1)))}

    entry = {"task": "x", "config": {}}
    entry |= {name: {} for name in ("paper_config", "protocol", "immaterial", "rests_on", "metrics", "sizes")}
    module = types.SimpleNamespace(reads=lambda config: (), run=run)
    assert task.measure(module, None, detection.PRESETS["demo"], Env(tmp_path, tmp_path), entry) == 1
    return entry


def test_a_loading_process_that_the_system_ended(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    entry = fails(None, tmp_path)
    assert entry["status"] == "failed" and "with fewer --workers" in entry["reason"] and "/dev/shm" in entry["reason"]
    assert "\n" not in entry["reason"] and "Traceback" not in capsys.readouterr().err


def test_a_mistake_of_ours_keeps_its_traceback(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    entry = fails(RuntimeError("shapes do not fit"), tmp_path)
    assert entry["reason"] == "RuntimeError: shapes do not fit" and "Traceback" in capsys.readouterr().err


def test_a_compiler_that_is_not_there_is_one_sentence() -> None:
    text = from_outside(InvalidCxxCompiler())
    assert text.startswith("--compile failed (") and text.endswith("a C++ compiler is installed") and "\n" not in text
    assert from_outside(InductorError(InvalidCxxCompiler(), None)).startswith("--compile failed (InvalidCxxCompiler")


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (torch.distributed.DistNetworkError("port 1 is taken\nC++ trace"), "cannot reach each other: port 1 is taken"),
        (torch.distributed.DistBackendError("NCCL error"), "another process of this run has ended"),
        (RuntimeError("[gloo/transport] Connection closed by peer"), "another process of this run has ended"),
        (ValueError("gloo"), ""),
        (RuntimeError(""), ""),
    ],
)
def test_another_process_of_the_group(error: Exception, says: str) -> None:
    text = from_outside(error)
    assert "\n" not in text and (says in text if says else not text)
