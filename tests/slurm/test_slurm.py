"""The table on a real Slurm of one node: as on one machine, and what becomes of it when jobs are cancelled or fail."""

import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

import run_all
from evaluate.data import toy
from evaluate.harness import plan, slurm_states
from tests.factories import mae_state
from tests.worlds import write_world

HERE = Path(run_all.__file__).parent
ALL = ["knn", "few_shot", "finetune", "robustness"]
SETTINGS = {"finetune": ("epochs=1", "warmup_epochs=0")}
ON = ["--launch", "slurm", "--slurm", "partition=low,time=30"]
Run = Callable[..., subprocess.CompletedProcess]
ENDED = {"done", "failed", "cancelled", "not run"}


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A checkpoint and a data root."""
    folder = tmp_path_factory.mktemp("given")
    torch.save({"model": mae_state()}, folder / "tiny.pth")
    return folder / "tiny.pth", write_world(folder / "data", train=12, val=5)


@pytest.fixture
def start(given: tuple[Path, Path], cluster, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs run_all.py with the environment of the cluster."""
    for name, value in cluster.environment.items():
        monkeypatch.setenv(name, value)
    checkpoint, root = given

    def run(
        out: Path,
        names: Sequence[str],
        *options: str,
        sets: Sequence[str] = (),
        ckpt: Sequence[str] = (),
        data: Path = root,
        seconds: float = 300,
    ) -> subprocess.CompletedProcess:
        line = [sys.executable, "run_all.py", "--ckpt", *(ckpt or [f"mine={checkpoint}"]), "--data-root", str(data)]
        line += ["--out", str(out), "--preset", "demo", "--device", "cpu", "--tasks", ",".join(names)]
        chosen = [f"--set={name}.{text}" for name in names for text in SETTINGS.get(name, ())]
        line += [*chosen, *(f"--set={text}" for text in sets), *options]
        return subprocess.run(line, cwd=HERE, capture_output=True, text=True, timeout=seconds)

    return run


def wait(out: Path, done: Callable[[dict[str, str]], bool], seconds: float = 240) -> dict[str, str]:
    """The states, once they are as asked."""
    deadline = time.monotonic() + seconds
    while not done(found := slurm_states.states(out)):
        logs = "\n".join(f"{path}: {path.read_text()[-800:]}" for path in (out / "slurm").glob("*.out"))
        assert time.monotonic() < deadline, f"{slurm_states.explained(out)}\n{logs}"
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
    assert states == dict.fromkeys(["data", "mine/convert", *(f"mine/{name}" for name in ALL), "table"], "done")
    assert start(here, ALL).returncode == 0
    assert_the_same(far, here)
    again = start(far, ALL, *ON)
    assert again.returncode == 0 and "job" not in again.stdout.replace("jobs", ""), again.stdout
    assert "| mine" in again.stdout


def assert_the_same(far: Path, here: Path) -> None:
    """The records of two output folders, in what does not name times and places, and their tables."""
    key = ("key", "metrics", "status", "config")
    assert {n: [e[k] for k in key] for n, e in records(far).items()} == {
        n: [e[k] for k in key] for n, e in records(here).items()
    }
    assert (far / "table.md").read_text() == (here / "table.md").read_text()


@pytest.mark.slow
def test_every_column_of_the_demo_is_that_of_a_local_run(start, tmp_path: Path) -> None:
    """With short trainings: the graph is the demo's, on a small toy world."""
    small = {"unlabelled": 1, "train": 12, "val": 4, "list": 2, "shifted": 2, "corrupted": 1}
    world = toy.make(tmp_path / "world", toy.World(**{f"{name}_per_class": count for name, count in small.items()}))
    sets = ["finetune.epochs=1", "finetune.warmup_epochs=0", "linear_probe.epochs=1", "linear_probe.warmup_epochs=0"]
    sets += ["detection.iterations=5", "segmentation.iterations=5"]
    far, here, short = tmp_path / "far", tmp_path / "here", {"sets": sets, "data": world, "seconds": 1500}
    said = start(far, [], *ON, **short)
    assert said.returncode == 0, said.stderr
    found = wait(far, ended, 1500)
    columns = [node.name for node in plan.choose([])]
    assert found == dict.fromkeys(["data", "mine/convert", *(f"mine/{name}" for name in columns), "table"], "done")
    assert start(here, [], **short).returncode == 0
    assert {name: entry["status"] for name, entry in records(far).items()} == dict.fromkeys(columns, "ok")
    assert_the_same(far, here)


