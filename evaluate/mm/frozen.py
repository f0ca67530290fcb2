"""A frozen encoder with a linear segmentation head: DINOv2's BatchNorm and one linear layer on the patch tokens."""

from typing import Any

import torch
from mmcv.cnn import build_norm_layer
from mmengine.config import Config
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from torch import Tensor

from evaluate.encoder.model import Encoder
from evaluate.encoder.spec import EncoderSpec
from evaluate.mm.backbones.layers import padded_side
from evaluate.mm.backbones.segmentation import SegmentationBackbone
from evaluate.runtime.errors import Skip


class FrozenBackbone(SegmentationBackbone):
    """Image (B, 3, H, W) to the patch tokens of the last blocks, each (B, D, H / patch, W / patch) after the encoder's
    last norm where it has one. Nothing of it is trained.

    Args:
        layers: how many blocks, the last one among them.
    """

    DROPPED = (r"fc_norm\.(weight|bias)",)

    def __init__(self, *, depth: int, layers: int = 1, **settings: Any) -> None:
        super().__init__(depth=depth, out_indices=tuple(range(depth - layers, depth)), drop_path=0.0, **settings)
        self.requires_grad_(False)

    @staticmethod
    def arguments(spec: EncoderSpec, state: dict[str, Tensor]) -> dict[str, Any]:
        return {**SegmentationBackbone.arguments(spec, state), "final_norm": "norm.weight" in state}

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        with torch.no_grad():
            return super().forward(images)

    def seen(self, x: Tensor, index: int) -> Tensor:
        return self.norm(x)  # DINOv2's, which normalizes earlier layers by the last norm too


class LinearHead(BaseDecodeHead):
    """Logits (B, classes, h, w) of maps (B, D, h, w), of several layers side by side: a BatchNorm over all patches, and
    one linear layer.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.norm = build_norm_layer(self.norm_cfg, self.in_channels)[1]

    def forward(self, inputs: tuple[Tensor, ...]) -> Tensor:
        return self.cls_seg(self.norm(self._transform_inputs(inputs)))


def fill_encoder(cfg: Config, encoder: Encoder) -> None:
    """Puts into a recipe what follows from the encoder: its sizes, the padding and the normalization.

    Raises:
        Skip: fewer layers than the recipe takes.
    """
    spec, model = encoder.spec, cfg.model
    layers = model.backbone.get("layers", 1)
    if spec.depth < layers:
        raise Skip(f"this setup takes the last {layers} layers, and the encoder has {spec.depth}")
    side = padded_side(model.backbone.img_size[0], spec.patch_size)
    model.backbone.img_size = model.data_preprocessor.size = (side, side)
    model.backbone.update(FrozenBackbone.arguments(spec, encoder.model.state_dict()))
    model.data_preprocessor.mean = [255 * value for value in spec.mean]
    model.data_preprocessor.std = [255 * value for value in spec.std]
    model.decode_head.in_channels = spec.embed_dim if layers == 1 else [spec.embed_dim] * layers
    model.decode_head.channels = layers * spec.embed_dim
