# ruff: noqa: F403, F405
"""Mask R-CNN with a ResNet encoder and FPN on COCO 2017: detectron2's 1x schedule with MoCo's BatchNorm, which is trained everywhere.

    torchrun --nproc-per-node 8 -m evaluate.detection --ckpt FILE --data-root DIR

MoCo v1's ResNet-50 gives box AP 38.5 and mask AP 35.1 (arXiv 1911.05722, table 5), on 8 GPUs with two images each. Not the protocol of
the SiameseIM table, which has ViTs only.
"""

from mmengine.config import read_base

with read_base():
    from .mask_rcnn_vitdet_100ep_coco import *

from mmdet.models.necks import FPN
from torch.optim import SGD

from evaluate.mm.backbones.resnet import ResNetBackbone
from evaluate.mm.transforms import ResizeShortest

batch_size = 16
max_iters = 90_000
image_size = 800
longest = 1333
model.data_preprocessor.update(pad_size_divisor=32)
model.backbone = dict(type=ResNetBackbone)
model.neck = dict(type=FPN, in_channels=None, out_channels=channels, num_outs=5, norm_cfg=dict(type="BN"))
model.rpn_head.update(num_convs=1)
model.roi_head.bbox_head.update(num_shared_convs=0, num_shared_fcs=2, norm_cfg=None)
model.roi_head.mask_head.update(norm_cfg=None)
optim_wrapper = dict(
    type=OptimWrapper,
    optimizer=dict(type=SGD, lr=0.02, momentum=0.9, weight_decay=1e-4),
    paramwise_cfg=dict(norm_decay_mult=0.0),  # detectron2 does not decay norms
)
param_scheduler[0].update(end=1001)
param_scheduler[1].update(milestones=[60_000, 80_000])
train_dataloader.dataset.pipeline[1] = dict(type=ResizeShortest, shortest=[640, 672, 704, 736, 768, 800], longest=longest)
test_dataloader.dataset.pipeline[1].update(shortest=image_size, longest=longest)
train_cfg.update(max_iters=max_iters, val_interval=max_iters + 1)
