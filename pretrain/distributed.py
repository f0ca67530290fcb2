"""The only place with collectives. Each is the identity in a single process.

Axes: B batch, N tokens, D width.
"""

import torch
import torch.distributed as dist
import torch.distributed.nn.functional as dist_functional
from torch import Tensor


def world_size() -> int:
    """Processes that train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Number of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def mean_over_ranks(tensor: Tensor) -> Tensor:
    """The average of a tensor over the processes; no gradient flows through it."""
    tensor = tensor.detach()
    if world_size() == 1:
        return tensor
    tensor = tensor.clone()
    dist.all_reduce(tensor)
    return tensor / world_size()


def differentiable_sum_over_ranks(tensor: Tensor) -> Tensor:
    """The sum over the processes, with its gradient."""
    return tensor if world_size() == 1 else dist_functional.all_reduce(tensor)


def all_finite(values: Tensor) -> bool:
    """Whether a value is finite in every process, so that all of them decide alike."""
    finite = torch.isfinite(values).all().float()
    if world_size() > 1:
        dist.all_reduce(finite, op=dist.ReduceOp.MIN)
    return bool(finite.item())
