"""SimCLR: tell an image's other view from the views of all other images (Chen et al., arXiv 2002.05709).

    view 1 ┐ one batch ─ backbone ─ projector ─▶ z1, z2 ─ cross-entropy of each against all others, whose own other view
    view 2 ┘                                               is the answer

The released code is in TensorFlow; the names are solo-learn's. Here the views are made by torchvision's random resized
crop and color jitter: the released code takes the contrast about each channel's mean, and never a crop of less than a
tenth of the image. Axes: B batch, D width.
"""

from dataclasses import dataclass, replace
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from annotated_types import Ge
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor, nn

from evaluate.runtime.settings import Probability
from pretrain import distributed
from pretrain.config import RESNET_DEMO, ResNetConfig
from pretrain.convnet import Backbone, at_least_float32, mlp
from pretrain.data.views import Batch
from pretrain.methods import Method
from pretrain.names import from_official as from_official
from pretrain.names import to_official as to_official
from pretrain.norm import BatchNorm


@dataclass(frozen=True)
class SimCLRConfig(ResNetConfig):
    """What a method with SimCLR's network and loss has; the defaults are those of SimCLR's run of 1000 epochs: of its
    paper, and of its released code where it is silent."""

    dim: PositiveInt = 128
    """Width of what is compared."""
    proj_layers: Annotated[int, Ge(2)] = 2
    """Linear layers of the projector: 2 in the first version, 3 in the second."""
    temperature: PositiveFloat = 0.1
    """What the similarities are divided by."""

    jitter: tuple[NonNegativeFloat, NonNegativeFloat, NonNegativeFloat, NonNegativeFloat] = (0.8, 0.8, 0.8, 0.2)
    blur_probability: tuple[Probability, Probability] = (0.5, 0.5)
    solarize_probability: tuple[Probability, Probability] = (0.0, 0.0)
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """Mean of red, green and blue, subtracted from pixels in [0, 1]."""
    std: tuple[PositiveFloat, PositiveFloat, PositiveFloat] = (1.0, 1.0, 1.0)
    """Standard deviation of red, green and blue, by which pixels are divided."""
    epochs: PositiveInt = 1000
    warmup_epochs: NonNegativeFloat = 10.0
    base_lr: PositiveFloat = 0.3
    optimizer: Literal["adamw", "sgd", "lars", "larc"] = "lars"
    rate_inside: bool = True
    weight_decay: NonNegativeFloat = 1e-6
    clip_norm: PositiveFloat | None = None
    precision: Literal["fp32", "bf16_products", "bf16", "fp16"] = "fp32"


@dataclass(frozen=True)
class Config(SimCLRConfig):
    """SimCLR's run of 1000 epochs."""

    method: Literal["simclr"] = "simclr"
    """The file of pretrain/methods/. A preset chooses it."""


PAPER = Config()
PRESETS = {
    "paper": PAPER,
    "100ep": replace(PAPER, epochs=100, base_lr=0.075, lr_scaling="sqrt", weight_decay=1e-4),  # the README's command
    "1000ep": PAPER,
    "demo": replace(PAPER, **RESNET_DEMO, dim=32),
}


@dataclass(frozen=True)
class Outputs:
    """What one forward pass makes: loss (); features, projections (both (2B, D), view 1 first); logits (B, B of all).

    ``logits12`` are the similarities of this process's first views and all second views, over the temperature.
    """

    loss: Tensor
    features: Tensor
    projection: Tensor
    logits12: Tensor


class SimCLR(Method):
    """Model and loss of one training step."""

    def __init__(self, config: SimCLRConfig):
        super().__init__()
        self.temperature = config.temperature
        self.backbone = Backbone(config)
        width = self.backbone.width
        last = BatchNorm(config.dim)
        last.register_parameter("bias", None)  # the released code's last norm has a scale alone
        self.projector = mlp([width] * config.proj_layers + [config.dim], last)
        for layer in self.projector:
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=0.01)

    def features(self, images: Tensor) -> Tensor:
        """The backbone's features (B, D) of whole images (B, 3, H, W)."""
        return self.backbone(images).float()

    def forward(self, batch: Batch) -> Outputs:
        """Both views are one batch: they share their BatchNorm statistics."""
        assert batch.view2 is not None
        features = self.backbone(torch.cat([batch.view1, batch.view2]))
        projection = self.projector(features)
        first, second = projection.chunk(2)
        loss, logits12 = contrast(first, second, self.temperature)
        return Outputs(loss, features, projection, logits12)


def contrast(first: Tensor, second: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """mean_i -log softmax over the second views of all images and the other first views (/ T), and the same of the
    second.

    Projections (B, D) of the two views, compared with those of all processes with their gradient. The loss is a scalar
    in float32 or better, the released code's: twice the paper's mean over 2B. Also the logits of first and second
    views.
    """
    with torch.autocast(first.device.type, enabled=False):
        first, second = (F.normalize(at_least_float32(rows), dim=1) for rows in (first, second))
        (firsts, begin), (seconds, _) = distributed.gather_rows(first), distributed.gather_rows(second)
        own = torch.arange(begin, begin + len(first), device=first.device)
        itself = F.one_hot(own, len(firsts)).bool()
        logits12, logits21 = first @ seconds.T / temperature, second @ firsts.T / temperature
        logits11, logits22 = (
            (rows @ everyones.T / temperature).masked_fill(itself, -torch.inf)
            for rows, everyones in ((first, firsts), (second, seconds))
        )
        loss1 = F.cross_entropy(torch.cat([logits12, logits11], dim=1), own)
        loss2 = F.cross_entropy(torch.cat([logits21, logits22], dim=1), own)
        return loss1 + loss2, logits12


def build(config: Config) -> SimCLR:
    """The model, from torch's global generator."""
    return SimCLR(config)
