"""A ResNet encoder as a backbone of four maps, for FPN and UPerNet: timm's own module with the encoder's tensors."""

from typing import Any

import torch
from torch import Tensor, nn

from evaluate.encoder import EncoderSpec, build
from evaluate.mm.attention import load_encoder


class ResNetBackbone(nn.Module):
    """Image (B, 3, H, W) to the stages' maps at strides 4, 8, 16 and 32. BatchNorm is trained with the rest, as MoCo does.

    Args:
        spec: the encoder's spec as JSON.
    """

    def __init__(self, spec: str) -> None:
        super().__init__()
        self.model = build(EncoderSpec.from_json(spec)).to_empty(device="cpu")

    @staticmethod
    def arguments(spec: EncoderSpec, state: dict[str, Tensor]) -> dict[str, Any]:
        """The constructor's arguments, as plain values for a config."""
        return {"spec": spec.to_json()}

    def load(self, spec: EncoderSpec, state: dict[str, Tensor]) -> dict[str, list[str]]:
        """Loads all of an encoder's tensors strictly; returns the names. Raises ValueError on one too many or too few."""
        return load_encoder(self.model, state, new={}, dropped=())

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        x = self.model.maxpool(self.model.act1(self.model.bn1(self.model.conv1(images))))
        maps = []
        for stage in (self.model.layer1, self.model.layer2, self.model.layer3, self.model.layer4):
            x = stage(x)
            maps.append(x)
        return tuple(maps)


def widths(spec: EncoderSpec) -> list[int]:
    """Channels of the four maps."""
    with torch.device("meta"):
        return [info["num_chs"] for info in build(spec).feature_info[1:]]
