"""The learning loop is right: what was trained on a few toy images is found on those images.

The full forms are slow; the short ones see fewer images for fewer iterations and ask for less, which an untrained model
does not reach.
"""

import dataclasses
import shutil
from pathlib import Path

import pytest

from evaluate import detection, segmentation
from evaluate.data import toy_dense
from evaluate.encoder.model import Encoder
from evaluate.runtime.env import Env
from tests.factories import tiny_encoder

SETTINGS = {"coco": (detection, {"dataset": "coco"}), "ade20k": (segmentation, {"batch_size": 8})}
# data: images, iterations, and what each metric must exceed
SHORT = {"coco": (2, 60, {"box_ap50": 30, "mask_ap50": 20}), "ade20k": (2, 80, {"miou": 40})}
FULL = {"coco": (8, 300, {"box_ap50": 70, "mask_ap50": 60}), "ade20k": (8, 200, {"miou": 60})}


@pytest.fixture(scope="module")
def seen_world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight images, which are both the training and the validation set."""
    root = tmp_path_factory.mktemp("seen")
    toy_dense.make(root, seed=0, train_images=8, val_images=1)
    shutil.copy(root / "coco/annotations/instances_train2017.json", root / "coco/annotations/instances_val2017.json")
    for folder in ("coco/{}2017", "ade20k/images/{}ing", "ade20k/annotations/{}ing"):
        seen, tested = (
            root / folder.format("train"),
            root / folder.format("train").replace("training", "validation").replace("train2", "val2"),
        )
        shutil.rmtree(tested)
        shutil.copytree(seen, tested)
    return root


def overfit(name: str, images: int, iterations: int, encoder: Encoder, world: Path, out: Path) -> dict[str, float]:
    module, changes = SETTINGS[name]
    config = dataclasses.replace(module.PRESETS["demo"], iterations=iterations, **changes)
    metrics = module.run(encoder, config, Env(world, out, limit=images))
    print({key: round(value, 1) for key, value in metrics.items()})
    return metrics


@pytest.mark.parametrize("name", SHORT)
def test_two_images_are_learnt(name: str, seen_world: Path, tmp_path: Path) -> None:
    images, iterations, bounds = SHORT[name]
    metrics = overfit(name, images, iterations, tiny_encoder(), seen_world, tmp_path)
    assert all(metrics[key] > bound for key, bound in bounds.items()), metrics


@pytest.mark.slow
@pytest.mark.parametrize("name", FULL)
def test_eight_images_are_learnt(name: str, seen_world: Path, tmp_path: Path) -> None:
    images, iterations, bounds = FULL[name]
    metrics = overfit(name, images, iterations, tiny_encoder(), seen_world, tmp_path)
    assert all(metrics[key] > bound for key, bound in bounds.items()), metrics
