"""Mask R-CNN with a ViTDet backbone on COCO 2017, 100 epochs: the COCO columns of the SiameseIM table.

    torchrun --nproc-per-node 8 -m evaluate.detection --ckpt FILE --data-root DIR --set micro_batch=1

detectron2's ViTDet gives box AP 51.6 and mask AP 45.9 from MAE's ViT-B (55.5 and 49.2 from its ViT-L), on 64 A100 with one image each;
with fewer GPUs the rest of the batch of 64 is accumulated. Drop path and layer decay of ViT-L follow from the encoder.
What depends on the encoder, on the classes or on folders is filled in by evaluate/detection.py; it is None here.
"""

from mmcv.ops import RoIAlign
from mmdet.datasets.transforms import PackDetInputs
from mmdet.models.data_preprocessors import DetDataPreprocessor
from mmdet.models.dense_heads import RPNHead
from mmdet.models.detectors import MaskRCNN
from mmdet.models.losses import CrossEntropyLoss, L1Loss
from mmdet.models.roi_heads import StandardRoIHead
from mmdet.models.roi_heads.bbox_heads import ConvFCBBoxHead
from mmdet.models.roi_heads.roi_extractors import SingleRoIExtractor
from mmdet.models.task_modules.coders import DeltaXYWHBBoxCoder
from mmdet.models.task_modules.prior_generators import AnchorGenerator
from mmdet.models.task_modules.samplers import RandomSampler
from mmengine.dataset import DefaultSampler
from mmengine.optim import LinearLR, MultiStepLR, OptimWrapper
from mmengine.runner import IterBasedTrainLoop, TestLoop
from torch.optim import AdamW

from evaluate.mm.backbones.vitdet import ChannelLayerNorm, SimpleFeaturePyramid, ViTDetBackbone
from evaluate.mm.datasets import InstanceSet
from evaluate.mm.heads import MaskHead, Matcher
from evaluate.mm.metrics import InstanceAP
from evaluate.mm.optimizer import LayerDecayConstructor
from evaluate.mm.sampler import TrainingSampler
from evaluate.mm.transforms import LargeScaleJitter, LoadImage, TestResize

default_scope = "mmdet"

image_size = 1024
batch_size = 64  # over all processes
epochs = 100
images = 118_000  # as detectron2 counts them
max_iters = epochs * images // batch_size  # 184,375
channels = 256
num_classes = None
norm = dict(type=ChannelLayerNorm, eps=1e-6)  # eps said, since mmcv would put 1e-5

