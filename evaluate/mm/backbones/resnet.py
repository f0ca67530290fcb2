"""A ResNet encoder in a detector or segmenter: timm's module, whole or cut before its last stage (C4)."""

from typing import Any

from torch import Tensor, nn

from evaluate.encoder.model import build
from evaluate.encoder.spec import EncoderSpec
from evaluate.mm.backbones.layers import load_encoder

LAST = "layer4."


class ResNetBackbone(nn.Module):
    """Image (B, 3, H, W) to the stages' maps at strides 4, 8, 16 and 32.

    BatchNorm is trained with the rest, as MoCo does.

    Args:
        spec: the encoder's spec as JSON.
        c4: only the map at stride 16; the last stage belongs to ``LastStage``.
    """

    def __init__(self, spec: str, c4: bool = False) -> None:
        super().__init__()
        self.model = build_resnet(spec).to_empty(device="cpu")
        self.c4 = c4
        if c4:
            self.model.layer4 = nn.Identity()

    @staticmethod
    def arguments(spec: EncoderSpec, state: dict[str, Tensor]) -> dict[str, Any]:
        """The constructor's arguments, as plain values for a config."""
        return {"spec": spec.to_json()}

    def load(self, spec: EncoderSpec, state: dict[str, Tensor]) -> dict[str, list[str]]:
        """Loads all of the encoder's tensors strictly, as ``load_encoder`` does, and returns the same."""
        return load_encoder(self.model, state, new={}, dropped=(LAST.replace(".", r"\..*"),) if self.c4 else ())

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        x = self.model.maxpool(self.model.act1(self.model.bn1(self.model.conv1(images))))
        maps = []
        for stage in (self.model.layer1, self.model.layer2, self.model.layer3):
            x = stage(x)
            maps.append(x)
        return (maps[-1],) if self.c4 else (*maps, self.model.layer4(x))


class LastStage(nn.Module):
    """MoCo's C4 head: the encoder's last stage over regions (N, C, 14, 14) to (N, 2 C, 7, 7), and a new BatchNorm.

    Args:
        spec: the encoder's spec as JSON.
    """

    def __init__(self, spec: str) -> None:
        super().__init__()
        self.layer4 = build_resnet(spec).layer4.to_empty(device="cpu")
        self.norm = nn.BatchNorm2d(widths(EncoderSpec.from_json(spec))[-1])

    def load(self, spec: EncoderSpec, state: dict[str, Tensor]) -> dict[str, list[str]]:
        """Loads the encoder's last stage strictly, as ``load_encoder`` does, and returns the same."""
        own = {name.removeprefix(LAST): value for name, value in state.items() if name.startswith(LAST)}
        return load_encoder(self.layer4, own, new={}, dropped=())

    def forward(self, regions: Tensor) -> Tensor:
        return self.norm(self.layer4(regions))


def widths(spec: EncoderSpec) -> list[int]:
    """Channels of the four maps."""
    return [info["num_chs"] for info in build_resnet(spec.to_json()).feature_info[1:]]


def build_resnet(spec: str) -> Any:
    """timm's ResNet of an encoder's spec as JSON, without weights (on the meta device); its stages are set by name."""
    return build(EncoderSpec.from_json(spec))
