"""The only place of evaluate/ with collectives; each is the identity in a single process.

A task started by ``torchrun`` shares its images out by index and puts the answers together in order: no padding
duplicates, so a metric is the same to the last digit on any number of processes.

What the processes tell each other (objects, flags) goes over gloo, tensors of GPUs over NCCL.
"""

import atexit
import os
import socket
import sys
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from evaluate.runtime.errors import UserError

TIMEOUT = timedelta(hours=12)  # one process converts, scores, or waits for a lock, and the others for it
ENDED = "evaluate/ended"  # of the group's store: the first process's exit status


def rank() -> int:
    """This process's number, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def start(device: str, timeout: timedelta = TIMEOUT) -> str:
    """Joins torchrun's process group, if this process is part of one; returns the device this rank is to use, which is
    made current.

    On GPUs each process takes the one of its local rank, or the only one that it sees.

    Args:
        device: a resolved one.
        timeout: how long a process waits for another before it ends.

    Raises:
        UserError: variables of a group that do not fit together, processes that srun has started without a group, or
            more processes than GPUs.
    """
    if dist.is_initialized():
        return device
    size = _size_of_group(device)
    if size is not None:
        device = _own_gpu(device, size)
        dist.init_process_group("cpu:gloo,cuda:nccl" if device.startswith("cuda") else "gloo", timeout=timeout)
        # a group whose threads still run when the interpreter ends can abort a process whose work is done
        atexit.register(leave)
    if ":" in device:
        torch.cuda.set_device(device)
    if size is not None and device.startswith("cuda"):
        cards = gather_objects((socket.gethostname(), str(torch.cuda.get_device_properties(device).uuid)))
        require_own_cards(cards)
    return device


def _size_of_group(device: str) -> int | None:
    """How many processes were started together, by the variables that torchrun sets; None where it has not started this
    one.
    """
    if "WORLD_SIZE" not in os.environ:
        if os.environ.get("SLURM_STEP_NUM_TASKS", "1") != "1":
            count = os.environ["SLURM_STEP_NUM_TASKS"]
            raise UserError(
                f"srun started {count} copies of this command, which know nothing of each other; start torchrun by "
                f"srun, with one task a node (--ntasks-per-node=1)"
            )
        return None
    values = {name: os.environ.get(name, "") for name in ("WORLD_SIZE", "RANK", "MASTER_PORT")}
    if device.startswith("cuda"):
        values["LOCAL_RANK"] = os.environ.get("LOCAL_RANK", "")
    wrong = [f"{name}={value}" if value else f"no {name}" for name, value in values.items() if not value.isdigit()]
    if wrong or not os.environ.get("MASTER_ADDR") or int(values["RANK"]) >= int(values["WORLD_SIZE"]):
        found = ", ".join(wrong) or f"RANK={values['RANK']}, MASTER_ADDR={os.environ.get('MASTER_ADDR', '')}"
        raise UserError(
            f"WORLD_SIZE is set to {values['WORLD_SIZE']!r}, but the other variables of a process group do not fit it "
            f"({found}); start the command by torchrun, or unset WORLD_SIZE"
        )
    return int(values["WORLD_SIZE"])


def _own_gpu(device: str, size: int) -> str:
    """The device of this process among those of this machine."""
    if not device.startswith("cuda"):
        return device
    if size > 1 and device != "cuda":
        raise UserError(f"--device {device} is one GPU for {size} processes; give --device cuda")
    count, number = torch.cuda.device_count(), int(os.environ["LOCAL_RANK"])
    if count == 1:  # srun and submitit can show each process its own GPU alone
        return "cuda:0"
    if number >= count:
        here = os.environ.get("LOCAL_WORLD_SIZE", "several")
        raise UserError(
            f"{here} processes were started on this machine, but torch can use {count} GPUs here; start as many "
            f"(--nproc-per-node {count})"
        )
    return f"cuda:{number}"


def require_own_cards(cards: list[tuple[str, str]]) -> None:
    """Raises UserError where two processes have the same GPU; ``cards`` are host and UUID, in the order of ranks."""
    for rank, card in enumerate(cards):
        if cards.index(card) < rank:
            raise UserError(
                f"processes {cards.index(card)} and {rank} have the same GPU of {card[0]}; start one process for each "
                f"GPU (--nproc-per-node)"
            )


def leave() -> None:
    """Leaves the process group, if there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()


def barrier() -> None:
    """Waits for all processes, over gloo."""
    if dist.is_initialized():
        dist.all_reduce(torch.zeros(1))


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


def require_same(value: Any, text: str) -> None:
    """Raises UserError with ``text`` and the values where the processes' values are not all the same."""
    values = gather_objects(value)
    if any(other != values[0] for other in values):
        raise UserError(f"{text} (by process: {', '.join(map(str, values))})")


def end_together(status: int, patience: timedelta = timedelta(minutes=1)) -> int:
    """Ends each process of a group with the first one's exit status, as soon as that one ends; a single process goes on
    with its own.

    torchrun ends every process as soon as one ends with another status than 0, and the first one may still be writing
    its record. A process that has failed waits no longer than ``patience``: the first one may be waiting for it.
    """
    if not dist.is_initialized():
        return status
    store = dist.distributed_c10d._get_default_store()
    if rank() == 0:
        store.set(ENDED, str(status))
        return end(status)
    try:
        store.wait([ENDED], patience if status else TIMEOUT)
    except dist.DistStoreError:
        return end(status)
    return end(int(store.get(ENDED)))


def end(status: int) -> int:
    """Ends a process of a group with ``status``, without taking the interpreter down; a single process goes on with it.

    torch 2.13 keeps the threads of a group that DDP has used, also when the group is left. One of them that lets go of
    a Python object while the interpreter is taken down aborts the process: a task whose record is written would fail.
    """
    if not dist.is_initialized():
        return status
    atexit._run_exitfuncs()  # leaves the group, too
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
