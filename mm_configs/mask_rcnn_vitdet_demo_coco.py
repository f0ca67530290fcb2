# ruff: noqa: F403, F405
"""The demo's detector: the paper's with a small head, small pictures and a schedule of seconds. Its numbers compare with nothing."""

from mmengine.config import read_base

with read_base():
    from .mask_rcnn_vitdet_100ep_coco import *

from mmdet.models.roi_heads.mask_heads import FCNMaskHead

image_size = 96
batch_size = 4
max_iters = 110
channels = 32
model.data_preprocessor.update(pad_size_divisor=image_size)
model.backbone.update(img_size=image_size, window=6, drop_path=0.0)
model.neck.update(out_channels=channels)
model.rpn_head.update(in_channels=channels, feat_channels=channels, num_convs=1)
# one sample a bin instead of as many as pixels: quicker, and on the COCO look-alike as good
model.roi_head.bbox_roi_extractor.update(out_channels=channels, roi_layer=dict(sampling_ratio=1))
model.roi_head.mask_roi_extractor.update(out_channels=channels, roi_layer=dict(sampling_ratio=1))
model.roi_head.bbox_head.update(in_channels=channels, conv_out_channels=channels, fc_out_channels=64, num_shared_convs=1)
model.roi_head.mask_head.update(in_channels=channels, conv_out_channels=channels, num_convs=1)
# detectron2's small starts take more than some hundred steps to grow: mmdet's here
model.roi_head.mask_head.update(type=FCNMaskHead)
model.roi_head.bbox_head.pop("init_cfg")
model.train_cfg.rpn.sampler.update(num=64)
model.train_cfg.rpn_proposal.update(nms_pre=100, max_per_img=100)
model.train_cfg.rcnn.sampler.update(num=32)
model.test_cfg.rpn.update(nms_pre=50, max_per_img=50)
model.test_cfg.rcnn.update(max_per_img=20)
# fewer steps need a higher rate, and none of the encoder may stand still
optim_wrapper.optimizer.update(lr=2e-3)
optim_wrapper.paramwise_cfg.update(layer_decay=0.9)
optim_wrapper.update(clip_grad=dict(max_norm=5.0))
param_scheduler[0].update(end=15)
param_scheduler[1].update(milestones=[90, 103])
train_dataloader.dataset.pipeline[1].update(size=image_size, scales=(0.8, 1.2))
test_dataloader.dataset.pipeline[1].update(shortest=image_size, longest=image_size)
train_cfg.update(max_iters=max_iters, val_interval=max_iters + 1)
