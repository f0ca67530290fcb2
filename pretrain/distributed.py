"""All communication between the processes of a run; in a single process every function is the identity.

Groups are joined and left by ``evaluate.runtime.distributed``; gradients by DDP and failing together are pretraining's
own.

Axes: B batch, N tokens, D width.
"""

import contextlib
import os
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any, NoReturn, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

from evaluate.runtime import distributed as runtime
from evaluate.runtime.errors import UserError

T = TypeVar("T")
TIMEOUT = timedelta(minutes=10)  # a process that has said nothing for so long is taken for dead

_single = False


class FailedOnRankZero(Exception):
    """An error that all processes stop for and that process 0 reports."""


def start(device: str) -> str:
    """Joins the processes that torchrun has started, if it has, as ``evaluate.runtime.distributed.start``."""
    return runtime.start(device, TIMEOUT)


end = runtime.end


def world_size() -> int:
    """Processes that train together."""
    return dist.get_world_size() if dist.is_initialized() and not _single else 1


def rank() -> int:
    """Number of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def cores() -> int:
    """This process's share of the cores that the run may use on this machine."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(usable // int(os.environ.get("LOCAL_WORLD_SIZE", "1")), 1)


@contextlib.contextmanager
def single_process() -> Iterator[None]:
    """A context in which this process computes by itself: no collective waits for another process."""
    global _single
    _single = True
    try:
        yield
    finally:
        _single = False


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
    return tensor if world_size() == 1 else _Sum.apply(tensor)


def gather_rows(tensor: Tensor) -> tuple[Tensor, int]:
    """The rows (B, D) of all processes in the order of ranks, with their gradient, and where this process's begin."""
    if world_size() == 1:
        return tensor, 0
    first = rank() * len(tensor)
    after = (world_size() - 1) * len(tensor) - first
    return _Sum.apply(torch.nn.functional.pad(tensor, (0, 0, first, after))), first


def from_rank_zero(tensor: Tensor) -> Tensor:
    """Process 0's tensor, in all processes; it has the same shape in each and no gradient."""
    if world_size() > 1:
        dist.broadcast(tensor, 0)
    return tensor


class _Sum(torch.autograd.Function):
    """Each process adds its part to the sum and has a loss that depends on it: the gradient is the sum of theirs."""

    @staticmethod
    def forward(context: Any, tensor: Tensor) -> Tensor:
        total = tensor.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        return _Sum.forward(context, gradient)


def any_rank(flag: bool) -> bool:
    """Whether a flag is set in at least one process; the same answer in all of them."""
    if world_size() == 1:
        return flag
    flags = torch.tensor(float(flag))
    dist.all_reduce(flags, op=dist.ReduceOp.MAX)
    return bool(flags)


def gather_objects(value: T | None) -> list[T]:
    """The values of all processes that are not None, in the order of ranks; if all are None this costs next to
    nothing."""
    if not any_rank(value is not None):
        return []
    values: list[T | None] = [value]
    if world_size() > 1:
        values = [None] * world_size()
        dist.all_gather_object(values, value)
    return [value for value in values if value is not None]


def all_or_none(action: Callable[[], T]) -> T:
    """Calls ``action`` in every process and returns this process's result; if it fails in one process, all raise.

    No process is left waiting for one that has ended.

    Raises:
        UserError, ValueError, OSError: the error of the lowest rank that failed, in process 0. FailedOnRankZero: in the
        others.
    """
    result, error = None, None
    try:
        result = action()
    except (UserError, ValueError, OSError) as caught:
        error = caught
    errors = gather_objects(error)
    if errors:
        raise_together(errors[0])
    return result  # type: ignore[return-value]  # no process failed, so this one has a result


def on_rank_zero(action: Callable[[], T]) -> T | None:
    """Calls ``action`` in process 0 and returns its result there, None elsewhere; if it fails, all raise as in
    ``all_or_none``."""
    return all_or_none(lambda: action() if rank() == 0 else None)


def raise_together(error: Exception) -> NoReturn:
    """Raises an error that all processes know of: the error in process 0, FailedOnRankZero in the others, so that one
    reports it."""
    raise error if rank() == 0 else FailedOnRankZero


class DataParallel(nn.parallel.DistributedDataParallel):
    """Averages the gradients over the processes; ``is_finite`` tells of this process's own, as it was before."""

    def __init__(self, model: nn.Module):
        device_ids = [torch.cuda.current_device()] if next(model.parameters()).is_cuda else None
        super().__init__(model, device_ids=device_ids)
        self.broadcast_buffers = False  # all processes compute the same ones
        self.finite: list[Tensor] = []  # one a bucket
        self.register_comm_hook(self.finite, _look_then_average)

    def is_finite(self) -> bool:
        """Whether this process's own gradient of the last step was finite."""
        return bool(torch.stack(self.finite).all())

    def forward(self, *inputs: Any) -> Any:
        self.finite.clear()
        return super().forward(*inputs)


def _look_then_average(finite: list[Tensor], bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
    finite.append(torch.isfinite(bucket.buffer()).all())
    return allreduce_hook(None, bucket)  # type: ignore[arg-type]  # torch takes None for the group of all
