# ruff: noqa: F403, F405
"""Cascade Mask R-CNN with a ViTDet backbone on LVIS v1, 100 epochs: not the detector of the SiameseIM table.

    torchrun --nproc-per-node 8 -m evaluate.detection --ckpt FILE --data-root DIR --set dataset=lvis \\
        --set recipe=cascade_mask_rcnn_vitdet_100ep_lvis

ViTDet's stronger detector: detectron2's gives box AP 43.0 and mask AP 38.9 from MAE's ViT-B (49.2 and 44.5 from its
ViT-L), on 64 A100 with one image each.
"""

from mmengine.config import read_base

with read_base():
    from .mask_rcnn_vitdet_100ep_lvis import *

from evaluate.mm.heads import CascadeRoIHead

model.roi_head.update(type=CascadeRoIHead)
