"""MoCo-v3 of a ResNet: the step of ``moco_v3_vit`` with heads of one layer less, and LARS (arXiv 2104.02057)."""

from dataclasses import dataclass, replace
from typing import Literal

from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt

from evaluate.runtime.settings import Probability
from pretrain.config import RESNET_DEMO, ResNetConfig, Share
from pretrain.convnet import Backbone, mlp
from pretrain.methods.moco_v3_vit import MoCoV3
from pretrain.names import from_official as from_official
from pretrain.names import to_official as to_official
from pretrain.norm import BatchNorm


@dataclass(frozen=True)
class Config(ResNetConfig):
    """MoCo-v3's run with ResNet-50 for 300 epochs; the defaults are those of the released code's CONFIG.md."""

    method: Literal["moco_v3_resnet"] = "moco_v3_resnet"
    """The file of pretrain/methods/. A preset chooses it."""
    mlp_dim: PositiveInt = 4096
    """Width of the hidden layers of the head and the predictor."""
    dim: PositiveInt = 256
    """Width of what is compared."""
    temperature: PositiveFloat = 1.0
    """What the similarities are divided by."""
    momentum: Probability = 0.99
    """Momentum of the moving average at the start; it rises to 1 on a half cosine."""

    crop_scale: tuple[Share, Share] = (0.2, 1.0)
    interpolation: Literal["bicubic", "bilinear"] = "bilinear"
    epochs: PositiveInt = 300
    warmup_epochs: NonNegativeFloat = 10.0
    base_lr: PositiveFloat = 0.3
    optimizer: Literal["adamw", "sgd", "lars", "larc"] = "lars"
    weight_decay: NonNegativeFloat = 1e-6
    clip_norm: PositiveFloat | None = None


PAPER = Config()
PRESETS = {
    "paper": PAPER,
    "100ep": replace(PAPER, epochs=100, base_lr=0.6),
    "300ep": PAPER,
    "1000ep": replace(PAPER, epochs=1000, weight_decay=1.5e-6, momentum=0.996),
    # the paper's temperature is of 4096 images, its momentum of 100,000 steps
    "demo": replace(PAPER, **RESNET_DEMO, mlp_dim=128, dim=32, temperature=0.2, momentum=0.95),
}


def build(config: Config) -> MoCoV3:
    """The model, from torch's global generator. Its predictor ends without a norm."""
    encoder = Backbone(config)
    encoder.fc = mlp([encoder.width, config.mlp_dim, config.dim], BatchNorm(config.dim, affine=False))
    predictor = mlp([config.dim, config.mlp_dim, config.dim])
    return MoCoV3(encoder, predictor, config.temperature, config.momentum)
