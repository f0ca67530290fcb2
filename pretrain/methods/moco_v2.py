"""MoCo v2: the step of ``moco_v1`` with a head of two layers, stronger views and a cosine (arXiv 2003.04297)."""

from dataclasses import dataclass, replace
from typing import Literal

from pydantic import NonNegativeFloat, PositiveFloat
from torch import nn

from evaluate.runtime.settings import Probability
from pretrain.methods.moco_v1 import MOCO_DEMO, MoCo, MoCoConfig
from pretrain.names import from_official as from_official
from pretrain.names import to_official as to_official


@dataclass(frozen=True)
class Config(MoCoConfig):
    """MoCo v2's run of 200 epochs; the defaults are those of the released code and the command of its README."""

    method: Literal["moco_v2"] = "moco_v2"
    """The file of pretrain/methods/. A preset chooses it."""

    temperature: PositiveFloat = 0.2
    jitter: tuple[NonNegativeFloat, NonNegativeFloat, NonNegativeFloat, NonNegativeFloat] = (0.4, 0.4, 0.4, 0.1)
    blur_probability: tuple[Probability, Probability] = (0.5, 0.5)


PAPER = Config()
PRESETS = {
    "paper": PAPER,
    "200ep": PAPER,
    "800ep": replace(PAPER, epochs=800),
    "demo": replace(PAPER, **MOCO_DEMO),
}


def build(config: Config) -> MoCo:
    """The model, from torch's global generator. Its head has no norm."""
    return MoCo(
        config,
        lambda width: nn.Sequential(nn.Linear(width, width), nn.ReLU(inplace=True), nn.Linear(width, config.dim)),
    )
