"""What a step does on a pretended GPU: where the CPU waits, what is copied, what is mixed with tensors of the CPU.

Kinds of what is found, each with the line of the project (or of a library) that asks for it:

    wait: …         the CPU waits until the GPU has done all that was asked of it
    to the CPU      a copy back, which is such a wait too
    mixed: …        an operation on the GPU takes a tensor of the CPU (torch allows single numbers; larger ones raise)
    to the GPU      a copy that needs no wait
    float64: …      arithmetic that GPUs are slow at
"""

import collections
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_iter
from torch.utils.flop_counter import flop_registry

ROOT = Path(__file__).resolve().parents[3]
HERE = str(Path(__file__).resolve().parent)
SIZE_KNOWN_LATE = {"nonzero", "masked_select", "unique_consecutive", "_unique2", "unique_dim", "repeat_interleave"}
INDEXING = {"index", "index_put_", "index_put"}


def pretended_gpu() -> FakeTensorMode:
    """The mode in which tensors have shape, type and device but no values. Tensors from outside may be used in it.

    Raises RuntimeError unless the process was started with the variables of ``build``.
    """
    if not torch.cuda.is_available():
        raise RuntimeError(
            "there is no pretended GPU; start with the variables that tests/gpu/pretended/build.py prints"
        )
    return FakeTensorMode(allow_non_fake_inputs=True)


def on_gpu(model: nn.Module) -> nn.Module:
    """Puts a module's parameters and buffers on the pretended GPU, in place; called inside the mode.

    ``Module.to`` cannot: it keeps each parameter's identity, which a tensor without values has no way to.
    """
    for module in model.modules():
        for name, old in list(module._parameters.items()):
            if old is not None:
                module._parameters[name] = nn.Parameter(
                    torch.empty(old.shape, dtype=old.dtype, device="cuda"), old.requires_grad
                )
        for name, old in list(module._buffers.items()):
            if old is not None:
                module._buffers[name] = torch.empty(old.shape, dtype=old.dtype, device="cuda")
    return model


def on_cuda(value: Any) -> bool:
    """Whether something is a tensor of the GPU."""
    return isinstance(value, Tensor) and value.device.type == "cuda"


