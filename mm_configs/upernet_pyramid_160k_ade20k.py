# ruff: noqa: F403, F405
"""UPerNet on the four maps of a model of timm's, or of a user's class, on ADE20k.

    python -m evaluate.segmentation --ckpt timm:convnext_tiny@FILE --data-root DIR

160,000 iterations of 16 crops of 512 pixels; AdamW with the numbers of Swin's recipe (arXiv 2103.14030, section 4.3),
on 8 GPUs with two crops each. Not the protocol of the SiameseIM table, which has ViTs only. No published mIoU of
exactly this recipe.
"""

from mmengine.config import read_base

with read_base():
    from ._upernet_ade20k import *

from mmengine.optim import LinearLR, OptimWrapper, PolyLR
from torch.optim import AdamW

from evaluate.mm.backbones.pyramid import PyramidBackbone

batch_size = 16  # over all processes
max_iters = 160_000

model.update(backbone=dict(type=PyramidBackbone), decode_head=dict(channels=512), test_cfg=dict(mode="whole"))

optim_wrapper = dict(
    type=OptimWrapper,
    optimizer=dict(type=AdamW, lr=6e-5, betas=(0.9, 0.999), weight_decay=0.01),
    paramwise_cfg=dict(norm_decay_mult=0.0),
)
param_scheduler = [
    dict(type=LinearLR, start_factor=1e-6, by_epoch=False, begin=0, end=1500),
    dict(type=PolyLR, eta_min=0.0, power=1.0, by_epoch=False, begin=1500, end=max_iters),
]
train_cfg.update(max_iters=max_iters, val_interval=max_iters + 1)
