# ruff: noqa: F403, F405
"""Faster R-CNN with a ResNet encoder, C4, on PASCAL VOC: the transfer protocol of MoCo and SimSiam, 24,000 iterations.

    torchrun --nproc-per-node 8 -m evaluate.detection --ckpt FILE --data-root DIR --set dataset=voc

Trained on trainval of 2007 and 2012, tested on test of 2007. AP50, AP and AP75 of a ResNet-50: 81.5, 55.9 and 62.6 from
MoCo v1, 82.4, 57.0 and 63.6 from MoCo v2, 82.0, 56.4 and 62.8 from SimSiam, 81.3, 53.5 and 58.8 from supervised
training, means of 5 runs whose standard deviations are about 0.2, 0.2 and 0.4, on 8 GPUs with two images each. The AP
is that of 2007, over 11 recalls, as detectron2 computes it. The box branch and BatchNorm are those of
mask_rcnn_resnet_c4_1x_coco.
"""

from mmengine.config import read_base

with read_base():
    from ._coco_instances import *
    from ._mask_rcnn import *

from mmdet.models.detectors import FasterRCNN
from mmdet.models.roi_heads.bbox_heads import BBoxHead
from mmengine.optim import LinearLR, MultiStepLR, OptimWrapper
from torch.optim import SGD

from evaluate.mm.backbones.resnet import LastStage, ResNetBackbone
from evaluate.mm.datasets import VOCSet
from evaluate.mm.metrics import VOCAP
from evaluate.mm.transforms import ResizeShortest

image_size = 800
batch_size = 16  # over all processes
max_iters = 24_000
precise_bn = 200
num_classes = 20
tested = "2007/test"

model.update(
    type=FasterRCNN,
    data_preprocessor=dict(pad_size_divisor=1, pad_mask=False),
    backbone=dict(type=ResNetBackbone, c4=True),
    rpn_head=dict(
        in_channels=None,
        feat_channels=None,
        num_convs=1,
        anchor_generator=dict(scales=[2, 4, 8, 16, 32], strides=[16]),
    ),
    train_cfg=dict(rpn_proposal=dict(nms_pre=12_000, max_per_img=2000)),
    test_cfg=dict(rpn=dict(nms_pre=6000, max_per_img=1000)),
)
# assigned, since update merges: there is one map and no pyramid, and the encoder's last stage runs on its regions
model.roi_head = dict(
    type=StandardRoIHead,
    shared_head=dict(type=LastStage, spec=None),
    bbox_roi_extractor=dict(
        type=SingleRoIExtractor,
        roi_layer=dict(type=RoIAlign, output_size=14, sampling_ratio=0),
        out_channels=None,
        featmap_strides=[16],
    ),
    bbox_head=dict(
        type=BBoxHead,
        with_avg_pool=True,
        roi_feat_size=7,
        in_channels=None,
        num_classes=num_classes,
        bbox_coder=dict(type=DeltaXYWHBBoxCoder, target_means=[0.0] * 4, target_stds=[0.1, 0.1, 0.2, 0.2]),
        reg_class_agnostic=False,
        loss_cls=dict(type=CrossEntropyLoss, use_sigmoid=False, loss_weight=1.0),
        loss_bbox=dict(type=L1Loss, loss_weight=1.0),
    ),
)

optim_wrapper = dict(
    type=OptimWrapper,
    optimizer=dict(type=SGD, lr=0.02, momentum=0.9, weight_decay=1e-4),
    paramwise_cfg=dict(norm_decay_mult=0.0),  # detectron2 does not decay norms
)
param_scheduler = [
    dict(type=LinearLR, start_factor=0.001, by_epoch=False, begin=0, end=101),
    dict(type=MultiStepLR, by_epoch=False, milestones=[18_000, 22_000], gamma=0.1),
]
train_cfg.update(max_iters=max_iters, val_interval=max_iters + 1)

train_dataloader.dataset.update(type=VOCSet, folder="2007/trainval+2012/trainval")
train_dataloader.dataset.pipeline[1] = dict(
    type=ResizeShortest, shortest=[480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800], longest=1333
)
test_dataloader.dataset.update(type=VOCSet, folder=tested)
test_dataloader.dataset.pipeline[1].update(shortest=image_size, longest=1333)
test_evaluator = dict(type=VOCAP, annotations=None, folder=tested)
