"""The only place of evaluate/ with collectives; each is the identity in a single process.

A task started by ``torchrun`` shares its images out by index and puts the answers together in order: no padding
duplicates, so a metric is the same to the last digit on any number of processes.
"""

import atexit
import os
from typing import Any

import torch
import torch.distributed as dist


def rank() -> int:
    """This process's number, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def start(device: str) -> str:
    """Joins torchrun's process group, if this process is part of one; returns the device this rank is to use."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        return device
    if device.startswith("cuda"):
        device = f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    # a group whose threads still run when the interpreter ends can abort a process whose work is done
    atexit.register(leave)
    return device


def leave() -> None:
    """Leaves the process group, if there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()


def barrier() -> None:
    """Waits for all processes."""
    if dist.is_initialized():
        dist.barrier()


def sum_gradients(parameters: list[torch.nn.Parameter]) -> None:
    """Adds every parameter's gradient over the processes, in place."""
    if not dist.is_initialized():
        return
    for parameter in parameters:
        if parameter.grad is not None:
            dist.all_reduce(parameter.grad)


def broadcast_object(value: Any) -> Any:
    """The first process's value, on every process."""
    if not dist.is_initialized():
        return value
    values = [value]
    dist.broadcast_object_list(values)
    return values[0]


def gather_objects(value: Any) -> list[Any]:
    """Every process's value, in the order of ranks, on every process."""
    values = [value] * world_size()
    if dist.is_initialized():
        dist.all_gather_object(values, value)
    return values


def broadcast(tensors: list[torch.Tensor]) -> None:
    """Gives every process the tensors of the first, in place."""
    if dist.is_initialized():
        for tensor in tensors:
            dist.broadcast(tensor, 0)