def test_several_checkpoints_are_arrays_and_each_row_waits_for_itself(start, given, tmp_path: Path) -> None:
    rows = tmp_path / "epochs"
    rows.mkdir()
    for number in range(3):
        shutil.copy(given[0], rows / f"e{number}.pth")
    (rows / "e1.pth").write_text("no checkpoint")
    out, few, names = tmp_path / "out", [str(path) for path in sorted(rows.iterdir())], ["knn"]
    said = start(out, names, *ON, ckpt=few[:2])
    assert re.search(r"knn of 2 rows: job \d+, after \d+, \d+\n", said.stdout), said.stdout
    again = start(out, names, *ON, ckpt=few)  # a third row comes while the others wait or run
    assert re.search(r"\ne2/knn: job \d+, after \d+, \d+\n", again.stdout), again.stdout
    found = wait(out, ended)
    assert {name for name, word in found.items() if word == "done"} == {
        "data",
        *(f"e{number}/{task}" for number in (0, 2) for task in ("convert", *names)),
    }
    assert (found["e1/convert"], found["e1/knn"]) == ("failed", "not run")
    assert [number_of(out, f"e{number}/knn").partition("_")[2] for number in range(3)] == ["0", "1", "2"]
    shown = run_all_of("--status", out)
    assert re.search(r"e1/convert +\d+_1 +failed .* is not a checkpoint", shown), shown
    assert "8 tasks: 5 done, 2 failed, 1 not run" in shown
    assert re.search(r"table +\d+_0 +failed +e1/knn failed: not run, since e1/convert did not succeed: ", shown), shown
    assert "| e0 " in (table := (out / "table.md").read_text()) and "| e2 " in table and "is not a checkpoint" in table
    shutil.copy(given[0], rows / "e1.pth")  # downloaded again
    last = start(out, names, *ON, ckpt=few)
    jobs = re.findall(r"^(\S+): job \d+", last.stdout, re.MULTILINE)
    assert jobs == ["data", "e1/convert", "e1/knn", "table"], last.stdout
    assert set(wait(out, ended).values()) == {"done"}


def test_each_element_has_its_own_dependency_and_many_are_said_in_few_lines(start, given, tmp_path: Path) -> None:
    for number in range(14):  # Slurm of itself takes ten out of an array
        shutil.copy(given[0], tmp_path / f"e{number}.pth")
    out, held = tmp_path / "out", ["--launch", "slurm", "--slurm", "time=30,hold=true,array=%3"]
    start(out, ["robustness"], *held, ckpt=[str(tmp_path / "e*.pth")])
    for name in ("finetune", "robustness"):
        line = ["scontrol", "show", "job", number_of(out, f"e0/{name}").partition("_")[0], "--oneliner"]
        every = subprocess.run(line, capture_output=True, text=True, check=True).stdout.splitlines()
        assert len(every) == 14 and all("aftercorr:" in one and "ArrayTaskThrottle=3" in one for one in every)
    assert len(list((out / "slurm").glob("*_submitted.pkl"))) == 2 + 3 * 14
    shown = run_all_of("--status", out)
    assert re.search(r"robustness of 14 rows +\d+ +pending", shown) and "44 tasks: 44 pending" in shown
    assert "cancelled data, convert of 14 rows, finetune of 14 rows, " in run_all_of("--cancel", out)
    assert set(wait(out, ended).values()) == {"cancelled"}


def test_a_job_that_is_cancelled_is_said_to_be_and_its_dependent_does_not_run(start, tmp_path: Path) -> None:
    long = ("finetune.epochs=200",)
    assert start(tmp_path, ["finetune", "robustness", "knn"], *ON, sets=long).returncode == 0
    wait(tmp_path, lambda found: found["mine/finetune"] == "running")
    subprocess.run(["scancel", number_of(tmp_path, "mine/finetune")], check=True)
    found = wait(tmp_path, ended)
    assert (found["mine/finetune"], found["mine/robustness"], found["mine/knn"]) == ("cancelled", "not run", "done")
    kept = records(tmp_path)
    assert "cancelled" in kept["finetune"]["reason"]
    assert kept["robustness"]["reason"].startswith("not run, since mine/finetune did not succeed: ")
    assert kept["knn"]["status"] == "ok" and "did not succeed" in (tmp_path / "table.md").read_text()
    assert found["table"] == "failed"  # its exit status says that a task failed


