# ruff: noqa: F403, F405
"""The demo's detector for ResNets: a small head, small pictures and a schedule of seconds. Its numbers compare with nothing."""

from mmengine.config import read_base

with read_base():
    from .mask_rcnn_vitdet_demo_coco import *

from mmdet.models.necks import FPN

from evaluate.mm.backbones.resnet import ResNetBackbone

model.data_preprocessor.update(pad_size_divisor=32)
model.backbone = dict(type=ResNetBackbone)
model.neck = dict(type=FPN, in_channels=None, out_channels=channels, num_outs=5, norm_cfg=dict(type="BN"))
optim_wrapper = dict(
    type=OptimWrapper, optimizer=dict(type=AdamW, lr=1e-3, betas=(0.9, 0.999), weight_decay=0.05), clip_grad=dict(max_norm=5.0)
)
