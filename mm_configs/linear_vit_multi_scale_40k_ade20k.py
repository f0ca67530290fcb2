# ruff: noqa: F403, F405
"""DINOv2's second linear setup on a frozen ViT's patch tokens: the last four layers, several scales.

    python -m evaluate.linear_segmentation --ckpt FILE --data-root DIR --set setup=multi_scale

The paper's "+ms" (arXiv 2304.07193, Section 7.4: the patch tokens of the last four layers side by side, 640 px, test
at several scales). Crops of 640 px of pictures whose shorter side is one to three times that, windows of 640 px half
of that apart, and the mean probability over five scales, each also mirrored. The last norm is applied to each layer.
Resizing, crops and scales were read in changed copies of the released configuration, the windows' share in a copy of
another size, none in an original;
schedule, batch and learning rate are those of the first setup, which ran on 8 GPUs without mixed precision. Published
mIoU: 51.3 on ADE20k, 84.9 on VOC 2012 (DINOv2's ViT-B/14).
"""

from mmengine.config import read_base

with read_base():
    from .linear_vit_40k_ade20k import *

crop = 640
longest = 99_999_999  # no limit
ratios = (1.0, 1.32, 1.73, 2.28, 3.0)

model.update(
    backbone=dict(img_size=(crop, crop), layers=4),
    decode_head=dict(in_index=[0, 1, 2, 3], input_transform="resize_concat"),
    test_cfg=dict(crop_size=(crop, crop), stride=(crop // 2, crop // 2)),
)

train_dataloader.dataset.pipeline[2].update(scale=(longest, crop), ratio_range=(1.0, 3.0))
train_dataloader.dataset.pipeline[3].update(crop_size=(crop, crop))
test_dataloader.dataset.pipeline[1].update(scale=(longest, crop))
