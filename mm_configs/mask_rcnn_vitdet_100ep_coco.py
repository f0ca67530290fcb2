# ruff: noqa: F403, F405
"""Mask R-CNN with a ViTDet backbone on COCO 2017, 100 epochs: the COCO columns of the SiameseIM table.

    torchrun --nproc-per-node 8 -m evaluate.detection --ckpt FILE --data-root DIR

detectron2's ViTDet gives box AP 51.6 and mask AP 45.9 from MAE's ViT-B (55.5 and 49.2 from its ViT-L), on 64 A100 with
one image each; with fewer GPUs the rest of the batch of 64 is accumulated. Drop path and layer decay of ViT-L follow
from the encoder. What depends on the encoder, on the classes or on folders is filled in by evaluate/mm/detector.py; it
is None here.
"""

from mmengine.config import read_base

with read_base():
    from ._coco_instances import *
    from ._mask_rcnn import *

from mmengine.optim import LinearLR, MultiStepLR, OptimWrapper
from torch.optim import AdamW

from evaluate.mm.backbones.vitdet import ChannelLayerNorm, SimpleFeaturePyramid, ViTDetBackbone
from evaluate.mm.optimizer import LayerDecayConstructor
from evaluate.mm.transforms import LargeScaleJitter

image_size = 1024
batch_size = 64  # over all processes
epochs = 100
images = 118_000  # as detectron2 counts them
max_iters = epochs * images // batch_size  # 184,375
norm = dict(type=ChannelLayerNorm, eps=1e-6)  # eps said, since mmcv would put 1e-5

model.update(
    data_preprocessor=dict(pad_size_divisor=None),  # the image size in whole patches: a square
    backbone=dict(type=ViTDetBackbone, img_size=image_size, window=14, drop_path=0.1),
    neck=dict(type=SimpleFeaturePyramid, in_channels=None, out_channels=channels),
    rpn_head=dict(num_convs=2),
    roi_head=dict(
        bbox_head=dict(num_shared_convs=4, num_shared_fcs=1, norm_cfg=norm),
        mask_head=dict(norm_cfg=norm),
    ),
    train_cfg=dict(rcnn=dict(mask_size=28)),
)

optim_wrapper = dict(
    type=OptimWrapper,  # on a GPU evaluate/mm/mixed_precision.py puts its own here
    optimizer=dict(type=AdamW, lr=1e-4, betas=(0.9, 0.999), weight_decay=0.1),
    constructor=LayerDecayConstructor,
    paramwise_cfg=dict(layer_decay=0.7, num_layers=None, rule="detectron2"),
)
param_scheduler = [
    # end 251: mmengine reaches the full rate one iteration before ``end``, detectron2 at iteration 250
    dict(type=LinearLR, start_factor=0.001, by_epoch=False, begin=0, end=251),
    dict(type=MultiStepLR, by_epoch=False, milestones=[163_889, 177_546], gamma=0.1),
]
train_cfg.update(max_iters=max_iters, val_interval=max_iters + 1)

train_dataloader.dataset.pipeline[1] = dict(type=LargeScaleJitter, size=image_size, scales=(0.1, 2.0))
test_dataloader.dataset.pipeline[1].update(shortest=image_size, longest=image_size)
