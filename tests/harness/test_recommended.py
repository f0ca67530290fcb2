"""A checkpoint is probed by the protocol of its own method, unless a preset is asked for."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from evaluate.harness import plan, task
from evaluate.harness.cost import VIT_B
from evaluate.linear_probe import PRESETS
from pretrain import train
from tests.factories import mae_state
from tests.worlds import write_world

ROOT = Path(__file__).parents[2]
SHORT = {"epochs": "1", "warmup_epochs": "0", "batch_size": "16", "micro_batch": "16", "img_size": "32", "resize": "32"}
SMALL = ["block=bottleneck", "width_per_group=4"]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root, with the checkpoints simsiam.pth and mae.pth beside it."""
    folder = tmp_path_factory.mktemp("probes")
    write_world(folder / "data", train=8, val=4)
    images = ["--data", str(folder / "data/imagenet/train"), "--out", str(folder / "run"), "--device", "cpu"]
    sets = [part for setting in SMALL for part in ("--set", setting)]
    assert train.main(["--preset", "simsiam_demo", *images, *sets, "--init-only"]) == 0
    (folder / "run/checkpoint.pth").rename(folder / "simsiam.pth")
    torch.save({"model": mae_state()}, folder / "mae.pth")
    return folder / "data"


def records(out: Path) -> dict[tuple[str, str], dict]:
    """By row and preset."""
    entries = [json.loads(path.read_text()) for path in (out / "records").iterdir()]
    return {(entry["encoder"], entry["preset"]): entry for entry in entries}


def test_a_table_has_each_methods_own_probe(world: Path, tmp_path: Path) -> None:
    command = [sys.executable, "run_all.py", "--data-root", str(world), "--out", str(tmp_path), "--device", "cpu"]
    command += ["--ckpt", str(world.parent / "simsiam.pth"), str(world.parent / "mae.pth"), "--tasks", "linear_probe"]
    command += [part for name, value in SHORT.items() for part in ("--set", f"linear_probe.{name}={value}")]

    def run(*options: str) -> str:
        done = subprocess.run([*command, *options], cwd=ROOT, capture_output=True, text=True, timeout=400)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    said = run()
    told = (
        "simsiam/linear_probe by the protocol of the encoder's method (preset simsiam); --preset paper is SiameseIM's"
    )
    assert told in said and "mae/linear_probe by" not in said
    found = records(tmp_path)
    assert found.keys() == {("simsiam", "simsiam"), ("mae", "paper")}
    assert found["simsiam", "simsiam"]["config"]["optimizer"] == "larc"
    assert "optimizer larc; paper: lars" in said, "the cell is marked"
    assert "(simsiam)" in run("--dry-run") and "started" not in run(), "what stands is not measured again"
    run("--preset", "paper")
    assert records(tmp_path).keys() == found.keys() | {("simsiam", "paper")}


def test_a_task_alone_takes_the_methods_own_probe(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    common = ["--ckpt", str(world.parent / "simsiam.pth"), "--data-root", str(world), "--out", str(tmp_path)]
    common += ["--device", "cpu", *(part for name, value in SHORT.items() for part in ("--set", f"{name}={value}"))]
    assert task.main("linear_probe", common) == 0
    assert "linear_probe by the protocol of the encoder's method (preset simsiam)" in capsys.readouterr().out
    assert task.main("linear_probe", [*common, "--preset", "moco", "--set", "milestones=[1]"]) == 0
    assert task.main("linear_probe", [*common, "--set", "views=cached"]) == 0  # LIN fast is the same for all
    assert records(tmp_path).keys() == {("simsiam", preset) for preset in ("simsiam", "moco", "paper")}


def test_what_the_user_sets_comes_first(world: Path) -> None:
    class Spec:
        source_format = "moco"

    nodes = plan.choose(["linear_probe", "linear_fast", "knn"])
    found = {name: preset for name, (preset, _) in plan.configure(nodes, None, {}, Spec()).items()}
    assert found == {"linear_probe": "moco", "linear_fast": "paper", "knn": "paper"}
    assert plan.configure(nodes, "paper", {}, Spec())["linear_probe"] == ("paper", PRESETS["paper"])
    own = plan.configure(nodes, None, {"linear_probe": {"preset": "mae_large"}}, Spec())
    assert own["linear_probe"] == ("mae_large", PRESETS["mae_large"])


def test_encoders_of_the_same_recommendations_share_their_configs() -> None:
    nodes = plan.choose(["linear_probe", "knn"])
    of_encoder = plan.for_encoders(nodes, None, {})
    moco, other = (replace(VIT_B, source_format=name) for name in ("moco_v3_vit", "mae"))
    assert of_encoder(moco) is of_encoder(replace(moco, embed_dim=384)) and of_encoder(other) is of_encoder(None)
    assert of_encoder(moco)["linear_probe"][0] == "moco_v3_vit" and of_encoder(other)["linear_probe"][0] == "paper"
