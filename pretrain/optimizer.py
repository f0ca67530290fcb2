"""The optimizer and its learning rate."""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from evaluate.runtime.lars import LARS
from pretrain.config import PretrainConfig

LARC_EPS = 1e-8  # apex's


def learning_rate(epoch: float, config: PretrainConfig, step: float = 0.0) -> float:
    """Linear warm-up, then a half cosine to ``min_lr``, or two steps down; ``epoch`` is fractional, and a step is
    ``step`` epochs."""
    if config.lr_changes == "epoch":
        epoch = math.floor(epoch)
    if epoch < config.warmup_epochs:
        last = config.warmup_epochs - step if config.warmup_inclusive else config.warmup_epochs
        return config.warmup_lr + (config.lr - config.warmup_lr) * epoch / (last or 1.0)
    if config.lr_schedule == "steps":
        passed = sum(5 * epoch >= fifths * config.epochs for fifths in (3, 4))
        return config.lr * 0.1**passed
    return cosine(config.lr, config.min_lr, (epoch - config.warmup_epochs) / (config.epochs - config.warmup_epochs))


def make_optimizer(model: nn.Module, config: PretrainConfig, constant: Iterable[nn.Parameter] = ()) -> Optimizer:
    """The optimizer of the parameters that are trained; the rate of those in ``constant`` stays at its start."""
    fixed = {id(parameter) for parameter in constant}
    trained = [p for p in model.parameters() if p.requires_grad]
    groups: list[dict[str, Any]] = []
    for is_constant in (False, True):
        chosen = [p for p in trained if (id(p) in fixed) is is_constant]
        matrices, vectors = ([p for p in chosen if (p.ndim > 1) is wanted] for wanted in (True, False))
        decay = config.weight_decay if config.decayed == "all" else 0.0
        for part, weight_decay in ((matrices, config.weight_decay), (vectors, decay)):
            if part:
                group = {"params": part, "weight_decay": weight_decay}
                groups.append(group | {"constant": True} if is_constant else group)
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=True)
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=config.lr, momentum=config.sgd_momentum)
    if config.optimizer == "larc":
        return LARS(groups, config.lr, 0.0, config.sgd_momentum, config.trust, vectors=True, eps=LARC_EPS)
    return LARS(groups, config.lr, 0.0, config.sgd_momentum, config.trust, rate_inside=config.rate_inside)


def set_rate(optimizer: Optimizer, rate: float) -> None:
    """Gives a rate to all parameters whose rate is not constant."""
    for group in optimizer.param_groups:
        if not group.get("constant"):
            group["lr"] = rate


def cosine(start: float, end: float, progress: float) -> float:
    """A half cosine from start (progress 0) to end (progress 1)."""
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * progress))
