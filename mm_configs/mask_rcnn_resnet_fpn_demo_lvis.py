# ruff: noqa: F403, F405
"""The demo's detector for ResNets on the LVIS look-alike: as small as on the COCO look-alike.

Its numbers compare with nothing.
"""

from mmengine.config import read_base

with read_base():
    from .mask_rcnn_resnet_fpn_1x_lvis import *

from mmdet.models.roi_heads.mask_heads import FCNMaskHead
from torch.optim import AdamW

from evaluate.mm.backbones.vitdet import ChannelLayerNorm
from evaluate.mm.transforms import LargeScaleJitter

image_size = 96
batch_size = 4
max_iters = 220
channels = 32
norm = dict(type=ChannelLayerNorm, eps=1e-6)  # the heads are those of the demo for ViTs

model.update(
    neck=dict(out_channels=channels),
    rpn_head=dict(in_channels=channels, feat_channels=channels),
    roi_head=dict(
        # one sample a bin instead of as many as pixels: quicker, and on the COCO look-alike as good
        bbox_roi_extractor=dict(out_channels=channels, roi_layer=dict(sampling_ratio=1)),
        mask_roi_extractor=dict(out_channels=channels, roi_layer=dict(sampling_ratio=1)),
        bbox_head=dict(
            in_channels=channels,
            conv_out_channels=channels,
            fc_out_channels=64,
            num_shared_convs=1,
            num_shared_fcs=1,
            norm_cfg=norm,
        ),
        # detectron2's small starts take more than some hundred steps to grow: mmdet's here
        mask_head=dict(type=FCNMaskHead, in_channels=channels, conv_out_channels=channels, num_convs=1, norm_cfg=norm),
    ),
    train_cfg=dict(
        rpn=dict(sampler=dict(num=64)),
        rpn_proposal=dict(nms_pre=100, max_per_img=100),
        rcnn=dict(sampler=dict(num=32)),
    ),
    test_cfg=dict(rpn=dict(nms_pre=50, max_per_img=50), rcnn=dict(score_thr=0.02, max_per_img=20)),
)
model.roi_head.bbox_head.pop("init_cfg")  # mmdet's here too

optim_wrapper = dict(
    type=OptimWrapper,
    optimizer=dict(type=AdamW, lr=1e-3, betas=(0.9, 0.999), weight_decay=0.05),
    clip_grad=dict(max_norm=5.0),
)
param_scheduler[0].update(end=15)
param_scheduler[1].update(milestones=[180, 206])
train_cfg.update(max_iters=max_iters, val_interval=max_iters + 1)

train_dataloader.sampler.update(repeat_threshold=0.3)  # with 200 images detectron2's 0.001 would repeat none
train_dataloader.dataset.pipeline[1] = dict(type=LargeScaleJitter, size=image_size, scales=(0.8, 1.2))
test_dataloader.dataset.pipeline[1].update(shortest=image_size, longest=image_size)
