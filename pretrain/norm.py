"""BatchNorm over the images of all processes, or over groups of a few images, on any device."""

import contextlib
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretrain import distributed


class BatchNorm(nn.BatchNorm2d):
    """BatchNorm of (B, C) or (B, C, H, W) whose moments are those of all processes, each of which has equally many.

    As torch's SyncBatchNorm, which a CPU does not have. The moments of more than one process are taken in float32 or
    better.
    """

    counts = True  # whether a batch moves the running statistics

    def _check_input_dim(self, input: Tensor) -> None:
        pass  # of one or of no spatial axis too

    def forward(self, input: Tensor) -> Tensor:
        if self.training and distributed.world_size() > 1:
            return self._synchronized(input)
        if self.training and not self.counts:
            assert self.running_mean is not None and self.running_var is not None
            kept = self.running_mean.clone(), self.running_var.clone()
            return F.batch_norm(input, *kept, self.weight, self.bias, training=True, eps=self.eps)
        return super().forward(input)

    def _synchronized(self, input: Tensor) -> Tensor:
        assert self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None
        assert self.momentum is not None
        axes = [axis for axis in range(input.ndim) if axis != 1]
        shape = [1, -1] + [1] * (input.ndim - 2)
        values = input.to(self.running_mean.dtype)
        count = values.numel() // values.shape[1] * distributed.world_size()
        mean = distributed.differentiable_sum_over_ranks(values.sum(axes)) / count
        centered = values - mean.view(shape)
        variance = distributed.differentiable_sum_over_ranks(centered.square().sum(axes)) / count
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * count / (count - 1), self.momentum)
        output = centered * torch.rsqrt(variance + self.eps).view(shape)
        if self.weight is not None:
            output = output * self.weight.view(shape)
        if self.bias is not None:
            output = output + self.bias.view(shape)
        return output.to(input.dtype)


@contextlib.contextmanager
def uncounted(norm: nn.Module) -> Iterator[None]:
    """Within it the BatchNorms in a module compute what they did with a batch that has already been counted."""
    found = [module for module in norm.modules() if isinstance(module, BatchNorm)]
    for module in found:
        module.counts = False
    try:
        yield
    finally:
        for module in found:
            module.counts = True


def is_repeatable(norm: nn.Module) -> bool:
    """Whether a norm gives the same a second time within ``uncounted``, without a word from other processes."""
    if isinstance(norm, nn.LayerNorm):
        return True
    alone = distributed.world_size() == 1 and not torch.compiler.is_compiling()
    return alone and any(isinstance(module, BatchNorm) for module in norm.modules())


class GroupedBatchNorm(nn.BatchNorm2d):
    """BatchNorm of (B, C, H, W) whose moments are those of ``group`` images, one group after the other.

    In training it computes what B / ``group`` processes with a BatchNorm of their own compute. The running statistics
    are those of the first group, as a run of many processes saves those of its first. B is a multiple of ``group``.
    """

    def __init__(self, channels: int, group: int):
        super().__init__(channels)
        self.group = group

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        first, *others = input.split(self.group)
        normalized = [super().forward(first)]
        for part in others:
            normalized.append(F.batch_norm(part, None, None, self.weight, self.bias, training=True, eps=self.eps))
        return torch.cat(normalized)