class Watch(TorchDispatchMode):
    """Sees elementary operations; whole ones (``linear``, ``to``: inference mode hands them over) come apart."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.overloadpacket.__name__ == "device":
            return func(*args, **kwargs)
        if func not in flop_registry:
            with self:
                made = func.decompose(*args, **kwargs)
            if made is not NotImplemented:
                return made
        return self.watch(func, args, kwargs)

    def watch(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """Runs an elementary operation, and looks at it."""
        raise NotImplementedError


class Audit(Watch):
    """Records what the operations inside it do; ``scalar`` is what a number read from the GPU is said to be."""

    def __init__(self, scalar: float = 1.0) -> None:
        super().__init__()
        self.scalar = scalar
        self.operations = 0
        self.found: collections.Counter[tuple[str, str]] = collections.Counter()
        self.bytes: collections.Counter[tuple[str, str]] = collections.Counter()

    def watch(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """As the mode says."""
        name = func.overloadpacket.__name__
        if name == "_local_scalar_dense":
            return self._number(func, args[0])
        tensors = [value for value in tree_iter((args, kwargs)) if isinstance(value, Tensor)]
        if name in ("_to_copy", "copy_"):
            self._copy(name, args, kwargs)
        elif any(map(on_cuda, tensors)):
            self._operation(name, args, tensors)
        if name == "nonzero":
            return _positions(args[0].numel(), args[0], args[0].dim())
        if name == "nms":
            return _positions(len(args[0]), args[0])
        if name == "_unique2":
            each = _positions(args[0].numel(), args[0])
            return args[0].flatten(), each.view(args[0].shape), each
        if name in INDEXING:
            args = (args[0], _without_masks(args[1]), *args[2:])
        return func(*args, **kwargs)

    def _number(self, func: Any, tensor: Tensor) -> Any:
        if on_cuda(tensor):
            self.note("wait: a number is read")
        try:
            return func(tensor)
        except Exception:  # a tensor without values has none; any other is right as long as the step goes on
            if tensor.dtype == torch.bool:
                return bool(self.scalar)
            return float(self.scalar) if tensor.dtype.is_floating_point else int(self.scalar)

    def _copy(self, name: str, args: Any, kwargs: Any) -> None:
        source = args[0] if name == "_to_copy" else args[1]
        target = kwargs.get("device") if name == "_to_copy" else args[0].device
        waits = not (kwargs.get("non_blocking") or (name == "copy_" and len(args) > 2 and args[2]))
        where = torch.device(target).type if target is not None else source.device.type
        size = source.numel() * source.element_size()
        if (source.device.type, where) == ("cpu", "cuda"):
            self.note("wait: copy to the GPU" if waits else "to the GPU", size)
        if (source.device.type, where) == ("cuda", "cpu"):
            self.note("to the CPU", size)

    def _operation(self, name: str, args: Any, tensors: list[Tensor]) -> None:
        self.operations += 1
        chosen_by_mask = name in INDEXING and any(map(_is_mask, args[1]))
        if name in SIZE_KNOWN_LATE or chosen_by_mask:
            self.note(f"wait: the size of {name} is known on the GPU alone")
        if any(tensor.device.type == "cpu" for tensor in tensors):
            self.note(f"mixed: {name}")
        doubles = sum(tensor.numel() for tensor in tensors if tensor.dtype == torch.float64)
        if doubles > 1:
            self.note(f"float64: {name}", 8 * doubles)

    def note(self, kind: str, size: int = 0) -> None:
        """Records one find, at the line that asks for it."""
        self.found[kind, _place()] += 1
        self.bytes[kind, _place()] += size

    def entries(self) -> list[dict[str, Any]]:
        """What was found: kind, place, how often and bytes."""
        return [
            {"kind": kind, "place": place, "count": count, "bytes": self.bytes[kind, place]}
            for (kind, place), count in sorted(self.found.items())
        ]


class Made(TorchFunctionMode):
    """Records numbers put on the GPU straight away (``torch.tensor(…, device="cuda")``), which no operation shows."""

    def __init__(self, audit: Audit) -> None:
        super().__init__()
        self.audit = audit

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.numpy and isinstance(args[0], FakeTensor):  # was copied to the CPU, and has no values
            return np.zeros(tuple(args[0].shape), dtype=str(args[0].dtype).removeprefix("torch."))
        if func is Tensor.numpy:  # of the CPU's own, whose values choices are made by
            with _disable_current_modes():
                return args[0].numpy()
        made = func(*args, **(kwargs or {}))
        if func in (torch.tensor, torch.as_tensor) and on_cuda(made) and not (args and on_cuda(args[0])):
            self.audit.note("wait: torch.tensor on the GPU", made.numel() * made.element_size())
        return made


def _is_mask(index: Any) -> bool:
    return getattr(index, "dtype", None) in (torch.bool, torch.uint8)


def _positions(count: int, chosen: Tensor, *shape: int) -> Tensor:
    """What an operation finds that chooses by values, which are not there: everything."""
    return torch.empty((count, *shape), dtype=torch.int64, device=chosen.device)


def _without_masks(indices: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Indices in which a mask is replaced by the positions of all its entries."""
    found: list[Tensor | None] = []
    for index in indices:
        if index is None or not _is_mask(index):
            found.append(index)
        else:
            found.extend(_positions(index.numel(), index, index.dim()).unbind(1))
    return found


def _place() -> str:
    """``file:line`` of the innermost call in the project, these scripts aside, or else in a library but torch."""
    library, own, frame = "", "?", sys._getframe(1)
    while frame is not None:
        file = frame.f_code.co_filename
        if "/site-packages/" in file:
            inside = file.rpartition("/site-packages/")[2]
            if not library and not inside.startswith("torch/"):
                library = f"{inside}:{frame.f_lineno}"
        elif file.startswith(f"{ROOT}/"):
            place = f"{Path(file).relative_to(ROOT)}:{frame.f_lineno}"
            if not file.startswith(HERE):
                return place
            own = place
        frame = frame.f_back
    return library or own
