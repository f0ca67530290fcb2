# ruff: noqa: F403, F405
"""Mask R-CNN with a ResNet encoder and FPN on LVIS v1: detectron2's schedule of 180,000 iterations, repeat factors, plain softmax.

    torchrun --nproc-per-node 8 -m evaluate.detection --ckpt FILE --data-root DIR --set dataset=lvis

Not the protocol of the SiameseIM table, which has ViTs only. On 8 GPUs with two images each. No published box AP or mask AP of these encoders.
"""

from mmengine.config import read_base

with read_base():
    from .mask_rcnn_resnet_fpn_1x_coco import *

max_iters = 180_000
param_scheduler[1].update(milestones=[120_000, 160_000])
model.test_cfg.rcnn.update(score_thr=1e-4, max_per_img=300)
train_dataloader.sampler.update(repeat_threshold=0.001)
test_evaluator.update(lvis=True, max_detections=300)
train_cfg.update(max_iters=max_iters, val_interval=max_iters + 1)
