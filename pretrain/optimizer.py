"""The optimizer and its learning rate."""

import math

import torch
from torch import nn

from pretrain.config import PretrainConfig


def learning_rate(epoch: float, config: PretrainConfig) -> float:
    """Linear warm-up, then a half cosine to ``min_lr``; ``epoch`` is fractional."""
    if epoch < config.warmup_epochs:
        return config.lr * epoch / config.warmup_epochs
    return cosine(config.lr, config.min_lr, (epoch - config.warmup_epochs) / (config.epochs - config.warmup_epochs))


def make_optimizer(model: nn.Module, config: PretrainConfig) -> torch.optim.AdamW:
    """AdamW; biases and other one-dimensional parameters do not decay."""
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, fused=True)


def cosine(start: float, end: float, progress: float) -> float:
    """A half cosine from start (progress 0) to end (progress 1)."""
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * progress))
