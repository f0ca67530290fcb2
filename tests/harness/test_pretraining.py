"""What run_all.py pretrains: presets as rows, end to end, and what makes two pretrainings different ones."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from evaluate.data import toy
from evaluate.data.identity import DataIdentities
from evaluate.harness import executor, pretraining
from evaluate.runtime.errors import UserError
from tests.worlds import write_world

ROOT = Path(__file__).parents[2]
WORLD = toy.World(unlabelled_per_class=8, train_per_class=6, val_per_class=4, list_per_class=2, shifted_per_class=2)
SHORT = {"epochs": "1", "warmup_epochs": "0", "batch_size": "16", "depth": "1"}


def described(folder: Path, presets: dict[str, str], **changes: object) -> pretraining.Pretraining:
    """Of a small world in a folder."""
    world = folder / "data" if (folder / "data").is_dir() else write_world(folder / "data", train=8, val=1)
    identities = DataIdentities(world, folder / "manifests")
    return replace(pretraining.Pretraining(folder, identities, presets, 0, "cpu"), **changes)


def test_checkpoints_lie_where_only_the_same_pretraining_finds_them(tmp_path: Path) -> None:
    first = described(tmp_path, {"mae": "mae_small"}, minutes=5.0)
    same = replace(first)
    others = [{"seed": 1}, {"minutes": 6.0}, {"minutes": None}, {"presets": {"mae": "mae_demo"}}]
    others += [{"settings": {"epochs": "3"}}, {"settings": {"model": "vit_small"}}]
    found = [str(one.checkpoints()["mae"]) for one in (first, same, *(replace(first, **other) for other in others))]
    (tmp_path / "data/imagenet/train/n00000001/new.png").write_bytes(b"")
    found.append(str(described(tmp_path, {"mae": "mae_small"}, minutes=5.0).checkpoints()["mae"]))
    assert found[0] == found[1] and len(set(found)) == 2 + len(others)


def test_rows_are_named_by_their_presets() -> None:
    assert pretraining.named_presets(["demo", "start=demo@start", "demo+random_mask"]) == {
        "demo": "demo",
        "start": "demo@start",
        "demo+random_mask": "demo+random_mask",
    }
    with pytest.raises(UserError, match="two rows are called 'demo'"):
        pretraining.named_presets(["demo", "demo"])
    with pytest.raises(UserError, match="cannot be called 'data'"):
        pretraining.named_presets(["data=demo"])


@pytest.mark.parametrize(
    ("preset", "settings", "says"),
    [
        ("dome", {}, "pretraining dome: there is no preset 'dome'; the presets are"),
        ("demo", {"epochs": "soon"}, "setting 'epochs' is a whole number above 0, not 'soon'"),
        ("demo", {"model": "vit_tiny"}, "pretraining demo: argument --model: invalid choice: 'vit_tiny'"),
        ("clip_demo", {}, "pretraining clip_demo: it takes pairs of image and caption"),
        ("demo@start", {"color": "1"}, "unknown setting 'color'"),
    ],
)
def test_what_cannot_be_trained_is_said_before_anything_runs(preset: str, settings: dict[str, str], says: str) -> None:
    with pytest.raises(UserError) as error:
        pretraining.resolve({"bad": preset}, 0, settings)
    assert says in str(error.value) and "\n" not in str(error.value)


def test_an_edited_preset_is_another_pretraining_and_its_batch_says_how_many_gpus_share_it(tmp_path: Path) -> None:
    resolved = pretraining.resolve({"mine": "demo"}, 0, {"batch_size": "96"})
    assert resolved["mine"]["batch_size"] == 96 and resolved["mine"]["method"] == "siameseim"
    made = described(tmp_path, {"mine": "demo"}, settings={"batch_size": "96"}, resolved=resolved)
    edited = replace(made, resolved={"mine": {**resolved["mine"], "mask_ratio": 0.1}})
    assert made.checkpoints() != edited.checkpoints() == replace(edited).checkpoints()
    assert [pretraining.processes(resolved["mine"], gpus) for gpus in (0, 1, 2, 3, 6, 8)] == [1, 1, 2, 2, 4, 8]
    assert pretraining.processes({**resolved["mine"], "batch_size": 90}, 8) == 2


def test_several_gpus_share_one_pretraining(tmp_path: Path) -> None:
    made = described(tmp_path, {"mine": "demo"}, settings=SHORT)
    (job,) = made.jobs()
    job.slots = 2
    assert "evaluate.runtime.torchrun --standalone --nproc-per-node 2 -m pretrain.train" in " ".join(job.command())
    executor.run([job], 2)
    assert job.status == 0, job.log.read_text()
    saved = torch.load(made.checkpoints()["mine"], weights_only=True)
    assert saved["step"] == 2 and saved["normalised_together"] == 16
    assert executor.Job("again", job.command, job.log, is_done=job.is_done).is_done()


def test_an_ablation_is_one_command_that_repeats_nothing(tmp_path: Path) -> None:
    data = toy.make(tmp_path / "data", WORLD)
    command = [sys.executable, "run_all.py", "--out", str(tmp_path / "out"), "--data-root", str(data)]
    command += ["--tasks", "knn", "--device", "cpu", "--jobs", "1"]
    command += [part for name, value in SHORT.items() for part in ("--set", f"pretrain.{name}={value}")]
    rows = ["demo", "random=demo+random_mask", "start=demo@start"]
    done = subprocess.run([*command, "--ablate", *rows], cwd=ROOT, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stdout + done.stderr
    entries = {e["encoder"]: e for e in map(json.loads, (p.read_text() for p in (tmp_path / "out/records").iterdir()))}
    assert entries.keys() == {"demo", "random", "start"} and all(e["preset"] == "demo" for e in entries.values())
    assert len({entry["encoder_fingerprint"] for entry in entries.values()}) == 3
    masks = {
        path.parent.name.split("-")[0]: json.loads(path.read_text())["mask"]
        for path in tmp_path.rglob("config.json")
        if "pretrain" in path.parts
    }
    assert masks == {"demo": "block", "random": "random", "start": "block"}
    (start,) = (tmp_path / "out/pretrain").glob("start-*/checkpoint.pth")
    assert torch.load(start, weights_only=True)["step"] == 0
    assert "kNN: demo" in done.stdout and "| random" in done.stdout
    one_more = [*command, "--ablate", *rows, "same=demo+same_view"]
    again = subprocess.run(one_more, cwd=ROOT, capture_output=True, text=True, timeout=400)
    assert again.returncode == 0, again.stdout + again.stderr
    started = [line.split(":")[0] for line in again.stdout.splitlines() if ": started" in line]
    assert started == ["same/pretrain", "same/convert", "same/knn"] and "| same" in again.stdout
