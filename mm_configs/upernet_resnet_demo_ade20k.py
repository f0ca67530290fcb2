# ruff: noqa: F403, F405
"""The demo's segmenter for ResNets: a small head, small crops and a schedule of seconds. Its numbers compare with nothing."""

from mmengine.config import read_base

with read_base():
    from .upernet_vit_demo_ade20k import *

from evaluate.mm.backbones.resnet import ResNetBackbone

model.backbone = dict(type=ResNetBackbone)
model.neck = None
optim_wrapper = dict(type=OptimWrapper, optimizer=dict(type=AdamW, lr=1e-3, betas=(0.9, 0.999), weight_decay=0.05))
