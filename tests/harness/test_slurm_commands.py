"""What --launch slurm would submit, without a Slurm."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import run_all
from evaluate.data import identity
from evaluate.harness import options, plan, slurm
from evaluate.harness.slurm_arrays import resources
from evaluate.runtime.cli import loading_processes
from evaluate.runtime.errors import UserError
from tests.factories import mae_state
from tests.worlds import write_world

HERE = Path(run_all.__file__).parent


def test_options_are_sbatch_s_and_a_value_may_hold_commas() -> None:
    said = slurm.options(["partition=a,time=4:00:00", "nodelist=n1,n2,mail-type=END,FAIL"])
    assert said == {"partition": "a", "time": "4:00:00", "nodelist": "n1,n2", "mail_type": "END,FAIL"}


@pytest.mark.parametrize(
    "text", ["partition", "=a", "a=", "a=1,b", "array=0-3", "output=x", "dependency=singleton", "a=1,a=2"]
)
def test_other_options_are_refused(text: str) -> None:
    if text == "a=1,b":  # a comma of the value
        assert slurm.options([text]) == {"a": "1,b"}
        return
    with pytest.raises(UserError, match="--slurm"):
        slurm.options([text])


@pytest.mark.parametrize(
    ("text", "minutes"),
    [("90", 90), ("90:30", 90), ("4:00:00", 240), ("2-0", 2880), ("1-12", 2160), ("1-12:30", 2190), ("1-1:1:1", 1501)],
)
def test_a_limit_is_read_as_sbatch_reads_it(text: str, minutes: int) -> None:
    assert slurm.minutes_of(text) == minutes


@pytest.mark.parametrize("text", [None, "0", "soon", "-5", "0:30"])
def test_a_limit_that_is_none_is_refused(text: str | None) -> None:
    with pytest.raises(UserError, match="time"):
        slurm.minutes_of(text)


def test_a_task_of_n_gpus_asks_for_n_times_the_cores() -> None:
    assert resources(4, {"partition": "a"}) == (32, {"partition": "a", "gpus_per_node": "4"})
    assert resources(4, {"cpus_per_task": "12"}) == (48, {"gpus_per_node": "4"})
    assert resources(4, {"gres": "gpu:a100:4"}) == (32, {"gres": "gpu:a100:4"})
    assert resources(4, {"gres": "tmp:9"}) == (32, {"gres": "tmp:9", "gpus_per_node": "4"})
    assert resources(0, {"gres": "gpu:4", "cpus_per_gpu": "3"}) == (3, {})


def test_loading_processes_are_counted_by_the_cores_of_the_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "12")
    assert loading_processes(None, "cuda", 2) == 5


def dry_run(tmp_path: Path, *options: str) -> subprocess.CompletedProcess:
    for name in ("a.pth", "b.pth"):
        (tmp_path / name).write_bytes(b"")
    rows = [f"{name}={tmp_path / name}.pth" for name in "ab"]
    line = [sys.executable, "run_all.py", "--ckpt", *rows, "--data-root", str(tmp_path), "--out", str(tmp_path / "out")]
    line += ["--launch", "slurm", "--slurm", "time=60", *options]
    return subprocess.run(
        line, cwd=HERE, capture_output=True, text=True, env={**os.environ, "PATH": str(tmp_path)}, timeout=60
    )


def test_a_dry_run_prints_commands_that_run_all_takes_and_writes_nothing(tmp_path: Path) -> None:
    said = ["--tasks", "knn,robustness", "--set", "finetune.epochs=30", "--assume", "a:num_heads=2", "--seeds", "2"]
    said += ["--compile"]
    done = dry_run(tmp_path, "--dry-run", *said)
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "out").exists()
    lines = [shlex.split(line) for line in done.stdout.splitlines() if "run_all.py" in line]
    parts = {(given := options.parse(line[2:], None)).part: given for line in lines}
    names = ["convert", "finetune", "finetune seed 1", "knn", "robustness", "robustness seed 1"]
    assert set(parts) == {"data", "table", *(f"{row}/{name}" for row in "ab" for name in names)}
    assert {line[0] for line in lines} == {sys.executable}
    one = parts["a/knn"]
    assert (one.ckpt, one.tasks, one.set, one.assume, one.device, one.seeds) == (
        [f"a={tmp_path}/a.pth"],
        "knn",
        [],
        ["a:num_heads=2"],
        "cuda",
        1,
    )
    assert parts["b/robustness seed 1"].set == ["finetune.epochs=30"] and parts["b/robustness seed 1"].assume == []
    assert (parts["a/convert"].device, parts["table"].device, parts["table"].seeds) == ("cpu", "cpu", 2)
    for given in parts.values():
        assert given.compile
        plan.choose(given.tasks.split(","))
    said = "robustness of 2 rows after data, convert of 2 rows, finetune of 2 rows: sbatch --array=0-1 "
    assert said in done.stdout, done.stdout


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ((), "no sbatch on PATH"),
        (("--jobs", "2"), "--jobs"),
        (("--probe",), "--probe"),
        (("--slurm", "time=2"), "twice"),
    ],
)
def test_what_does_not_go_together_is_one_sentence(tmp_path: Path, options: tuple[str, ...], says: str) -> None:
    done = dry_run(tmp_path, *options)
    assert done.returncode == 2 and says in done.stderr and len(done.stderr.splitlines()) == 1, done.stderr


def test_the_data_are_identified_by_one_job_and_its_word_is_taken(tmp_path: Path) -> None:
    """Neither run_all.py nor the task looks at the files again: both take what was kept, though it is changed here."""
    torch.save({"model": mae_state()}, tmp_path / "a.pth")
    root, out = write_world(tmp_path / "data", train=12, val=5), tmp_path / "out"
    line = [sys.executable, "run_all.py", "--ckpt", f"a={tmp_path}/a.pth", "--data-root", str(root), "--out", str(out)]
    line += ["--preset", "demo", "--device", "cpu", "--tasks", "knn"]
    for part in ("data", "a/knn"):
        subprocess.run([*line, "--part", part], cwd=HERE, check=True, capture_output=True, timeout=200)
        kept = out / "manifests" / identity.FOUND
        if part == "data":
            assert not list((out / "records").iterdir())
            content = json.loads(kept.read_text())
            content["parts"]["imagenet/val"] = "feedfeedfeedfeed"
            kept.write_text(json.dumps(content))
    entry = json.loads(next((out / "records").glob("a-knn-*.json")).read_text())
    assert entry["status"] == "ok" and entry["data"] == content["parts"]
