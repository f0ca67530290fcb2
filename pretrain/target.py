"""The moving average of a network that some methods predict."""

import torch
from torch import Tensor, nn


@torch.no_grad()
def move_towards(target: nn.Module, online: nn.Module, momentum: float) -> None:
    """target = momentum * target + (1 - momentum) * online: parameters only, BatchNorm keeps its own statistics."""
    targets: list[Tensor] = list(target.parameters())
    onlines: list[Tensor] = list(online.parameters())
    torch._foreach_lerp_(targets, onlines, 1 - momentum)
