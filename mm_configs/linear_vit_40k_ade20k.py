# ruff: noqa: F403, F405
"""A linear head on a frozen ViT's patch tokens, on ADE20k.

    python -m evaluate.linear_segmentation --ckpt FILE --data-root DIR

DINOv2's protocol (arXiv 2304.07193, Section 7.4, and the configuration that it released with its ADE20k linear heads):
BatchNorm and one linear layer on the last block's patch tokens after the last norm, AdamW at 1e-3 with a decay of 1e-4
of everything, 1,500 iterations of warm-up and a linear decay to 0 over 40,000 iterations of 16 crops of 512 px, tested
with sliding windows of 512 px, 341 apart, at a single scale. It ran on 8 GPUs, two crops each, without mixed precision.
Its configuration of VOC 2012 differs in the data alone. No mIoU of a ViT-B of ImageNet-1k is published by it at 16 px a
patch; near it are 34.5 (DINO) and 38.3 (iBOT), by iBOT's own linear recipe. What depends on the encoder, on the classes
or on folders is filled in by evaluate/mm/frozen.py; it is None here.
"""

from mmengine.config import read_base

with read_base():
    from ._upernet_ade20k import *

from mmengine.optim import LinearLR, OptimWrapper, PolyLR
from mmseg.models.losses import CrossEntropyLoss
from torch.optim import AdamW

from evaluate.mm.frozen import FrozenBackbone, LinearHead
from evaluate.mm.segmenter import ViTSegmentor

batch_size = 16  # over all processes
max_iters = 40_000

model.update(
    type=ViTSegmentor,
    data_preprocessor=dict(size=None),  # the crop in whole patches
    backbone=dict(type=FrozenBackbone, img_size=(crop, crop)),
    test_cfg=dict(mode="slide", crop_size=(crop, crop), stride=(crop * 2 // 3, crop * 2 // 3)),  # 341
)
model["decode_head"] = dict(
    type=LinearHead,
    in_channels=None,
    in_index=0,
    channels=None,
    dropout_ratio=0,
    num_classes=None,
    norm_cfg=norm,
    align_corners=False,
    loss_decode=dict(type=CrossEntropyLoss, use_sigmoid=False, loss_weight=1.0),
)
model["auxiliary_head"] = None

optim_wrapper = dict(type=OptimWrapper, optimizer=dict(type=AdamW, lr=1e-3, betas=(0.9, 0.999), weight_decay=1e-4))
param_scheduler = [
    dict(type=LinearLR, start_factor=1e-6, by_epoch=False, begin=0, end=1500),
    dict(type=PolyLR, eta_min=0.0, power=1.0, by_epoch=False, begin=1500, end=max_iters),
]
train_cfg.update(max_iters=max_iters, val_interval=max_iters + 1)
