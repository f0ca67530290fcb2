"""Which settings of the dense tasks are another protocol, and what their records say of the data."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from evaluate import detection, segmentation
from evaluate.encoder.model import Encoder
from evaluate.mm import detector, recipe_names, recipes
from evaluate.runtime.env import Env
from tests.factories import tiny_resnet


@pytest.mark.parametrize("name", [name for name in recipes.names() if "vitdet" in name])
def test_vitdet_has_no_batch_norm(name: str) -> None:
    """So that the images of a micro-batch see nothing of each other."""
    from mmdet.registry import MODELS
    from mmengine.registry import DefaultScope

    cfg = recipes.read_recipe(name)
    text = str(cfg.model.to_dict())
    assert "BatchNorm" not in text and "'BN'" not in text and "SyncBN" not in text
    if "demo" in name:  # the others are large
        from tests.factories import tiny_encoder

        detector.fill_encoder(cfg, tiny_encoder())
        detector.fill_classes(cfg, [3] * 4)
        with DefaultScope.overwrite_default_scope("mmdet"):
            model = MODELS.build(cfg.model)
        assert not [part for part in model.modules() if isinstance(part, torch.nn.modules.batchnorm._BatchNorm)]


class Enough(Exception):
    """The task has said what it knows before it trains."""


def told(
    module: Any, encoder: Encoder, world: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, **changes: Any
) -> Env:
    def stop(*_: Any, **__: Any) -> None:
        raise Enough

    monkeypatch.setattr("evaluate.mm.runner.train_and_test", stop)
    env = Env(world, folder, limit=3)
    with pytest.raises(Enough):
        module.run(encoder, dataclasses.replace(module.PRESETS["demo"], **changes), env)
    return env


@pytest.mark.parametrize(
    ("module", "changes", "immaterial"),
    [
        (detection, {"micro_batch": 1}, {"micro_batch"}),
        (detection, {"iterations": 7, "micro_batch": 1}, {"micro_batch"}),
        (segmentation, {"micro_batch": 2}, {"multi_scale"}),
        (segmentation, {"micro_batch": 1000}, {"multi_scale", "micro_batch"}),
    ],
)
def test_micro_batches_matter_to_batch_norm_alone(
    module: Any,
    changes: dict,
    immaterial: set[str],
    encoder: Encoder,
    world: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert (
        set(told(module, encoder, world, tmp_path, monkeypatch, **changes).notes["immaterial"][""])
        - {"grad_checkpointing"}
        == immaterial
    )


def test_a_resnets_batch_norm_is_trained(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    env = told(detection, tiny_resnet(), world, tmp_path, monkeypatch, micro_batch=1)
    assert env.notes["immaterial"][""] == ["grad_checkpointing"]


def test_what_a_recipe_says_anyway_is_no_change(
    encoder: Encoder, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = recipes.read_recipe("mask_rcnn_vitdet_demo_coco")
    same = {"iterations": cfg.train_cfg.max_iters, "batch_size": cfg.batch_size, "lr": cfg.optim_wrapper.optimizer.lr}
    env = told(detection, encoder, world, tmp_path, monkeypatch, **same)
    assert {*same} <= set(env.notes["immaterial"][""])
    other = told(detection, encoder, world, tmp_path, monkeypatch, iterations=same["iterations"] + 1)
    assert "iterations" not in other.notes["immaterial"][""]
    own_name = recipe_names.RECIPES["vit", "paper", "coco"]
    assert "recipe" in told(detection, encoder, world, tmp_path, monkeypatch, recipe=own_name).notes["immaterial"][""]


@pytest.mark.parametrize(
    ("module", "changes", "sizes"),
    [
        (detection, {"dataset": "coco"}, {"coco_train": 24, "coco_val": 8}),
        (detection, {"dataset": "lvis"}, {"lvis_train": 24, "lvis_val": 8}),
        (segmentation, {}, {"ade20k_training": 24, "ade20k_validation": 8}),
    ],
)
def test_the_whole_set_is_counted_whatever_the_limit(
    module: Any,
    changes: dict,
    sizes: dict[str, int],
    encoder: Encoder,
    world: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    env = told(module, encoder, world, tmp_path, monkeypatch, **changes)
    assert {name: size["images"] for name, size in env.notes["sizes"].items()} == sizes
    assert all(size["classes"] > 1 for size in env.notes["sizes"].values())


def test_voc_is_counted(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    env = told(
        detection, tiny_resnet(), world, tmp_path, monkeypatch, dataset="voc", recipe="faster_rcnn_resnet_c4_24k_voc"
    )
    assert env.notes["sizes"] == {
        "voc_trainval": {"images": 12, "classes": 20},
        "voc_test": {"images": 6, "classes": 20},
    }
