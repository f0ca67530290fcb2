"""The demo on a user's own images, end to end, and what makes two demos different ones."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from evaluate.data.identity import DataIdentities
from evaluate.harness import demo, plan
from tests.worlds import write_world

ROOT = Path(__file__).parents[2]


def test_checkpoints_lie_where_only_the_same_demo_finds_them(tmp_path: Path) -> None:
    world = write_world(tmp_path / "data", train=3, val=1)
    first = demo.Demo(tmp_path, DataIdentities(world, tmp_path / "manifests"), 0, "cpu", 5.0)
    same = replace(first)
    others = [replace(first, seed=1), replace(first, minutes=6.0), replace(first, minutes=None)]
    found = [str(one.checkpoints()["mae"]) for one in (first, same, *others)]
    (world / "imagenet/train/n00000001/new.png").write_bytes(b"")
    other_images = replace(first, identities=DataIdentities(world, tmp_path / "manifests"))
    found.append(str(other_images.checkpoints()["mae"]))
    assert found[0] == found[1] and len(set(found)) == 5


def test_what_the_user_sets_comes_first() -> None:
    nodes = plan.choose(["knn", "finetune"])
    found = demo.with_settings(nodes, {"finetune": {"epochs": "3"}})
    assert found["finetune"]["epochs"] == "3" and found["finetune"]["img_size"] == "48" and found["knn"] == demo.SIZES
    assert set(found) == {"knn", "finetune"}


def test_a_demo_on_images_of_ones_own(tmp_path: Path) -> None:
    world = write_world(tmp_path / "data", train=20, val=15)
    (world / "imagenet/1percent.txt").unlink()
    command = [sys.executable, "run_all.py", "--demo", "--data-root", str(world), "--out", str(tmp_path / "out")]
    command += ["--device", "cpu", "--minutes", "0.05", "--tasks", "few_shot,knn"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "about 0.05 minutes of pretraining each" in done.stdout and "1%: siameseim" in done.stdout
    entries = [json.loads(path.read_text()) for path in (tmp_path / "out/records").glob("*.json")]
    assert {(entry["encoder"], entry["task"]) for entry in entries if entry["status"] == "ok"} == {
        (row, task) for row in demo.ROWS for task in ("few_shot", "knn")
    }
    assert len({entry["encoder_fingerprint"] for entry in entries}) == 3
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert again.returncode == 0 and "started" not in again.stdout, "a second start repeats nothing"
