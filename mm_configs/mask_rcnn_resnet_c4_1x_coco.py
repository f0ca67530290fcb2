# ruff: noqa: F403, F405
"""Mask R-CNN with a ResNet encoder, C4, on COCO 2017: the transfer protocol of MoCo and SimSiam, 90,000 iterations.

    torchrun --nproc-per-node 8 -m evaluate.detection --ckpt FILE --data-root DIR \\
        --set recipe=mask_rcnn_resnet_c4_1x_coco

Box AP and mask AP of a ResNet-50: 39.2 and 34.3 from MoCo v2, 37.9 and 33.2 from SimSiam, 38.2 and 33.3 from supervised
training (arXiv 2011.10566, table 5), on 8 GPUs with two images each. The learning rate of that table was searched for
each method; detectron2's 0.02 stands here (--set lr=…). The last stage runs on regions and ends in a
BatchNorm of its own; all BatchNorm is trained, over all processes together. detectron2 then estimates its statistics
anew from 200 batches, and so does this recipe.
"""

from mmengine.config import read_base

with read_base():
    from ._coco_instances import *
    from ._mask_rcnn import *

from mmdet.models.roi_heads.bbox_heads import BBoxHead
from mmengine.optim import LinearLR, MultiStepLR, OptimWrapper
from torch.optim import SGD

from evaluate.mm.backbones.resnet import LastStage, ResNetBackbone
from evaluate.mm.transforms import ResizeShortest

image_size = 800
batch_size = 16  # over all processes
max_iters = 90_000
precise_bn = 200

model.update(
    data_preprocessor=dict(pad_size_divisor=1),
    backbone=dict(type=ResNetBackbone, c4=True),
    rpn_head=dict(
        in_channels=None,
        feat_channels=None,
        num_convs=1,
        anchor_generator=dict(scales=[2, 4, 8, 16, 32], strides=[16]),
    ),
    train_cfg=dict(rpn_proposal=dict(nms_pre=12_000, max_per_img=2000), rcnn=dict(mask_size=14)),
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
    mask_roi_extractor=None,  # masks are of the box head's regions
    mask_head=dict(
        type=MaskHead,
        num_convs=0,
        in_channels=None,
        conv_out_channels=channels,
        num_classes=num_classes,
        norm_cfg=None,
        loss_mask=dict(type=CrossEntropyLoss, use_mask=True, loss_weight=1.0),
    ),
)

optim_wrapper = dict(
    type=OptimWrapper,
    optimizer=dict(type=SGD, lr=0.02, momentum=0.9, weight_decay=1e-4),
    paramwise_cfg=dict(norm_decay_mult=0.0),  # detectron2 does not decay norms
)
param_scheduler = [
    dict(type=LinearLR, start_factor=0.001, by_epoch=False, begin=0, end=1001),
    dict(type=MultiStepLR, by_epoch=False, milestones=[60_000, 80_000], gamma=0.1),
]
train_cfg.update(max_iters=max_iters, val_interval=max_iters + 1)

train_dataloader.dataset.pipeline[1] = dict(type=ResizeShortest, shortest=[640, 672, 704, 736, 768, 800], longest=1333)
test_dataloader.dataset.pipeline[1].update(shortest=image_size, longest=1333)
