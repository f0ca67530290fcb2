# ruff: noqa: F403, F405
"""The demo's detector on the LVIS look-alike: the COCO demo with federated loss, repeat factors and LVIS' scoring."""

from mmengine.config import read_base

with read_base():
    from .mask_rcnn_vitdet_demo_coco import *

from evaluate.mm.losses import FederatedLoss

# six classes: four are kept; with 200 images the paper's threshold of 0.001 would repeat none
model.roi_head.bbox_head.loss_cls = dict(type=FederatedLoss, image_counts=None, num_kept=4, power=0.5)
model.test_cfg.rcnn.update(score_thr=0.02)
train_dataloader.sampler.update(repeat_threshold=0.3)
test_evaluator.update(lvis=True, max_detections=300)
