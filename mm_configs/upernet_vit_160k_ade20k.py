# ruff: noqa: F403, F405
"""UPerNet with a plain ViT on ADE20k: the ADE20k column of the SiameseIM table.

    python -m evaluate.segmentation --ckpt FILE --data-root DIR

MAE's protocol (mmseg's configs/mae), 160,000 iterations of 16 crops of 512 pixels: ViT-B from MAE's checkpoint gives
mIoU 48.13 at a single scale and 48.70 at several, on 8 GPUs with two crops each. Layer scale begins at 1 and the
relative position bias at 0. Weight decay 0.05 applies to everything but biases and what has one axis, and so to the
position embedding, the class token and the bias tables: the library means to spare the first two, but looks for their
names without the prefix, and the published numbers come from what it does. To spare them is another protocol.
What depends on the encoder, on the classes or on folders is filled in by evaluate/mm/segmenter.py; it is None here.
"""

from mmengine.config import read_base

with read_base():
    from ._upernet_ade20k import *

from mmengine.optim import LinearLR, OptimWrapper, PolyLR
from mmseg.models.necks import Feature2Pyramid
from torch.optim import AdamW

from evaluate.mm.backbones.segmentation import SegmentationBackbone
from evaluate.mm.optimizer import LayerDecayConstructor
from evaluate.mm.segmenter import ViTSegmentor

batch_size = 16  # over all processes
max_iters = 160_000

model.update(
    type=ViTSegmentor,
    data_preprocessor=dict(size=None),  # the crop in whole patches
    backbone=dict(type=SegmentationBackbone, img_size=(crop, crop), drop_path=0.1),
    neck=dict(type=Feature2Pyramid, embed_dim=None, rescales=[4, 2, 1, 0.5], norm_cfg=norm),
    test_cfg=dict(mode="slide", crop_size=(crop, crop), stride=(crop * 2 // 3, crop * 2 // 3)),  # 341
)

optim_wrapper = dict(
    type=OptimWrapper,  # on a GPU evaluate/mm/mixed_precision.py puts its own here
    optimizer=dict(type=AdamW, lr=1e-4, betas=(0.9, 0.999), weight_decay=0.05),
    constructor=LayerDecayConstructor,
    paramwise_cfg=dict(layer_decay=0.65, num_layers=None, rule="mmseg"),
)
param_scheduler = [
    dict(type=LinearLR, start_factor=1e-6, by_epoch=False, begin=0, end=1500),
    dict(type=PolyLR, eta_min=0.0, power=1.0, by_epoch=False, begin=1500, end=max_iters),
]
train_cfg.update(max_iters=max_iters, val_interval=max_iters + 1)
