"""The demo on a user's own images, end to end."""

import json
import subprocess
import sys
from pathlib import Path

from evaluate.harness import demo, plan
from tests.worlds import write_world

ROOT = Path(__file__).parents[2]


def test_what_the_user_sets_comes_first() -> None:
    nodes = plan.choose(["knn", "finetune"])
    found = demo.with_settings(nodes, {"finetune": {"epochs": "3"}})
    assert found["finetune"]["epochs"] == "3" and found["finetune"]["img_size"] == "48" and found["knn"] == demo.SIZES
    assert set(found) == {"knn", "finetune"}


def test_a_demo_on_images_of_ones_own(tmp_path: Path) -> None:
    world = write_world(tmp_path / "data", train=40, val=15)  # two steps an epoch: the rate of the first is 0
    (world / "imagenet/1percent.txt").unlink()
    command = [sys.executable, "run_all.py", "--demo", "--data-root", str(world), "--out", str(tmp_path / "out")]
    command += ["--device", "cpu", "--minutes", "0.05", "--tasks", "few_shot,knn"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "about 0.05 minutes of pretraining each" in done.stdout and "1%: siameseim" in done.stdout
    entries = [json.loads(path.read_text()) for path in (tmp_path / "out/records").glob("*.json")]
    assert {(entry["encoder"], entry["task"]) for entry in entries if entry["status"] == "ok"} == {
        (row, task) for row in demo.PHOTOGRAPHS for task in ("few_shot", "knn")
    }
    assert len({entry["encoder_fingerprint"] for entry in entries}) == 3
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert again.returncode == 0 and "started" not in again.stdout, "a second start repeats nothing"
