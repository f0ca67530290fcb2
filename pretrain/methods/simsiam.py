"""SimSiam: predict the projection of one view from the other, with a stopped gradient (Chen and He, arXiv 2011.10566).

    view 1 ─ encoder with projector ─ z1 ─ predictor ─▶ p1 ┐ cosine of p1 and z2, where z2 has no gradient;
    view 2 ─ encoder with projector ─ z2 ─ predictor ─▶ p2 ┴ and of p2 and z1

The names are those of the released code. Axes: B batch, D width of a projection.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

import torch.nn.functional as F
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor, nn

from evaluate.runtime.settings import Probability
from pretrain.config import RESNET_DEMO, ResNetConfig, Share
from pretrain.convnet import Backbone, at_least_float32, hidden
from pretrain.data.views import Batch
from pretrain.methods import Method
from pretrain.names import from_official as from_official
from pretrain.names import to_official as to_official
from pretrain.norm import BatchNorm


@dataclass(frozen=True)
class Config(ResNetConfig):
    """SimSiam's run; the defaults are those of the released code and the command of its README."""

    method: Literal["simsiam"] = "simsiam"
    """The file of pretrain/methods/. A preset chooses it."""
    dim: PositiveInt = 2048
    """Width of the projections, and of the projector."""
    pred_dim: PositiveInt = 512
    """Width of the predictor's hidden layer."""
    fix_pred_lr: bool = True
    """Whether the predictor's learning rate stays at its start."""

    crop_scale: tuple[Share, Share] = (0.2, 1.0)
    interpolation: Literal["bicubic", "bilinear"] = "bilinear"
    jitter: tuple[NonNegativeFloat, NonNegativeFloat, NonNegativeFloat, NonNegativeFloat] = (0.4, 0.4, 0.4, 0.1)
    blur_probability: tuple[Probability, Probability] = (0.5, 0.5)
    solarize_probability: tuple[Probability, Probability] = (0.0, 0.0)
    epochs: PositiveInt = 100
    warmup_epochs: NonNegativeFloat = 0.0
    batch_size: PositiveInt = 512
    base_lr: PositiveFloat = 0.05
    lr_changes: Literal["step", "epoch"] = "epoch"
    optimizer: Literal["adamw", "sgd", "lars", "larc"] = "sgd"
    weight_decay: NonNegativeFloat = 1e-4
    decayed: Literal["all", "matrices"] = "all"
    clip_norm: PositiveFloat | None = None
    precision: Literal["fp32", "bf16_products", "bf16", "fp16"] = "fp32"


PAPER = Config()
# with 32 images a step it hardly learns after the first epoch, with 128 it goes on
DEMO = replace(PAPER, **RESNET_DEMO | {"base_lr": 0.4, "warmup_epochs": 0.0, "batch_size": 128}, dim=128, pred_dim=32)
PRESETS = {"paper": PAPER, "100ep": PAPER, "demo": DEMO}


@dataclass(frozen=True)
class Outputs:
    """What one forward pass makes: loss (); predictions and projections (B, D) of the two views."""

    loss: Tensor
    prediction1: Tensor
    prediction2: Tensor
    projection1: Tensor
    projection2: Tensor


class SimSiam(Method):
    """Model and loss of one training step."""

    def __init__(self, config: Config):
        super().__init__()
        self.fix_pred_lr = config.fix_pred_lr
        self.encoder = Backbone(config)
        width, dim = self.encoder.width, config.dim
        last = nn.Linear(width, dim)
        last.bias.requires_grad_(False)  # the norm after it takes any shift away; the released code has it, frozen
        self.encoder.fc = nn.Sequential(*hidden([width, width, width]), last, BatchNorm(dim, affine=False))
        self.predictor = nn.Sequential(*hidden([dim, config.pred_dim]), nn.Linear(config.pred_dim, dim))

    def constant_rate(self) -> Iterable[nn.Parameter]:
        """The predictor's parameters, if the config says so."""
        return self.predictor.parameters() if self.fix_pred_lr else ()

    def features(self, images: Tensor) -> Tensor:
        """The encoder's features (B, D) before the projector, of whole images (B, 3, H, W)."""
        return self.encoder.features(images).float()

    def forward(self, batch: Batch) -> Outputs:
        """The views pass one after the other: each has its own BatchNorm statistics."""
        assert batch.view2 is not None
        z1, z2 = self.encoder(batch.view1), self.encoder(batch.view2)
        p1, p2 = self.predictor(z1), self.predictor(z2)
        return Outputs(-(mean_cosine(p1, z2.detach()) + mean_cosine(p2, z1.detach())) / 2, p1, p2, z1, z2)


def mean_cosine(first: Tensor, second: Tensor) -> Tensor:
    """Mean over the batch of the cosines of the rows of two tensors (B, D): a scalar in float32 or better."""
    return F.cosine_similarity(at_least_float32(first), at_least_float32(second)).mean()


def build(config: Config) -> SimSiam:
    """The model, from torch's global generator."""
    return SimSiam(config)
