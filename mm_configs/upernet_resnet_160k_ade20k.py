# ruff: noqa: F403, F405
"""UPerNet with a ResNet encoder on ADE20k: mmseg's own recipe for ResNet-50.

    python -m evaluate.segmentation --ckpt FILE --data-root DIR

160,000 iterations of 16 crops of 512 pixels. A supervised ResNet-50 gives mIoU 42.1 (mmseg's model zoo), on 4 GPUs with
four images each. Not the protocol of the SiameseIM table, which has ViTs only.
"""

from mmengine.config import read_base

with read_base():
    from ._upernet_ade20k import *

from mmengine.optim import OptimWrapper, PolyLR
from torch.optim import SGD

from evaluate.mm.backbones.resnet import ResNetBackbone

batch_size = 16  # over all processes
max_iters = 160_000

model.update(backbone=dict(type=ResNetBackbone), decode_head=dict(channels=512), test_cfg=dict(mode="whole"))

optim_wrapper = dict(type=OptimWrapper, optimizer=dict(type=SGD, lr=0.01, momentum=0.9, weight_decay=0.0005))
param_scheduler = [dict(type=PolyLR, eta_min=1e-4, power=0.9, by_epoch=False, begin=0, end=max_iters)]
train_cfg.update(max_iters=max_iters, val_interval=max_iters + 1)
