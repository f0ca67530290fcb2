# ruff: noqa: F403, F405
"""Mask R-CNN with FPN on the maps of a timm model, or of a user's class, on COCO 2017: 90,000 iterations.

    torchrun --nproc-per-node 8 -m evaluate.detection --ckpt timm:convnext_tiny@FILE --data-root DIR

AdamW with the numbers of Swin's recipe (arXiv 2103.14030, section 4.2), on 8 GPUs with two
images each. Not the protocol of the SiameseIM table, which has ViTs only. No published box AP or
mask AP of exactly this recipe.
"""

from mmengine.config import read_base

with read_base():
    from ._coco_instances import *
    from ._mask_rcnn import *

from mmdet.models.necks import FPN
from mmengine.optim import LinearLR, MultiStepLR, OptimWrapper
from torch.optim import AdamW

from evaluate.mm.backbones.pyramid import PyramidBackbone
from evaluate.mm.transforms import ResizeShortest

image_size = 800
batch_size = 16  # over all processes
max_iters = 90_000

model.update(
    data_preprocessor=dict(pad_size_divisor=32),
    backbone=dict(type=PyramidBackbone),
    neck=dict(type=FPN, in_channels=None, out_channels=channels, num_outs=5, norm_cfg=None),
    rpn_head=dict(num_convs=1),
    roi_head=dict(
        bbox_head=dict(num_shared_convs=0, num_shared_fcs=2, norm_cfg=None),
        mask_head=dict(norm_cfg=None),
    ),
    train_cfg=dict(rcnn=dict(mask_size=28)),
)

optim_wrapper = dict(
    type=OptimWrapper,
    optimizer=dict(type=AdamW, lr=1e-4, betas=(0.9, 0.999), weight_decay=0.05),
    paramwise_cfg=dict(norm_decay_mult=0.0),
)
param_scheduler = [
    dict(type=LinearLR, start_factor=0.001, by_epoch=False, begin=0, end=1001),
    dict(type=MultiStepLR, by_epoch=False, milestones=[60_000, 80_000], gamma=0.1),
]
train_cfg.update(max_iters=max_iters, val_interval=max_iters + 1)

train_dataloader.dataset.pipeline[1] = dict(type=ResizeShortest, shortest=[640, 672, 704, 736, 768, 800], longest=1333)
test_dataloader.dataset.pipeline[1].update(shortest=image_size, longest=1333)
