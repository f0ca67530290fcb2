# ruff: noqa: F403, F405
"""Mask R-CNN with a ViTDet backbone on LVIS v1, 100 epochs: the LVIS columns of the SiameseIM table.

    torchrun --nproc-per-node 8 -m evaluate.detection --ckpt FILE --data-root DIR --set dataset=lvis --set micro_batch=1

detectron2's ViTDet gives box AP 40.2 and mask AP 38.2 from MAE's ViT-B (46.1 and 43.6 from its ViT-L), on 64 A100 with one image each.
"""

from mmengine.config import read_base

with read_base():
    from .mask_rcnn_vitdet_100ep_coco import *

from evaluate.mm.losses import FederatedLoss

images = 100_000
max_iters = epochs * images // batch_size  # 156,250
train_cfg.update(max_iters=max_iters, val_interval=max_iters + 1)
param_scheduler[1].update(milestones=[138_889, 150_463])
optim_wrapper.optimizer.update(lr=2e-4)

model.roi_head.bbox_head.loss_cls = dict(type=FederatedLoss, image_counts=None, num_kept=50, power=0.5)
model.test_cfg.rcnn.update(score_thr=0.02, max_per_img=300)
train_dataloader.sampler.update(repeat_threshold=0.001)
test_evaluator.update(lvis=True, max_detections=300)
