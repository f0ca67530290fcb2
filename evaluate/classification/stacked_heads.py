"""Many linear heads on the same frozen features, trained at once.

Axes: B images, H heads of one input, C classes, D width of an input. The heads of an input are one matrix (H C, D):
their logits are one matrix product, and so are their gradients; nothing loops over heads.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

HEAD_STD = 0.01


class StackedHeads(nn.Module):
    """For each input (by name, of some width) one linear head a rate; every head learns as it would alone.

    SGD with momentum and without weight decay is linear in the loss: a head whose loss is weighted by w moves exactly
    as one whose rate is w times as high. So one optimizer at the highest rate trains all heads, each with its loss
    weighted by its share of that rate.
    """

    def __init__(self, widths: Mapping[str, int], base_lrs: Sequence[float], classes: int) -> None:
        super().__init__()
        self.base_lrs, self.classes = tuple(base_lrs), classes
        rows = len(base_lrs) * classes
        self.weights = nn.ParameterDict(
            {name: nn.Parameter(torch.randn(rows, width) * HEAD_STD) for name, width in widths.items()}
        )
        self.biases = nn.ParameterDict({name: nn.Parameter(torch.zeros(rows)) for name in widths})
        self.shares: Tensor
        self.register_buffer("shares", torch.tensor(self.base_lrs) / max(self.base_lrs), persistent=False)

    def forward(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Logits (B, H, C) by input."""
        return {
            name: torch.addmm(self.biases[name], inputs[name], weight.T).view(-1, len(self.base_lrs), self.classes)
            for name, weight in self.weights.items()
        }

    def head(self, name: str, index: int) -> tuple[Tensor, Tensor]:
        """Weight (C, D) and bias (C,) of the head of an input with one of the rates."""
        parts = self.weights[name], self.biases[name]
        weight, bias = (part.view(len(self.base_lrs), self.classes, *part.shape[1:])[index] for part in parts)
        return weight, bias

    @torch.no_grad()
    def accumulate(self, inputs: Mapping[str, Tensor], labels: Tensor, count: int) -> Tensor:
        """Adds the gradient of every head's cross entropy, over ``count`` images in all, times its share of the rate;
        returns their sum.
        """
        total = torch.zeros((), device=labels.device)
        repeated = labels.repeat_interleave(len(self.base_lrs))
        for name, logits in self(inputs).items():
            logits = logits.flatten(0, 1)
            with torch.enable_grad():
                logits.requires_grad_()
                losses = (
                    nn.functional.cross_entropy(logits, repeated, reduction="none").view(len(labels), -1).sum(dim=0)
                    / count
                )
                (gradient,) = torch.autograd.grad(losses @ self.shares, logits)
            gradient = gradient.view(len(labels), -1)
            self.weights[name].grad.addmm_(gradient.T, inputs[name])
            self.biases[name].grad.add_(gradient.sum(dim=0))
            total += losses.sum()
        return total


def make_optimizer(heads: StackedHeads, momentum: float = 0.9) -> torch.optim.SGD:
    """SGD for all heads; its rate is that of the head with the highest one.

    Gradients are kept from step to step, and zeroed.
    """
    for parameter in heads.parameters():
        parameter.grad = torch.zeros_like(parameter)  # a new one a step would cost as much as the product that fills it
    return torch.optim.SGD(heads.parameters(), lr=0.0, momentum=momentum, fused=True)