def test_cancel_ends_all_and_leaves_nothing_behind(start, tmp_path: Path) -> None:
    assert start(tmp_path, ["finetune", "robustness"], *ON, sets=("finetune.epochs=200",)).returncode == 0
    wait(tmp_path, lambda found: found["mine/finetune"] == "running")
    changed = start(tmp_path, ["finetune"], *ON, sets=("finetune.epochs=100",))
    assert changed.returncode == 2 and "in the queue with other settings" in changed.stderr
    same = start(tmp_path, ["finetune"], *ON, sets=("finetune.epochs=200",))
    assert same.returncode == 0 and "mine/finetune: in the queue already (job " in same.stdout
    said = run_all_of("--status", tmp_path)
    assert re.search(r"mine/finetune +\d+_0 +running", said) and re.search(r"mine/robustness +\d+_0 +pending", said), (
        said
    )
    assert "cancelled mine/finetune, mine/robustness, table;" in run_all_of("--cancel", tmp_path)
    found = wait(tmp_path, ended)
    assert found["mine/finetune"] == "cancelled" and slurm_states.cancel(tmp_path) == []
    assert re.search(r"mine/finetune +\d+_0 +cancelled +its job was", run_all_of("--status", tmp_path))
    deadline = time.monotonic() + 30
    while (left := processes_of(tmp_path)) and time.monotonic() < deadline:
        time.sleep(0.5)
    assert not left


def run_all_of(option: str, out: Path) -> str:
    line = [sys.executable, "run_all.py", option, str(out)]
    return subprocess.run(line, cwd=HERE, capture_output=True, text=True, check=True, timeout=60).stdout


def processes_of(out: Path) -> list[str]:
    lines = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if path.exists()]
    return [line.decode(errors="replace") for line in lines if str(out).encode() in line and b"evaluate." in line]


def test_a_column_without_its_data_is_no_failure(start, tmp_path: Path) -> None:
    assert start(tmp_path, ["segmentation"], *ON).returncode == 0
    assert set(wait(tmp_path, ended).values()) == {"done"}
    assert records(tmp_path)["segmentation"]["status"] == "skipped"
    assert "skipped" in (tmp_path / "table.md").read_text()


def test_a_task_that_fails_keeps_its_dependent_from_running(start, tmp_path: Path) -> None:
    broken = ("finetune.base_lr=1e30", "finetune.epochs=3")  # not finite after a step
    assert start(tmp_path, ["finetune", "robustness"], *ON, sets=broken).returncode == 0
    found = wait(tmp_path, ended)
    assert (found["mine/finetune"], found["mine/robustness"]) == ("failed", "not run")
    kept = records(tmp_path)
    assert kept["finetune"]["status"] == kept["robustness"]["status"] == "failed"
    assert "diverged" in slurm_states.explained(tmp_path)["mine/finetune"].reason
    assert "diverged" in kept["finetune"]["reason"]
    assert kept["robustness"]["reason"].startswith("not run, since mine/finetune did not succeed: ")


def number_of(out: Path, name: str) -> str:
    return json.loads((out / "slurm/jobs.json").read_text())["tasks"][name]["job"]


def saved_step(out: Path) -> int:
    """The last step that finetune has saved; 0 where there is no state, as before the first and after the last."""
    try:
        return torch.load(next(out.glob("mine/finetune-*/training_state.pt")), weights_only=False)["step"]
    except (StopIteration, FileNotFoundError):
        return 0


def stopped_and_resumed(out: Path, steps: int, seconds: float = 120) -> None:
    """Waits until finetune is stopped and its job queued again, and to its end; it must go on from the saved step."""
    wait(out, lambda found: found["mine/finetune"] == "pending", seconds)
    step, seen = saved_step(out), set()
    assert 0 < step < steps

    def look(found: dict[str, str]) -> bool:
        seen.add(saved_step(out))  # a run from the beginning would save smaller ones for seconds
        return ended(found)

    assert wait(out, look) == dict.fromkeys(["data", "mine/convert", "mine/finetune", "table"], "done")
    assert min(seen - {0}) == step < max(seen), seen
    assert records(out)["finetune"]["status"] == "ok"


