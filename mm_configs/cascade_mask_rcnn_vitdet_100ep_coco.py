# ruff: noqa: F403, F405
"""Cascade Mask R-CNN with a ViTDet backbone on COCO 2017, 100 epochs: not the detector of the SiameseIM table.

    torchrun --nproc-per-node 8 -m evaluate.detection --ckpt FILE --data-root DIR \\
        --set recipe=cascade_mask_rcnn_vitdet_100ep_coco

ViTDet's stronger detector: detectron2's gives box AP 54.0 and mask AP 46.7 from MAE's ViT-B (57.6 and 50.0 from its
ViT-L), on 64 A100 with one image each.
"""

from mmengine.config import read_base

with read_base():
    from .mask_rcnn_vitdet_100ep_coco import *

from evaluate.mm.heads import CascadeRoIHead

model.roi_head.update(type=CascadeRoIHead)
