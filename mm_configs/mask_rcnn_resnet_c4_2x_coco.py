# ruff: noqa: F403, F405
"""Mask R-CNN with a ResNet encoder, C4, on COCO 2017: MoCo's 2x schedule, 180,000 iterations.

    torchrun --nproc-per-node 8 -m evaluate.detection --ckpt FILE --data-root DIR \\
        --set recipe=mask_rcnn_resnet_c4_2x_coco

MoCo v1's ResNet-50 gives box AP 40.7 and mask AP 35.4 (arXiv 1911.05722, table 5), on 8 GPUs with two images each.
"""

from mmengine.config import read_base

with read_base():
    from .mask_rcnn_resnet_c4_1x_coco import *

max_iters = 180_000
param_scheduler[1].update(milestones=[120_000, 160_000])
train_cfg.update(max_iters=max_iters, val_interval=max_iters + 1)
