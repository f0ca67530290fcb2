# ruff: noqa: F403, F405
"""Mask R-CNN with a ResNet encoder, C4, on COCO 2017: the transfer protocol of MoCo and SimSiam, 90,000 iterations.

    torchrun --nproc-per-node 8 -m evaluate.detection --ckpt FILE --data-root DIR --set recipe=mask_rcnn_resnet_c4_1x_coco

Box AP and mask AP of a ResNet-50: 39.2 and 34.3 from MoCo v2, 37.9 and 33.2 from SimSiam, 38.2 and 33.3 from supervised training (arXiv
2011.10566, table 5), on 8 GPUs with two images each. The learning rate of that table was searched for each method; detectron2's 0.02
stands here (--set lr=…). The last stage runs on regions and ends in a BatchNorm of its own; all BatchNorm is trained, over all
processes together. detectron2 then estimates its statistics anew from 200 batches, and so does this recipe.
"""

from mmengine.config import read_base

with read_base():
    from .mask_rcnn_resnet_fpn_1x_coco import *

from mmdet.models.roi_heads.bbox_heads import BBoxHead

from evaluate.mm.backbones.resnet import LastStage

precise_bn = 200
model.pop("neck")
model.data_preprocessor.update(pad_size_divisor=1)
model.backbone.update(c4=True)
model.rpn_head.update(in_channels=None, feat_channels=None, anchor_generator=dict(scales=[2, 4, 8, 16, 32], strides=[16]))
model.roi_head.update(shared_head=dict(type=LastStage, spec=None), mask_roi_extractor=None)  # masks: the box head's regions
model.roi_head.bbox_roi_extractor.update(roi_layer=dict(output_size=14), out_channels=None, featmap_strides=[16])
model.roi_head.bbox_head = dict(  # assigned, since update merges
    type=BBoxHead,
    with_avg_pool=True,
    roi_feat_size=7,
    in_channels=None,
    num_classes=num_classes,
    bbox_coder=dict(type=DeltaXYWHBBoxCoder, target_means=[0.0] * 4, target_stds=[0.1, 0.1, 0.2, 0.2]),
    reg_class_agnostic=False,
    loss_cls=dict(type=CrossEntropyLoss, use_sigmoid=False, loss_weight=1.0),
    loss_bbox=dict(type=L1Loss, loss_weight=1.0),
)
model.roi_head.mask_head.update(num_convs=0, in_channels=None)
model.train_cfg.rpn_proposal.update(nms_pre=12_000, max_per_img=2000)
model.train_cfg.rcnn.update(mask_size=14)
model.test_cfg.rpn.update(nms_pre=6000, max_per_img=1000)