model = dict(
    type=MaskRCNN,
    data_preprocessor=dict(
        type=DetDataPreprocessor, mean=None, std=None, bgr_to_rgb=False, pad_mask=True, pad_size_divisor=image_size
    ),  # a square, filled with zeros after normalization, in training and in testing
    backbone=dict(type=ViTDetBackbone, img_size=image_size, window=14, drop_path=0.1),
    neck=dict(type=SimpleFeaturePyramid, in_channels=None, out_channels=channels),
    rpn_head=dict(
        type=RPNHead,
        in_channels=channels,
        feat_channels=channels,
        num_convs=2,
        anchor_generator=dict(type=AnchorGenerator, scales=[8], ratios=[0.5, 1.0, 2.0], strides=None),
        bbox_coder=dict(type=DeltaXYWHBBoxCoder, target_means=[0.0] * 4, target_stds=[1.0] * 4),
        loss_cls=dict(type=CrossEntropyLoss, use_sigmoid=True, loss_weight=1.0),
        loss_bbox=dict(type=L1Loss, loss_weight=1.0),
    ),
    roi_head=dict(
        type=StandardRoIHead,
        bbox_roi_extractor=dict(
            type=SingleRoIExtractor,
            roi_layer=dict(type=RoIAlign, output_size=7, sampling_ratio=0),
            out_channels=channels,
            featmap_strides=None,
        ),
        bbox_head=dict(
            type=ConvFCBBoxHead,
            num_shared_convs=4,
            num_shared_fcs=1,
            in_channels=channels,
            conv_out_channels=channels,
            fc_out_channels=1024,
            roi_feat_size=7,
            num_classes=num_classes,
            norm_cfg=norm,
            bbox_coder=dict(type=DeltaXYWHBBoxCoder, target_means=[0.0] * 4, target_stds=[0.1, 0.1, 0.2, 0.2]),
            reg_class_agnostic=False,
            loss_cls=dict(type=CrossEntropyLoss, use_sigmoid=False, loss_weight=1.0),
            loss_bbox=dict(type=L1Loss, loss_weight=1.0),
            init_cfg=[  # mmdet's own, but for the fully connected layers
                dict(type="Normal", std=0.01, override=dict(name="fc_cls")),
                dict(type="Normal", std=0.001, override=dict(name="fc_reg")),
                dict(type="Caffe2Xavier", override=dict(name="shared_fcs")),
            ],
        ),
        mask_roi_extractor=dict(
            type=SingleRoIExtractor,
            roi_layer=dict(type=RoIAlign, output_size=14, sampling_ratio=0),
            out_channels=channels,
            featmap_strides=None,
        ),
        mask_head=dict(
            type=MaskHead,
            num_convs=4,
            in_channels=channels,
            conv_out_channels=channels,
            num_classes=num_classes,
            norm_cfg=norm,
            loss_mask=dict(type=CrossEntropyLoss, use_mask=True, loss_weight=1.0),
        ),
    ),
    train_cfg=dict(
        rpn=dict(
            assigner=dict(type=Matcher, positive=0.7, negative=0.3, low_quality=True),
            sampler=dict(type=RandomSampler, num=256, pos_fraction=0.5, add_gt_as_proposals=False),
            allowed_border=-1,
            pos_weight=-1,
        ),
        rpn_proposal=dict(nms_pre=2000, max_per_img=1000, nms=dict(type="nms", iou_threshold=0.7), min_bbox_size=0),
        rcnn=dict(
            assigner=dict(type=Matcher, positive=0.5, negative=0.5, low_quality=False),
            sampler=dict(type=RandomSampler, num=512, pos_fraction=0.25, add_gt_as_proposals=True),
            mask_size=28,
            pos_weight=-1,
        ),
    ),
    test_cfg=dict(
        rpn=dict(nms_pre=1000, max_per_img=1000, nms=dict(type="nms", iou_threshold=0.7), min_bbox_size=0),
        rcnn=dict(score_thr=0.05, nms=dict(type="nms", iou_threshold=0.5), max_per_img=100, mask_thr_binary=0.5),
    ),
)

optim_wrapper = dict(
    type=OptimWrapper,  # evaluate/detection.py puts AmpOptimWrapper on a GPU
    optimizer=dict(type=AdamW, lr=1e-4, betas=(0.9, 0.999), weight_decay=0.1),
    constructor=LayerDecayConstructor,
    paramwise_cfg=dict(layer_decay=0.7, num_layers=None, rule="detectron2"),
)
param_scheduler = [
    # end 251: mmengine reaches the full rate one iteration before ``end``, detectron2 at iteration 250
    dict(type=LinearLR, start_factor=0.001, by_epoch=False, begin=0, end=251),
    dict(type=MultiStepLR, by_epoch=False, milestones=[163_889, 177_546], gamma=0.1),
]

train_dataloader = dict(
    batch_size=None,
    num_workers=None,
    sampler=dict(type=TrainingSampler),
    dataset=dict(
        type=InstanceSet,
        annotations=None,
        images=None,
        folder="train2017",
        training=True,
        pipeline=[dict(type=LoadImage), dict(type=LargeScaleJitter, size=image_size, scales=(0.1, 2.0)), dict(type=PackDetInputs)],
    ),
)
test_dataloader = dict(
    batch_size=1,
    num_workers=None,
    sampler=dict(type=DefaultSampler, shuffle=False),
    dataset=dict(
        type=InstanceSet,
        annotations=None,
        images=None,
        folder="val2017",
        training=False,
        pipeline=[dict(type=LoadImage), dict(type=TestResize, shortest=image_size, longest=image_size), dict(type=PackDetInputs)],
    ),
)
test_evaluator = dict(type=InstanceAP, annotations=None, lvis=False, max_detections=100)
train_cfg = dict(type=IterBasedTrainLoop, max_iters=max_iters, val_interval=max_iters + 1)
test_cfg = dict(type=TestLoop)
