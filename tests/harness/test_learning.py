"""Pretraining helps, and detection and segmentation learn: the demo must be able to fail."""

import json

import pytest

from evaluate import knn, linear_probe
from evaluate.data import toy
from pretrain import train
from results import predictions
from results.tables import paired_difference

WORLD = toy.World(
    shifted_per_class=1, corrupted_per_class=1
)  # the demo's images for pretraining, train and val in full
EPOCHS = 3  # of the demo's 16


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    out = tmp_path_factory.mktemp("learning")
    root = toy.make(out, WORLD)
    for name, options in (("siameseim", ["--set", f"epochs={EPOCHS}"]), ("random", ["--init-only"])):
        fixed = [
            "--preset",
            "demo",
            "--device",
            "cpu",
            "--data",
            str(root / "unlabelled"),
            "--out",
            str(out / name),
        ]
        assert train.main([*fixed, *options]) == 0
        for module in (linear_probe, knn):
            task = module.__name__.split(".")[-1]
            options = [
                "--ckpt",
                str(out / name / "checkpoint.pth"),
                "--data-root",
                str(root),
                "--out",
                str(out),
                "--name",
                name,
                "--preset",
                "demo",
            ]
            assert linear_probe.main(task, [*options, "--device", "cpu"]) == 0
    return out


@pytest.mark.parametrize("task", ["linear_probe", "knn"])
def test_siameseim_is_ahead_of_its_random_start(outcomes, task):
    first, second = (
        predictions.outcome(predictions.load(next((outcomes / name).glob(f"{task}-*"))), "top1")
        for name in ("siameseim", "random")
    )
    difference, half = paired_difference(first, second)
    assert difference - half > 0, f"{difference:.1f} points, interval half width {half:.1f}"


def test_the_records_hold_the_numbers_of_the_predictions(outcomes):
    for path in (outcomes / "records").glob("*.json"):
        entry = json.loads(path.read_text())
        correct = predictions.outcome(predictions.load(outcomes / entry["work"]), "top1")
        trained = {"curves.jsonl", "head.safetensors"} if entry["task"] == "linear_probe" else set()
        left = {"predictions.npz", "pictures"} | trained
        assert set(entry["artifacts"]) == left
        assert entry["metrics"]["top1"] == pytest.approx(100 * correct.mean(), abs=1e-4)
