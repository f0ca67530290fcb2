"""A timm model or a user's class in a detector or segmenter: its maps at strides 4, 8, 16 and 32."""

import math
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from evaluate.encoder import own, timm_models
from evaluate.encoder.model import build
from evaluate.encoder.spec import EncoderSpec
from evaluate.mm.backbones.layers import load_encoder

STRIDES = timm_models.STRIDES


class PyramidBackbone(nn.Module):
    """Image (B, 3, H, W) to the maps at strides 4, 8, 16 and 32, of sides H and W over the stride, rounded up.

    Images whose sides the model does not take are padded with zeros on the right and below, and the maps cut back.

    Args:
        spec: the encoder's spec as JSON.
    """

    def __init__(self, spec: str) -> None:
        super().__init__()
        self.spec = EncoderSpec.from_json(spec)
        self.model: Any = build(self.spec)
        self.multiple = math.lcm(STRIDES[-1], self.spec.side_step)

    @staticmethod
    def arguments(spec: EncoderSpec, state: dict[str, Tensor]) -> dict[str, Any]:
        """The constructor's arguments, as plain values for a config."""
        return {"spec": spec.to_json()}

    def load(self, spec: EncoderSpec, state: dict[str, Tensor]) -> dict[str, list[str]]:
        """Loads all of the encoder's tensors strictly, as ``load_encoder`` does, and returns the same."""
        return load_encoder(self.model, state, new={}, dropped=())

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        height, width = images.shape[2:]
        padded = F.pad(images, (0, -width % self.multiple, 0, -height % self.multiple))
        maps = self._maps(padded)
        return tuple(
            level[:, :, : math.ceil(height / stride), : math.ceil(width / stride)]
            for level, stride in zip(maps, STRIDES, strict=True)
        )

    def _maps(self, images: Tensor) -> list[Tensor]:
        if self.spec.family == "own":
            return list(own.call(self.spec, self.model.features, images))
        return timm_models.pyramid(self.model, images)
