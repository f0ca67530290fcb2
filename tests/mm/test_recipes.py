"""Every file of mm_configs builds, and holds no key that nobody reads."""

from pathlib import Path

import pytest
import torch

from evaluate import detection, segmentation
from evaluate.errors import UserError
from evaluate.mm import runner
from evaluate.task import Env
from tests.mm.conftest import tiny_encoder, tiny_resnet

RECIPES = sorted(path.stem for path in runner.RECIPES.glob("*.py"))
# what evaluate/ and mmengine's Runner read; all else at top level must be a number that the file itself uses
READ = {
    "default_scope", "model", "optim_wrapper", "param_scheduler", "train_dataloader", "test_dataloader", "test_evaluator", "train_cfg",
    "test_cfg", "batch_size",
}  # fmt: skip


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_builds(name: str, world: Path, tmp_path: Path) -> None:
    from mmengine.config import ConfigDict
    from mmengine.optim import build_optim_wrapper
    from mmengine.registry import DATASETS, EVALUATOR, MODELS, PARAM_SCHEDULERS, DefaultScope

    cfg = runner.read_recipe(name)
    encoder = tiny_resnet() if "resnet" in name else tiny_encoder()
    env = Env(world, tmp_path)
    if name.endswith("ade20k"):
        segmentation.fill_encoder(cfg, encoder)
        segmentation.fill_data(cfg, env)
    else:
        detection.fill_encoder(cfg, encoder)
        detection.fill_data(cfg, name.rpartition("_")[2], env)
    text = "\n".join(path.read_text() for path in runner.RECIPES.glob("*.py"))
    for key, value in cfg.items():
        if key not in READ and not isinstance(value, type) and not callable(value):
            assert text.count(key) > 1, f"{name}: nobody reads {key}"
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        model = MODELS.build(cfg.model)
        model.backbone.load(encoder.spec, encoder.model.state_dict())
        model.init_weights()
        own, theirs = model.backbone.state_dict(), encoder.model.state_dict()
        key = "layer2.0.conv1.weight" if "resnet" in name else "blocks.1.mlp.fc1.weight"
        kept = own[f"model.{key}" if "resnet" in name else key]
        assert torch.equal(kept, theirs[key]), "initialising the heads changed the encoder"
        wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
        assert sum(len(group["params"]) for group in wrapper.optimizer.param_groups) == len(list(model.parameters()))
        for scheduler in cfg.param_scheduler:
            PARAM_SCHEDULERS.build(ConfigDict(scheduler), default_args={"optimizer": wrapper.optimizer})
        EVALUATOR.build({"type": "Evaluator", "metrics": cfg.test_evaluator})
        for loader in (cfg.train_dataloader, cfg.test_dataloader):
            sample = DATASETS.build(loader.dataset)[(0, 0) if loader is cfg.train_dataloader else 0]
            assert sample["inputs"].dtype == torch.uint8 and "data_samples" in sample


def test_the_papers_numbers() -> None:
    coco, lvis = (runner.read_recipe(f"mask_rcnn_vitdet_100ep_{name}") for name in ("coco", "lvis"))
    assert (coco.train_cfg.max_iters, lvis.train_cfg.max_iters) == (184_375, 156_250)
    assert (coco.optim_wrapper.optimizer.lr, lvis.optim_wrapper.optimizer.lr) == (1e-4, 2e-4)
    assert (coco.batch_size, lvis.model.test_cfg.rcnn.max_per_img, lvis.model.test_cfg.rcnn.score_thr) == (64, 300, 0.02)
    assert coco.model.train_cfg.rcnn.assigner.match_low_quality is False
    ade = runner.read_recipe("upernet_vit_160k_ade20k")
    assert (ade.train_cfg.max_iters, ade.batch_size, tuple(ade.model.test_cfg.stride)) == (160_000, 16, (341, 341))


def test_a_shortened_recipe_keeps_its_shape() -> None:
    cfg = runner.read_recipe("mask_rcnn_vitdet_100ep_coco")
    runner.shorten(cfg, 1000, 16, 5e-5)
    assert cfg.train_cfg.max_iters == 1000 and cfg.batch_size == 16 and cfg.optim_wrapper.optimizer.lr == 5e-5
    assert cfg.param_scheduler[1].milestones == [889, 963]
    runner.shorten(cfg, 2, None, None)
    assert cfg.param_scheduler[0].end > cfg.param_scheduler[0].begin
    cfg.train_dataloader.batch_size = 16
    runner.accumulate(cfg, 4)
    assert cfg.train_cfg.max_iters == 8 and cfg.train_dataloader.batch_size == 4 and cfg.optim_wrapper.accumulative_counts == 4
    with pytest.raises(UserError, match="divisor"):
        runner.accumulate(cfg, 3)
    with pytest.raises(ValueError, match="upernet_vit_demo_ade20k"):
        runner.read_recipe("nothing")
