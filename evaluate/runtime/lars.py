"""LARS, the optimizer of linear probes and of some pretraining methods."""

from collections.abc import Iterable
from typing import Any

import torch


class LARS(torch.optim.Optimizer):
    """SGD with momentum whose step on a matrix is scaled to ``trust * |w| / |g + wd w|``; vectors get plain momentum
    SGD.

    With ``vectors`` these are scaled and decayed too, by trust |w| / (|g| + wd |w| + eps), and where w or g is 0
    nothing decays: apex's LARC with ``clip=False``, which SwAV and SimSiam's linear probe use.

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
        eps: float = 0.0,
    ) -> None:
        defaults = {"lr": lr, "weight_decay": weight_decay, "momentum": momentum, "trust": trust}
        super().__init__(params, defaults | {"vectors": vectors, "rate_inside": rate_inside, "eps": eps})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                direction = parameter.grad
                if parameter.ndim > 1 or group["vectors"]:
                    decayed = direction + group["weight_decay"] * parameter
                    weight, size = parameter.norm(), (direction if group["vectors"] else decayed).norm()
                    total = size + group["weight_decay"] * weight + group["eps"] if group["vectors"] else size
                    unadapted = direction if group["vectors"] else decayed
                    adapted = decayed * (group["trust"] * weight / total)
                    direction = torch.where((weight > 0) & (size > 0), adapted, unadapted)
                momentum = self.state[parameter].setdefault("momentum", torch.zeros_like(parameter))
                inner, outer = (group["lr"], 1.0) if group["rate_inside"] else (1.0, group["lr"])
                momentum.mul_(group["momentum"]).add_(direction, alpha=inner)
                parameter.sub_(outer * momentum)
