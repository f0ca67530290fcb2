"""The least time that the kernels of a pretended step would take on an H100, by what they multiply and move."""

import collections
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_iter
from torch.utils.flop_counter import flop_registry

from tests.gpu.pretended.audit import Watch, on_cuda

# What eager kernels reach on an H100 of 700 W, not what its data sheet says
RATES = {torch.float16: 700e12, torch.bfloat16: 700e12, torch.float32: 50e12, torch.float64: 30e12}  # a second
TF32_RATE = 350e12  # torch's convolutions in float32, unless told otherwise
ATTENTION_RATES = {"other": (300e12, 25e12), "efficient": (120e12, 20e12)}  # in short types and in float32
BANDWIDTH = 2.8e12  # bytes a second
LAUNCH = 2e-6  # seconds, the least a kernel takes
FREE = {"empty", "empty_like", "new_empty", "empty_strided", "detach", "alias"}


class Roofline(Watch):
    """Adds up max(operations / rate, bytes / bandwidth, launch) over the operations on the GPU; views are free."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds: collections.Counter[str] = collections.Counter()
        self.operations: collections.Counter[str] = collections.Counter()
        self.kernels = 0

    def watch(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """Adds an operation's time."""
        made = func(*args, **kwargs)
        name = func.overloadpacket.__name__
        taken = [value for value in tree_iter((args, kwargs)) if isinstance(value, Tensor)]
        given = [value for value in tree_iter(made) if isinstance(value, Tensor)]
        if name in FREE or not any(map(on_cuda, taken + given)) or _is_view(func, taken, given):
            return made
        count = flop_registry.get(func.overloadpacket)
        operations = count(*args, **kwargs, out_val=made) if count else 0
        size = sum(tensor.numel() * tensor.element_size() for tensor in taken + given if on_cuda(tensor))
        self.seconds[name] += max(operations / _rate(name, taken), size / BANDWIDTH, LAUNCH)
        self.operations[name] += operations
        self.kernels += 1
        return made


def _is_view(func: Any, taken: list[Tensor], given: list[Tensor]) -> bool:
    if func.overloadpacket in flop_registry or func._schema.is_mutable or not given:
        return False
    storages = {tensor.untyped_storage()._cdata for tensor in taken}
    return all(tensor.untyped_storage()._cdata in storages for tensor in given)


def _rate(name: str, taken: list[Tensor]) -> float:
    dtype = next((tensor.dtype for tensor in taken if tensor.is_floating_point()), torch.float32)
    if "attention" in name:
        short, single = ATTENTION_RATES["efficient" if "efficient" in name else "other"]
        return single if dtype == torch.float32 else short
    if dtype == torch.float32 and "convolution" in name:
        return TF32_RATE
    return RATES.get(dtype, RATES[torch.float32])
