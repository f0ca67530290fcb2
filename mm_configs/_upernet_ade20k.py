"""Base of the segmenters: UPerNet's heads, ADE20k, how it is scored, and the loops. Not a recipe.

A recipe puts in its backbone and neck, the way of its test, batch and length.
"""

from mmcv.transforms import RandomFlip, RandomResize
from mmengine.dataset import DefaultSampler
from mmengine.runner import IterBasedTrainLoop, TestLoop
from mmseg.datasets.transforms import PackSegInputs, PhotoMetricDistortion, RandomCrop, Resize
from mmseg.models.data_preprocessor import SegDataPreProcessor
from mmseg.models.decode_heads import FCNHead, UPerHead
from mmseg.models.losses import CrossEntropyLoss
from mmseg.models.segmentors import EncoderDecoder

from evaluate.mm.datasets import SegmentationSet
from evaluate.mm.metrics import MeanIoU
from evaluate.mm.sampler import TrainingSampler
from evaluate.mm.transforms import LoadLabels, LoadPicture

default_scope = "mmseg"

crop = 512
longest = 2048
ratios = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)  # of the test at several scales, each as it is and mirrored
norm = dict(type="SyncBN", requires_grad=True)  # mmengine makes it BN in a single process

model = dict(
    type=EncoderDecoder,
    data_preprocessor=dict(
        type=SegDataPreProcessor, mean=None, std=None, bgr_to_rgb=True, pad_val=0, seg_pad_val=255, size=(crop, crop)
    ),
    backbone=None,
    neck=None,
    decode_head=dict(
        type=UPerHead,
        in_channels=None,
        in_index=[0, 1, 2, 3],
        pool_scales=(1, 2, 3, 6),
        channels=None,  # the encoder's width, where a recipe does not say
        dropout_ratio=0.1,
        num_classes=None,
        norm_cfg=norm,
        align_corners=False,
        loss_decode=dict(type=CrossEntropyLoss, use_sigmoid=False, loss_weight=1.0),
    ),
    auxiliary_head=dict(
        type=FCNHead,
        in_channels=None,
        in_index=2,
        channels=256,
        num_convs=1,
        concat_input=False,
        dropout_ratio=0.1,
        num_classes=None,
        norm_cfg=norm,
        align_corners=False,
        loss_decode=dict(type=CrossEntropyLoss, use_sigmoid=False, loss_weight=0.4),
    ),
)

train_dataloader = dict(
    batch_size=None,
    num_workers=None,
    sampler=dict(type=TrainingSampler),
    dataset=dict(
        type=SegmentationSet,
        root=None,
        split="training",
        pipeline=[
            dict(type=LoadPicture),
            dict(type=LoadLabels),
            dict(type=RandomResize, resize_type=Resize, scale=(longest, crop), ratio_range=(0.5, 2.0), keep_ratio=True),
            dict(type=RandomCrop, crop_size=(crop, crop), cat_max_ratio=0.75),
            dict(type=RandomFlip, prob=0.5),
            dict(type=PhotoMetricDistortion),
            dict(type=PackSegInputs),
        ],
    ),
)
test_dataloader = dict(
    batch_size=1,
    num_workers=None,
    sampler=dict(type=DefaultSampler, shuffle=False),
    dataset=dict(
        type=SegmentationSet,
        root=None,
        split="validation",
        pipeline=[  # labels after the resize: they are compared at the picture's own size
            dict(type=LoadPicture),
            dict(type=Resize, scale=(longest, crop), keep_ratio=True),
            dict(type=LoadLabels),
            dict(type=PackSegInputs),
        ],
    ),
)
test_evaluator = dict(type=MeanIoU)
train_cfg = dict(type=IterBasedTrainLoop, max_iters=None, val_interval=None)
test_cfg = dict(type=TestLoop)
