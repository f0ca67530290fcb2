"""The only place of evaluate/ with collectives; each is the identity in a single process.

A task started by ``torchrun`` shares its images out by index and puts the answers together in order: no padding duplicates, so a
metric is the same to the last digit on any number of processes.
"""

import os
from typing import Any

import torch
import torch.distributed as dist


def world() -> tuple[int, int]:
    """(rank, number of processes)."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def start(device: str) -> str:
    """Joins torchrun's process group, if this process is part of one; returns the device this rank is to use."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        return device
    if device.startswith("cuda"):
        device = f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    return device


def barrier() -> None:
    """Waits for all processes."""
    if dist.is_initialized():
        dist.barrier()


def assemble(values: torch.Tensor, total: int) -> torch.Tensor:
    """All rows in the order of the set, where this process holds rows ``rank, rank + world, …`` of ``total``; on every process."""
    rank, size = world()
    if size == 1:
        return values
    longest = -(-total // size)
    padded = values.new_zeros((longest, *values.shape[1:]))
    padded[: len(values)] = values
    parts = [torch.empty_like(padded) for _ in range(size)]
    dist.all_gather(parts, padded)
    return torch.stack(parts, dim=1).flatten(0, 1)[:total]


def sum_gradients(parameters: list[torch.nn.Parameter]) -> None:
    """Adds every parameter's gradient over the processes, in place."""
    if not dist.is_initialized():
        return
    for parameter in parameters:
        if parameter.grad is not None:
            dist.all_reduce(parameter.grad)


def share(value: Any) -> Any:
    """The first process's value, on every process."""
    if not dist.is_initialized():
        return value
    values = [value]
    dist.broadcast_object_list(values)
    return values[0]


def gather(value: Any) -> list[Any]:
    """Every process's value, in the order of ranks, on every process."""
    values = [value] * world()[1]
    if dist.is_initialized():
        dist.all_gather_object(values, value)
    return values


def broadcast(tensors: list[torch.Tensor]) -> None:
    """Gives every process the tensors of the first, in place."""
    if dist.is_initialized():
        for tensor in tensors:
            dist.broadcast(tensor, 0)
