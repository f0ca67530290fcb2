# ruff: noqa: F403, F405
"""Faster R-CNN with a ResNet encoder, C4, on PASCAL VOC: the transfer protocol of MoCo and SimSiam, 24,000 iterations.

    torchrun --nproc-per-node 8 -m evaluate.detection --ckpt FILE --data-root DIR --set dataset=voc

Trained on trainval of 2007 and 2012, tested on test of 2007. AP50, AP and AP75 of a ResNet-50: 81.5, 55.9 and 62.6 from MoCo v1, 82.4, 57.0
and 63.6 from MoCo v2, 82.0, 56.4 and 62.8 from SimSiam, 81.3, 53.5 and 58.8 from supervised training, means of 5 runs whose standard
deviations are about 0.2, 0.2 and 0.4, on 8 GPUs with two images each. The AP is that of 2007, over 11 recalls, as detectron2 computes it.
"""

from mmengine.config import read_base

with read_base():
    from .mask_rcnn_resnet_c4_1x_coco import *

from mmdet.models.detectors import FasterRCNN

from evaluate.mm.datasets import VOCSet
from evaluate.mm.metrics import VOCAP

max_iters = 24_000
num_classes = 20
tested = "2007/test"
model.update(type=FasterRCNN)
model.data_preprocessor.update(pad_mask=False)
model.roi_head.pop("mask_head")
model.roi_head.bbox_head.update(num_classes=num_classes)
param_scheduler[0].update(end=101)
param_scheduler[1].update(milestones=[18_000, 22_000])
train_dataloader.dataset.update(type=VOCSet, folder="2007/trainval+2012/trainval")
train_dataloader.dataset.pipeline[1].update(shortest=[480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800])
test_dataloader.dataset.update(type=VOCSet, folder=tested)
test_evaluator = dict(type=VOCAP, annotations=None, folder=tested)
train_cfg.update(max_iters=max_iters, val_interval=max_iters + 1)
