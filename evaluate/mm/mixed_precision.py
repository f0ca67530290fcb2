"""A training step in mixed precision: the forward pass under autocast, weights and optimizer in float32.

mmengine's own AmpOptimWrapper works on accelerators only; this one also on a CPU, where it can be tested.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from mmengine.optim import OptimWrapper
from torch import Tensor, nn

from evaluate.runtime import precision as arithmetic


class MixedPrecision(OptimWrapper):
    """mmengine's optimizer wrapper with autocast and, for float16, a dynamic loss scale that is part of its state.

    Args:
        precision: ``fp16`` or ``bf16``.
        device: ``cuda``, ``cuda:N`` or ``cpu``.
    """

    def __init__(self, precision: str, device: str, **settings: Any) -> None:
        super().__init__(**settings)
        self.precision, self.device = precision, device
        self.scaler = torch.amp.GradScaler(device.split(":")[0], enabled=precision == "fp16")

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        with super().optim_context(model), arithmetic.autocast(self.precision, self.device):
            yield

    def backward(self, loss: Tensor, **settings: Any) -> None:
        self.scaler.scale(loss).backward(**settings)
        self._inner_count += 1

    def step(self, **settings: Any) -> None:
        if self.clip_grad_kwargs:
            self.scaler.unscale_(self.optimizer)
            self._clip_grad()
        self.scaler.step(self.optimizer, **settings)
        self.scaler.update()

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "scaler": self.scaler.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        state = dict(state_dict)
        self.scaler.load_state_dict(state.pop("scaler"))
        super().load_state_dict(state)
