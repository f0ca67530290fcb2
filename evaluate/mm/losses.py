"""Federated loss (Zhou et al., arXiv 2103.07461) as detectron2 computes it, in the form of mmdet's box head."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def kept_classes(labels: Tensor, weights: Tensor, count: int, generator: torch.Generator | None = None) -> Tensor:
    """The classes that a batch is scored on.

    Args:
        labels: (N,) ground-truth class of each proposal; K is background and takes a place like any other.
        weights: (K,) sampling weight of each class.
        count: how many classes to reach; more than that many present are all kept.

    Returns:
        The classes present in ascending order, then those drawn, without replacement and in proportion to ``weights``.
    """
    present = torch.unique(labels)
    if len(present) >= count:
        return present
    chances = torch.cat([weights, weights.new_zeros(1)])
    chances[present] = 0
    places = min(count - len(present), int((chances > 0).sum()))
    if places == 0:
        return present
    return torch.cat([present, torch.multinomial(chances, places, replacement=False, generator=generator)])


def federated_loss(logits: Tensor, labels: Tensor, kept: Tensor | None) -> Tensor:
    """Sum of binary cross-entropies over the kept foreground columns, divided by the number of proposals.

    Args:
        logits: (N, K + 1); the last column, background, never counts.
        labels: (N,) in 0..K.
        kept: classes that count; ``None`` is all of them (plain sigmoid loss).
    """
    if len(labels) == 0:
        return logits.sum() * 0
    classes = logits.shape[1] - 1
    target = F.one_hot(labels, classes + 1)[:, :classes].to(logits.dtype)
    loss = F.binary_cross_entropy_with_logits(logits[:, :classes], target, reduction="none")
    if kept is not None:
        mask = loss.new_zeros(classes + 1)
        mask[kept] = 1
        loss = loss * mask[:classes]
    return loss.sum() / len(labels)


class FederatedLoss(nn.Module):
    """mmdet's box head asks a loss with these three flags for its channels, its activation and its accuracy.

    Args:
        image_counts: (K,) training images that hold each class.
        num_kept: detectron2's ``fed_loss_num_classes``.
        power: the class weight is image count ** power.
    """

    custom_cls_channels = True
    custom_activation = True
    custom_accuracy = True

    weights: Tensor

    def __init__(self, image_counts: list[int], num_kept: int = 50, power: float = 0.5) -> None:
        super().__init__()
        self.num_kept = num_kept
        self.register_buffer("weights", torch.tensor(image_counts, dtype=torch.float32) ** power, persistent=False)

    def get_cls_channels(self, num_classes: int) -> int:
        """The K classes and the background column."""
        return num_classes + 1

    def get_activation(self, cls_score: Tensor) -> Tensor:
        """Sigmoid scores (N, K + 1); the box head drops the last column."""
        return cls_score.sigmoid()

    def get_accuracy(self, cls_score: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Share of foreground proposals whose best class is right, in percent."""
        foreground = labels < cls_score.shape[1] - 1
        if not foreground.any():
            return {"acc": cls_score.new_zeros(1)}
        right = cls_score[foreground, :-1].argmax(1) == labels[foreground]
        return {"acc": 100 * right.float().mean()[None]}

    def forward(
        self,
        cls_score: Tensor,
        label: Tensor,
        weight: Tensor | None = None,
        avg_factor: float | None = None,
        reduction_override: str | None = None,
    ) -> dict[str, Tensor]:
        """The loss in mmdet's calling convention, whose weights, averaging factor and reduction are not used."""
        # Float32: sums over 512 proposals x 1203 classes overflow half precision.
        return {"loss_cls": federated_loss(cls_score.float(), label, kept_classes(label, self.weights, self.num_kept))}
