"""A training step in mixed precision: the forward pass under autocast, weights and optimizer in float32.

mmengine's own AmpOptimWrapper works on accelerators only; this one also on a CPU, where it can be tested.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from mmengine.config import Config
from mmengine.optim import OptimWrapper
from torch import Tensor, nn

from evaluate.runtime.precision import DTYPES, autocast


class MixedPrecision(OptimWrapper):
    """mmengine's optimizer wrapper with autocast and, for float16, a dynamic loss scale that is part of its state.

    Args:
        precision: ``fp16`` or ``bf16``.
        device: ``cuda`` or ``cpu``.
    """

    def __init__(self, precision: str, device: str, **settings: Any) -> None:
        super().__init__(**settings)
        self.precision, self.device = precision, device
        self.scaler = torch.amp.GradScaler(device, enabled=precision == "fp16")

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        with super().optim_context(model), autocast(self.precision, self.device):
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


def use(cfg: Config, precision: str, device: str) -> None:
    """Puts mixed precision into a recipe, whose own optimizer wrapper computes in float32.

    In mmseg's MAE recipe ``fp16`` stands where mmengine does not read it, so that "amp" trains in float32 there.
    """
    if precision in DTYPES:
        cfg.optim_wrapper.update(type=MixedPrecision, precision=precision, device=device.partition(":")[0])
