# ruff: noqa: F403, F405
"""The demo's segmenter for ResNets: a small head, small crops and a schedule of seconds.

Its numbers compare with nothing.
"""

from mmengine.config import read_base

with read_base():
    from .upernet_resnet_160k_ade20k import *

from mmengine.optim import LinearLR
from torch.optim import AdamW

crop = 64
batch_size = 4
max_iters = 300

model.update(
    data_preprocessor=dict(size=(crop, crop)),
    # with so few channels ReLUs die, and classes that have none of their own (two of seven) are never learnt, however
    # long it takes
    decode_head=dict(channels=32, act_cfg=dict(type="GELU")),
    auxiliary_head=dict(channels=16, act_cfg=dict(type="GELU")),
    test_cfg=dict(mode="slide", crop_size=(crop, crop), stride=(42, 42)),
)

optim_wrapper = dict(type=OptimWrapper, optimizer=dict(type=AdamW, lr=1e-3, betas=(0.9, 0.999), weight_decay=0.05))
param_scheduler = [
    dict(type=LinearLR, start_factor=1e-6, by_epoch=False, begin=0, end=15),
    dict(type=PolyLR, eta_min=0.0, power=1.0, by_epoch=False, begin=15, end=max_iters),
]
train_cfg.update(max_iters=max_iters, val_interval=max_iters + 1)

train_dataloader.dataset.pipeline[2].update(scale=(4 * crop, crop), ratio_range=(0.8, 1.5))
train_dataloader.dataset.pipeline[3].update(crop_size=(crop, crop))
test_dataloader.dataset.pipeline[1].update(scale=(4 * crop, crop))
