"""LARS, the optimizer of linear probes and of some pretraining methods."""

from collections.abc import Iterable
from typing import Any

import torch


class LARS(torch.optim.Optimizer):
    """SGD with momentum whose step on a matrix is scaled to ``trust * |w| / |g + wd w|``; vectors get plain momentum
    SGD.

    With ``vectors`` these are scaled and decayed too: apex's LARC with ``clip=False``, which SimSiam's linear probe
    uses.

    With d = g + wd w for tensors of two or more axes and d = g otherwise:
    d <- d * (trust |w| / |d|, or 1 where either norm is 0; matrices only);  m <- momentum m + d;  w <- w - lr m.
    With ``rate_inside`` (SimCLR's) m <- momentum m + lr d;  w <- w - m: another step once the rate changes.
    Source: You et al. 2017 in the form MoCo-v3, MAE and SiameseIM use (``util/lars.py``).
    """

    def __init__(
        self,
        params: Iterable[torch.nn.Parameter] | Iterable[dict[str, Any]],
        lr: float,
        weight_decay: float = 0.0,
        momentum: float = 0.9,
        trust: float = 0.001,
        vectors: bool = False,
        rate_inside: bool = False,
    ) -> None:
        defaults = {"lr": lr, "weight_decay": weight_decay, "momentum": momentum, "trust": trust}
        super().__init__(params, defaults | {"vectors": vectors, "rate_inside": rate_inside})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                direction = parameter.grad
                if parameter.ndim > 1 or group["vectors"]:
                    direction = direction + group["weight_decay"] * parameter
                    norms = parameter.norm(), direction.norm()
                    ratio = group["trust"] * norms[0] / norms[1]
                    direction = direction * torch.where((norms[0] > 0) & (norms[1] > 0), ratio, torch.ones_like(ratio))
                momentum = self.state[parameter].setdefault("momentum", torch.zeros_like(parameter))
                inner, outer = (group["lr"], 1.0) if group["rate_inside"] else (1.0, group["lr"])
                momentum.mul_(group["momentum"]).add_(direction, alpha=inner)
                parameter.sub_(outer * momentum)
