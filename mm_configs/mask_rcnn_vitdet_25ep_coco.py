# ruff: noqa: F403, F405
"""Mask R-CNN with a ViTDet backbone on COCO 2017, 25 epochs instead of the paper's 100.

    torchrun --nproc-per-node 8 -m evaluate.detection --ckpt FILE --data-root DIR \\
        --set recipe=mask_rcnn_vitdet_25ep_coco

The record says that this is the smaller budget. The steps lie at the same shares of the schedule. On 8 GPUs or any
number that divides 64. No published box AP or mask AP of this length.
"""

from mmengine.config import read_base

with read_base():
    from .mask_rcnn_vitdet_100ep_coco import *

epochs = 25
max_iters = epochs * images // batch_size
param_scheduler[1].update(milestones=[max_iters * 163_889 // 184_375, max_iters * 177_546 // 184_375])
train_cfg.update(max_iters=max_iters, val_interval=max_iters + 1)
