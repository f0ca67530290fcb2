"""Linear heads on frozen encoders, built from their recipes, and a batch to train one on."""

import torch
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, DefaultScope
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample

from evaluate.encoder.model import Encoder
from evaluate.mm import frozen, recipes, runner

CLASSES = 7


def recipe(encoder: Encoder, name: str = "linear_vit_demo_ade20k"):
    cfg = recipes.read_recipe(name)
    frozen.fill_encoder(cfg, encoder)
    cfg.model.decode_head.num_classes = CLASSES
    return cfg


def built(encoder: Encoder, cfg) -> torch.nn.Module:
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope("mmseg"):
        model = revert_sync_batchnorm(MODELS.build(cfg.model))
        model.init_weights()
    runner.load_encoder(model, encoder)
    return model.train()


def batch(side: int, count: int = 4) -> tuple[torch.Tensor, list[SegDataSample]]:
    generator = torch.Generator().manual_seed(1)
    samples = []
    for _ in range(count):
        labels = torch.randint(0, CLASSES, (1, side, side), generator=generator)
        labels[:, :5] = 255
        samples.append(
            SegDataSample(
                gt_sem_seg=PixelData(data=labels), metainfo={"img_shape": (side, side), "pad_shape": (side, side)}
            )
        )
    return torch.randn(count, 3, side, side, generator=generator), samples
