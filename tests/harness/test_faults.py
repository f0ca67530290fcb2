"""A run that is stopped again and again, at random moments and in every way, loses nothing and leaves nobody behind.

In full: -m slow.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import run_all
from evaluate.data import toy
from evaluate.harness import executor
from pretrain import train

HERE = Path(run_all.__file__).parent
SMALL = toy.World(
    unlabelled_per_class=1,
    train_per_class=24,
    val_per_class=8,
    list_per_class=5,
    shifted_per_class=2,
    corrupted_per_class=1,
)
OPTIONS = ["--tasks", "finetune,linear_probe,few_shot,knn,robustness", "--preset", "demo", "--device", "cpu"]
OPTIONS += ["--set", "finetune.epochs=3", "--set", "finetune.warmup_epochs=1"]
OPTIONS += ["--set", "linear_probe.epochs=4", "--set", "linear_probe.warmup_epochs=1"]
WAYS = {"SIGTERM": signal.SIGTERM, "SIGHUP": signal.SIGHUP, "SIGINT": signal.SIGINT, "SIGKILL": signal.SIGKILL}


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("faults")
    world = toy.make(folder / "world", SMALL)
    assert (
        train.main(["--preset", "demo", "--data", str(world / "imagenet/train"), "--out", str(folder), "--init-only"])
        == 0
    )
    return [
        sys.executable,
        "run_all.py",
        "--ckpt",
        f"mine={folder / 'checkpoint.pth'}",
        "--data-root",
        str(world),
        *OPTIONS,
    ]


@pytest.fixture(scope="module")
def whole(command: list[str], tmp_path_factory: pytest.TempPathFactory) -> str:
    """The table of an unbroken run."""
    out = tmp_path_factory.mktemp("whole")
    done = subprocess.run([*command, "--out", str(out)], cwd=HERE, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr
    return (out / "table.csv").read_text()


def processes_of(out: Path) -> list[int]:
    listed = subprocess.run(
        ["ps", "-wweo", "pid,stat,args"], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    return [int(line.split()[0]) for line in listed if f"{out}" in line and line.split()[1][0] != "Z"]


def records(out: Path) -> dict[str, bytes]:
    """The finished ones, by name."""
    found = {path.name: path.read_bytes() for path in (out / "records").glob("*.json")}
    return {name: content for name, content in found.items() if json.loads(content)["status"] == "ok"}


@pytest.mark.parametrize(
    ("way", "target", "count"),
    [
        ("SIGTERM", "run", 1),
        ("SIGKILL", "group", 1),
        *(
            pytest.param(way, target, 20, marks=pytest.mark.slow)
            for way in WAYS
            for target in (("run", "task", "group") if way == "SIGKILL" else ("run",))
        ),
    ],
)
def test_stopped_at_random_moments(
    way: str, target: str, count: int, command: list[str], whole: str, tmp_path: Path
) -> None:
    draw = random.Random(f"{way} {target} {count}")
    earned: dict[str, bytes] = {}
    orphans = 0
    for _ in range(count):
        process = subprocess.Popen(
            [*command, "--out", str(tmp_path)],
            cwd=HERE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        time.sleep(draw.uniform(0.2, 20.0))
        victims = [pid for pid in processes_of(tmp_path) if pid != process.pid]
        if target == "task" and victims:
            os.kill(draw.choice(victims), WAYS[way])
            assert process.wait(300) in (0, 1)
        else:
            process.send_signal(WAYS[way])
            for pid in victims if target == "group" else []:
                try:
                    os.kill(pid, WAYS[way])
                except ProcessLookupError:
                    pass
            process.wait(60)
        time.sleep(5 if way == "SIGKILL" and target == "run" else 0.5)
        orphans += len(processes_of(tmp_path))
        now = records(tmp_path)
        assert all(now[name] == content for name, content in earned.items()), "a finished record was changed or lost"
        earned = now
    assert orphans == 0
    done = subprocess.run([*command, "--out", str(tmp_path)], cwd=HERE, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "table.csv").read_text() == whole
    assert all(records(tmp_path)[name] == content for name, content in earned.items())
    print(f"{way} to {target}: {count} times, {orphans} orphans, {len(earned)} records kept, the same table")


# The same command on a disk of so much, and again when the disk has become larger; what was finished is told between.
ON_A_SMALL_DISK = """
out=$1 size=$2; shift 2
mount -t tmpfs -o size=$size tmpfs "$out" || exit 99
"$@" --out "$out" > "$out.said" 2>&1; echo "first: $?"
cp -r "$out/records" "$out.earned"
mount -o remount,size=100m "$out"
"$@" --out "$out" > "$out.again" 2>&1; echo "second: $?"
cp -r "$out" "$out.end"
"""


@pytest.mark.parametrize(
    "size",
    ["900k", *(pytest.param(size, marks=pytest.mark.slow) for size in ("350k", "450k", "600k", "1100k"))],
)
def test_a_disk_that_fills_under_the_tasks_loses_nothing(
    size: str, command: list[str], whole: str, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    script = ["unshare", "--mount", "bash", "-c", ON_A_SMALL_DISK, "small", str(out), size, *command]
    done = subprocess.run(script, cwd=HERE, capture_output=True, text=True, timeout=600)
    if "first" not in done.stdout:
        pytest.skip(f"a small disk can be mounted by root alone: {done.stderr.strip()}")
    said = Path(f"{out}.said").read_text()
    assert "first: 1" in done.stdout or "first: 2" in done.stdout, said
    assert "make room" in said and "Traceback" not in said and "Error" not in said, said
    assert "second: 0" in done.stdout, Path(f"{out}.again").read_text()
    end = Path(f"{out}.end")
    assert (end / "table.csv").read_text() == whole
    for path in Path(f"{out}.earned").glob("*.json"):
        if json.loads(path.read_text())["status"] == "ok":
            assert (end / "records" / path.name).read_bytes() == path.read_bytes(), "it was measured again"


def test_the_grace_period_is_stated() -> None:
    assert f"{executor.GRACE_SECONDS:.0f} seconds" in (HERE / "README.md").read_text()
