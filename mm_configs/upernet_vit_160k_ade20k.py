"""UPerNet with a plain ViT on ADE20k, 160,000 iterations of 16 crops of 512 pixels: the ADE20k column of the SiameseIM table.

    python -m evaluate.segmentation --ckpt FILE --data-root DIR

MAE's protocol (mmseg's configs/mae): ViT-B from MAE's checkpoint gives mIoU 48.13 at a single scale and 48.70 at several, on 8 GPUs with
two crops each. Layer scale begins at 1 and the relative position bias at 0. Weight decay 0.05 applies to everything but biases and what
has one axis, and so to the position embedding, the class token and the bias tables: the library means to spare the first two, but looks
for their names without the prefix, and the published numbers come from what it does. To spare them is another protocol.
What depends on the encoder, on the classes or on folders is filled in by evaluate/segmentation.py; it is None here.
"""

from mmcv.transforms import RandomFlip, RandomResize
from mmengine.dataset import DefaultSampler
from mmengine.optim import LinearLR, OptimWrapper, PolyLR
from mmengine.runner import IterBasedTrainLoop, TestLoop
from mmseg.datasets.transforms import PackSegInputs, PhotoMetricDistortion, RandomCrop, Resize
from mmseg.models.data_preprocessor import SegDataPreProcessor
from mmseg.models.decode_heads import FCNHead, UPerHead
from mmseg.models.losses import CrossEntropyLoss
from mmseg.models.necks import Feature2Pyramid
from mmseg.models.segmentors import EncoderDecoder
from torch.optim import AdamW

from evaluate.mm.backbones.segmentation import SegmentationBackbone
from evaluate.mm.datasets import SegmentationSet
from evaluate.mm.metrics import MeanIoU
from evaluate.mm.optimizer import LayerDecayConstructor
from evaluate.mm.sampler import TrainingSampler
from evaluate.mm.transforms import LoadLabels, LoadPicture

default_scope = "mmseg"

crop = 512
longest = 2048
ratios = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)  # of the test at several scales, each as it is and mirrored
batch_size = 16  # over all processes
max_iters = 160_000
norm = dict(type="SyncBN", requires_grad=True)  # mmengine makes it BN in a single process

model = dict(
    type=EncoderDecoder,
    data_preprocessor=dict(type=SegDataPreProcessor, mean=None, std=None, bgr_to_rgb=True, pad_val=0, seg_pad_val=255, size=(crop, crop)),
    backbone=dict(type=SegmentationBackbone, img_size=(crop, crop), drop_path=0.1),
    neck=dict(type=Feature2Pyramid, embed_dim=None, rescales=[4, 2, 1, 0.5], norm_cfg=norm),
    decode_head=dict(
        type=UPerHead,
        in_channels=None,
        in_index=[0, 1, 2, 3],
        pool_scales=(1, 2, 3, 6),
        channels=None,  # the encoder's width
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
    test_cfg=dict(mode="slide", crop_size=(crop, crop), stride=(crop * 2 // 3, crop * 2 // 3)),  # 341
)

optim_wrapper = dict(
    type=OptimWrapper,  # on a GPU evaluate/mm/runner.py puts float16 here
    optimizer=dict(type=AdamW, lr=1e-4, betas=(0.9, 0.999), weight_decay=0.05),
    constructor=LayerDecayConstructor,
    paramwise_cfg=dict(layer_decay=0.65, num_layers=None, rule="mmseg"),
)
param_scheduler = [
    dict(type=LinearLR, start_factor=1e-6, by_epoch=False, begin=0, end=1500),
    dict(type=PolyLR, eta_min=0.0, power=1.0, by_epoch=False, begin=1500, end=max_iters),
]

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
train_cfg = dict(type=IterBasedTrainLoop, max_iters=max_iters, val_interval=max_iters + 1)
test_cfg = dict(type=TestLoop)
