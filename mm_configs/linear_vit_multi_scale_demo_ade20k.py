# ruff: noqa: F403, F405
"""The demo's linear head of four layers and several scales, for encoders of four blocks or more (its own have three):
small crops and seconds. Its numbers compare with nothing."""

from mmengine.config import read_base

with read_base():
    from .linear_vit_40k_ade20k import *

crop = 64
longest = 99_999_999  # no limit
ratios = (1.0, 1.5)
batch_size = 4
max_iters = 300

model.update(
    backbone=dict(img_size=(crop, crop), layers=4),
    decode_head=dict(in_index=[0, 1, 2, 3], input_transform="resize_concat"),
    test_cfg=dict(crop_size=(crop, crop), stride=(crop // 2, crop // 2)),
)
optim_wrapper.update(optimizer=dict(lr=1e-2))  # fewer steps need a higher rate
param_scheduler[0].update(end=15)
param_scheduler[1].update(begin=15, end=max_iters)
train_cfg.update(max_iters=max_iters, val_interval=max_iters + 1)

train_dataloader.dataset.pipeline[2].update(scale=(longest, crop), ratio_range=(0.8, 1.5))
train_dataloader.dataset.pipeline[3].update(crop_size=(crop, crop))
test_dataloader.dataset.pipeline[1].update(scale=(longest, crop))
