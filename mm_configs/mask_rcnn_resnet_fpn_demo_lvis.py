# ruff: noqa: F403, F405
"""The demo's detector for ResNets on the LVIS look-alike: the COCO demo with repeat factors and LVIS' scoring."""

from mmengine.config import read_base

with read_base():
    from .mask_rcnn_resnet_fpn_demo_coco import *

model.test_cfg.rcnn.update(score_thr=0.02)
train_dataloader.sampler.update(repeat_threshold=0.3)
test_evaluator.update(lvis=True, max_detections=300)
