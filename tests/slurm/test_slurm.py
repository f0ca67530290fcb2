"""The table on a real Slurm of one node: as on one machine, and what becomes of it when jobs are cancelled or fail."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import run_all
from evaluate.harness import slurm
from tests.factories import mae_state
from tests.worlds import write_world

HERE = Path(run_all.__file__).parent
ALL = ["knn", "few_shot", "finetune", "robustness"]
SETTINGS = {"few_shot": (), "knn": (), "robustness": (), "finetune": ("epochs=1", "warmup_epochs=0")}
ON = ["--launch", "slurm", "--slurm", "partition=low,time=30"]
ENDED = {"done", "failed", "cancelled", "not run"}


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A checkpoint and a data root."""
    folder = tmp_path_factory.mktemp("given")
    torch.save({"model": mae_state()}, folder / "tiny.pth")
    return folder / "tiny.pth", write_world(folder / "data", train=12, val=5)


@pytest.fixture
def start(given: tuple[Path, Path], cluster, monkeypatch: pytest.MonkeyPatch) -> Callable[..., subprocess.CompletedProcess]:
    """Runs run_all.py with the environment of the cluster."""
    for name, value in cluster.environment.items():
        monkeypatch.setenv(name, value)
    checkpoint, root = given

    def run(out: Path, names: list[str], *options: str, sets: tuple[str, ...] = ()) -> subprocess.CompletedProcess:
        line = [sys.executable, "run_all.py", "--ckpt", f"mine={checkpoint}", "--data-root", str(root)]
        line += ["--out", str(out), "--preset", "demo", "--device", "cpu", "--tasks", ",".join(names)]
        chosen = [f"--set={name}.{text}" for name in names for text in SETTINGS[name]]
        line += [*chosen, *(f"--set={text}" for text in sets), *options]
        return subprocess.run(line, cwd=HERE, capture_output=True, text=True, timeout=300)

    return run


def wait(out: Path, done: Callable[[dict[str, str]], bool], seconds: float = 240) -> dict[str, str]:
    """The states, once they are as asked."""
    deadline = time.monotonic() + seconds
    while not done(found := slurm.states(out)):
        logs = "\n".join(f"{path}: {path.read_text()[-800:]}" for path in (out / "slurm").glob("*.out"))
        assert time.monotonic() < deadline, f"{slurm.explained(out)}\n{logs}"
        time.sleep(0.3)
    return found


def ended(found: dict[str, str]) -> bool:
    return set(found.values()) <= ENDED


def records(out: Path) -> dict[str, dict]:
    entries = [json.loads(path.read_text()) for path in (out / "records").glob("*.json")]
    return {entry["task"]: entry for entry in entries}


def test_gives_the_records_of_a_local_run_and_submits_nothing_twice(start, tmp_path: Path) -> None:
    far, here = tmp_path / "far", tmp_path / "here"
    said = start(far, ALL, *ON)
    assert said.returncode == 0, said.stderr
    states = wait(far, ended)
    assert states == dict.fromkeys(["mine/convert", *(f"mine/{name}" for name in ALL), "table"], "done")
    assert start(here, ALL).returncode == 0
    key = ("key", "metrics", "status", "config")
    assert {n: [e[k] for k in key] for n, e in records(far).items()} == {
        n: [e[k] for k in key] for n, e in records(here).items()
    }
    assert (far / "table.md").read_text() == (here / "table.md").read_text()
    again = start(far, ALL, *ON)
    assert again.returncode == 0 and "job" not in again.stdout.replace("jobs", ""), again.stdout
    assert "| mine" in again.stdout
