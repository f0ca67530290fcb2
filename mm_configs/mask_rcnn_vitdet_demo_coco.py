# ruff: noqa: F403, F405
"""The demo's detector: the paper's with a small head, small pictures and a schedule of seconds.

Its numbers compare with nothing.
"""

from mmengine.config import read_base

with read_base():
    from .mask_rcnn_vitdet_100ep_coco import *

from mmdet.models.roi_heads.mask_heads import FCNMaskHead

image_size = 96
batch_size = 4
max_iters = 220
channels = 32

model.update(
    backbone=dict(img_size=image_size, window=6, drop_path=0.0),
    neck=dict(out_channels=channels),
    rpn_head=dict(in_channels=channels, feat_channels=channels, num_convs=1),
    roi_head=dict(
        # one sample a bin instead of as many as pixels: quicker, and on the COCO look-alike as good
        bbox_roi_extractor=dict(out_channels=channels, roi_layer=dict(sampling_ratio=1)),
        mask_roi_extractor=dict(out_channels=channels, roi_layer=dict(sampling_ratio=1)),
        bbox_head=dict(in_channels=channels, conv_out_channels=channels, fc_out_channels=64, num_shared_convs=1),
        # detectron2's small starts take more than some hundred steps to grow: mmdet's here
        mask_head=dict(type=FCNMaskHead, in_channels=channels, conv_out_channels=channels, num_convs=1),
    ),
    train_cfg=dict(
        rpn=dict(sampler=dict(num=64)),
        rpn_proposal=dict(nms_pre=100, max_per_img=100),
        rcnn=dict(sampler=dict(num=32)),
    ),
    test_cfg=dict(rpn=dict(nms_pre=50, max_per_img=50), rcnn=dict(max_per_img=20)),
)
model.roi_head.bbox_head.pop("init_cfg")  # mmdet's here too

# fewer steps need a higher rate, and none of the encoder may stand still
optim_wrapper.update(optimizer=dict(lr=2e-3), paramwise_cfg=dict(layer_decay=0.9), clip_grad=dict(max_norm=5.0))
param_scheduler[0].update(end=15)
param_scheduler[1].update(milestones=[180, 206])
train_cfg.update(max_iters=max_iters, val_interval=max_iters + 1)

train_dataloader.dataset.pipeline[1].update(size=image_size, scales=(0.8, 1.2))
test_dataloader.dataset.pipeline[1].update(shortest=image_size, longest=image_size)
