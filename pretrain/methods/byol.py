"""BYOL: predict the moving average's projection of one view from the other view (Grill et al., arXiv 2006.07733).

    view 1 ─ backbone ─ projector ─ predictor ─▶ p1 ┐ squared distance of the normalized p1 and t2;
    view 2 ─ momentum backbone ─ projector ─────▶ t2 ┴ and of p2 and t1

The released code is in JAX; the names are solo-learn's, whose last linear layers have a bias besides. Here the views
are made by torchvision's random resized crop and color jitter: the released code crops without retries, adds to the
brightness instead of multiplying it, takes the contrast about each channel's mean, and blurs with a border of zeros.
Axes: B batch, D width.
"""

import copy
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor

from evaluate.runtime.settings import Probability
from pretrain.config import RESNET_DEMO, ResNetConfig
from pretrain.convnet import Backbone, at_least_float32, mlp
from pretrain.data.views import Batch
from pretrain.methods import Method
from pretrain.names import from_official as from_official
from pretrain.names import to_official as to_official
from pretrain.optimizer import cosine
from pretrain.target import move_towards

NORM_EPS = 1e-12  # least square sum of a vector that is normalized


@dataclass(frozen=True)
class Config(ResNetConfig):
    """BYOL's run of 1000 epochs; the defaults are those of the released code's configs/byol.py."""

    method: Literal["byol"] = "byol"
    """The file of pretrain/methods/. A preset chooses it."""
    hidden_dim: PositiveInt = 4096
    """Width of the projector's hidden layer."""
    pred_hidden_dim: PositiveInt = 4096
    """Width of the predictor's hidden layer."""
    dim: PositiveInt = 256
    """Width of the projections."""
    momentum: Probability = 0.996
    """Momentum of the moving average at the start; it rises to 1 on a half cosine."""

    epochs: PositiveInt = 1000
    warmup_epochs: NonNegativeFloat = 10.0
    base_lr: PositiveFloat = 0.2
    optimizer: Literal["adamw", "sgd", "lars", "larc"] = "lars"
    weight_decay: NonNegativeFloat = 1.5e-6
    clip_norm: PositiveFloat | None = None
    precision: Literal["fp32", "bf16_products", "bf16", "fp16"] = "fp32"


PAPER = Config()
SHORT = replace(PAPER, base_lr=0.45, weight_decay=1e-6)
PRESETS = {
    "paper": PAPER,
    "40ep": replace(SHORT, epochs=40, momentum=0.97),
    "100ep": replace(SHORT, epochs=100, momentum=0.99),
    "300ep": replace(SHORT, epochs=300, base_lr=0.3, momentum=0.99),
    "1000ep": PAPER,
    # a target that follows within ten steps: there are few of them
    "demo": replace(PAPER, **RESNET_DEMO, hidden_dim=128, pred_hidden_dim=128, dim=32, momentum=0.9),
}


@dataclass(frozen=True)
class Outputs:
    """What one forward pass makes: loss (); predictions, projections and targets (B, D) of the two views."""

    loss: Tensor
    prediction1: Tensor
    prediction2: Tensor
    projection1: Tensor
    projection2: Tensor
    target1: Tensor
    target2: Tensor


class BYOL(Method):
    """Model and loss of one training step. The target starts as a copy; the released code draws it anew."""

    def __init__(self, config: Config):
        super().__init__()
        self.momentum = config.momentum
        self.backbone = Backbone(config)
        self.projector = mlp([self.backbone.width, config.hidden_dim, config.dim], bias=True)
        self.predictor = mlp([config.dim, config.pred_hidden_dim, config.dim], bias=True)
        self.momentum_backbone = copy.deepcopy(self.backbone).requires_grad_(False)
        self.momentum_projector = copy.deepcopy(self.projector).requires_grad_(False)

    def after_step(self, step: int, total: int) -> None:
        """Moves the target; the released code takes the momentum of the step that has just been made."""
        self.update_target(cosine(self.momentum, 1.0, (step - 1) / total))

    def update_target(self, momentum: float) -> None:
        """target = momentum * target + (1 - momentum) * online."""
        move_towards(self.momentum_backbone, self.backbone, momentum)
        move_towards(self.momentum_projector, self.projector, momentum)

    def features(self, images: Tensor) -> Tensor:
        """The backbone's features (B, D) of whole images (B, 3, H, W)."""
        return self.backbone(images).float()

    def forward(self, batch: Batch) -> Outputs:
        """The views pass one after the other: each has its own BatchNorm statistics."""
        assert batch.view2 is not None
        z1, z2 = (self.projector(self.backbone(view)) for view in (batch.view1, batch.view2))
        p1, p2 = self.predictor(z1), self.predictor(z2)
        with torch.no_grad():
            t1, t2 = (self.momentum_projector(self.momentum_backbone(view)) for view in (batch.view1, batch.view2))
        return Outputs(distance(p1, t2) + distance(p2, t1), p1, p2, z1, z2, t1, t2)


def distance(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean over the batch of |n(p) - n(t)|^2 of tensors (B, D), n(x) = x / |x|: a scalar in float32 or better."""
    p, t = (at_least_float32(rows) for rows in (prediction, target))
    p, t = (F.normalize(rows, dim=1, eps=NORM_EPS**0.5) for rows in (p, t))
    return (p - t).square().sum(1).mean()


def build(config: Config) -> BYOL:
    """The model, from torch's global generator."""
    return BYOL(config)