@pytest.mark.parametrize("way", ["USR2", "preemption"])
def test_a_job_that_is_stopped_goes_on_from_its_state(start, tmp_path: Path, way: str) -> None:
    assert start(tmp_path, ["finetune"], *ON, sets=("finetune.epochs=300",)).returncode == 0
    wait(tmp_path, lambda found: saved_step(tmp_path) > 20)
    if way == "USR2":
        subprocess.run(["scancel", "--signal=USR2", number_of(tmp_path, "mine/finetune")], check=True)
    else:
        line = ["sbatch", "--partition=high", "--exclusive", "--time=1", "--output=/dev/null"]
        subprocess.run(line, input="#!/bin/bash\nsleep 2", text=True, check=True, timeout=60)
    stopped_and_resumed(tmp_path, 300)
    log = (tmp_path / f"slurm/{number_of(tmp_path, 'mine/finetune')}_0_log.out").read_text()
    assert "run_all.py: stopped by SIGTERM" in log and "mine/finetune: failed" not in log  # in order, not by USR2


@pytest.mark.slow
def test_a_job_that_reaches_its_limit_goes_on_from_its_state(start, tmp_path: Path) -> None:
    limit = ["--launch", "slurm", "--slurm", "partition=low,time=2"]  # USR2 comes after half a minute
    assert start(tmp_path, ["finetune"], *limit, sets=("finetune.epochs=600",)).returncode == 0
    wait(tmp_path, lambda found: found["mine/finetune"] == "running")
    job = number_of(tmp_path, "mine/finetune")
    wait(tmp_path, ended, 900)
    facts = subprocess.run(["scontrol", "show", "job", job], capture_output=True, text=True).stdout
    assert int(re.search(r"Restarts=(\d+)", facts)[1]) >= 1, facts
    # from the beginning each time, it would not have come so far in half a minute
    assert records(tmp_path)["finetune"]["status"] == "ok"


def test_an_out_that_the_node_cannot_see_is_said_by_the_first_job(start, tmp_path: Path) -> None:
    out = tmp_path / "out"
    later = ["--launch", "slurm", "--slurm", "partition=low,time=30,begin=now+4"]
    assert start(out, ["knn"], *later).returncode == 0
    job = number_of(out, "mine/convert")
    out.rename(tmp_path / "elsewhere")  # the node no longer finds it
    deadline = time.monotonic() + 60
    while job in queued():
        assert time.monotonic() < deadline
        time.sleep(0.5)
    (tmp_path / "elsewhere").rename(out)
    found = slurm_states.explained(out)
    assert "cannot see OUT; choose an --out on a file system that the nodes share" in found["mine/convert"].reason
    wait(out, lambda found: found["mine/knn"] == "not run", 30)


def queued() -> list[str]:
    """The jobs that squeue knows."""
    line = ["squeue", "--noheader", "--array", "--format=%i"]
    return subprocess.run(line, capture_output=True, text=True, check=True).stdout.split()


def test_what_slurm_refuses_is_one_sentence_and_leaves_no_job(start, tmp_path: Path) -> None:
    said = start(tmp_path, ["knn"], "--launch", "slurm", "--slurm", "partition=nowhere,time=30")
    assert said.returncode == 2 and len(said.stderr.splitlines()) == 1
    assert "Slurm refuses the job of data: invalid partition specified: nowhere" in said.stderr
    said = start(tmp_path, ["knn"], "--launch", "slurm", "--slurm", "time=30,no-such-option=1")
    assert said.returncode == 2 and "no-such-option" in said.stderr and len(said.stderr.splitlines()) == 1
    assert slurm_states.states(tmp_path) == {}


def test_a_controller_that_is_away_is_one_sentence_and_nothing_is_taken_for_ended(
    start, cluster, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "records").mkdir()
    (tmp_path / "slurm").mkdir()
    kept = {"token": "x", "tasks": {"mine/knn": {"job": "1_0", "command": [], "needs": []}}}
    (tmp_path / "slurm/jobs.json").write_text(json.dumps(kept))
    text = Path(cluster.environment["SLURM_CONF"]).read_text()
    (tmp_path / "slurm.conf").write_text(re.sub("SlurmctldPort=.*", "SlurmctldPort=1\nMessageTimeout=2", text))
    monkeypatch.setenv("SLURM_CONF", str(tmp_path / "slurm.conf"))
    line = [sys.executable, "run_all.py", "--status", str(tmp_path)]
    done = subprocess.run(line, cwd=HERE, capture_output=True, text=True, timeout=100)
    assert done.returncode == 2 and "Slurm does not answer" in done.stderr, done.stdout + done.stderr
    assert len(done.stderr.splitlines()) == 1
