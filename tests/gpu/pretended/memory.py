"""The most bytes that live on a pretended GPU at once."""

import weakref
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils._pytree import tree_iter

from tests.gpu.pretended.audit import Watch, on_cuda

BLOCK = 512  # the allocator of torch rounds up to so many bytes


class Memory(Watch):
    """Counts storages from the operation that makes them to their end; ``module`` and ``optimizer`` add what stood
    before the first one.

    A card needs 10 to 15 % more: its context, workspaces, fragmentation.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.alive: dict[int, weakref.ref] = {}

    def watch(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """Counts what an operation makes."""
        made = func(*args, **kwargs)
        for value in tree_iter(made):
            self.see(value)
        return made

    def see(self, value: Any) -> None:
        """Counts a tensor's storage unless it is counted already or lies elsewhere."""
        if not on_cuda(value):
            return
        storage = value.untyped_storage()
        key, size = storage._cdata, -(-storage.nbytes() // BLOCK) * BLOCK
        if key in self.alive:
            return

        def end(_: Any) -> None:
            self.now -= size
            del self.alive[key]

        self.alive[key] = weakref.ref(storage, end)
        self.now += size
        self.peak = max(self.peak, self.now)

    def module(self, module: nn.Module) -> None:
        """Counts the parameters, their gradients and the buffers."""
        for tensor in (*module.parameters(), *module.buffers(), *(parameter.grad for parameter in module.parameters())):
            self.see(tensor)

    def optimizer(self, optimizer: Optimizer) -> None:
        """Counts what an optimizer remembers."""
        for state in optimizer.state.values():
            for value in state.values():
                if isinstance(value, Tensor):
                    self.see(value)
