"""What the tensors of an encoder do not say: its architecture, its normalization and where it came from (no torch)."""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

KIND = "siamese-eval encoder 1"
PROVENANCE = ("source_format", "branch", "epoch", "source_sha256", "source_json_sha256", "pooling")  # these change no feature


@dataclass(frozen=True)
class EncoderSpec:
    """All that the tensors' names do not say. Sizes in pixels, mean and std on the 0 to 1 scale of pixels."""

    family: str  # "vit" or "resnet"
    embed_dim: int
    depth: int  # transformer blocks, or residual blocks of all stages
    mean: tuple[float, ...]
    std: tuple[float, ...]
    img_size: int = 224
    patch_size: int = 16  # a ResNet: its stride
    num_heads: int = 0
    mlp_ratio: float = 4.0
    layer_norm_eps: float = 1e-6
    activation: str = "gelu"
    pre_norm: bool = False  # LayerNorm before the blocks (CLIP); the patch embedding then has no bias
    final_norm: bool = False  # LayerNorm of all tokens after the blocks; forward_tokens does not apply it
    fc_norm: bool = False  # LayerNorm after pooling, of fine-tuned models
    class_token: bool = False
    registers: int = 0
    pos_embed: bool = True
    pos_embed_prefix: bool = True  # class token and registers have position rows
    qkv_bias: bool = True
    layer_scale: bool = False
    rel_pos_bias: bool = False
    layers: tuple[int, ...] = ()  # residual blocks of the four stages
    block: str = ""  # "basic" or "bottleneck"
    cardinality: int = 1
    base_width: int = 64
    batch_norm_eps: float = 1e-5
    pooling: str = "cls"  # what the method recommends: "cls" or "mean"
    interpolation: str = "bicubic"
    source_format: str = ""
    branch: str = ""
    epoch: int | None = None
    source_sha256: str = ""
    source_json_sha256: str = ""  # of the JSON files beside it that describe it; "" where there are none

    @property
    def source_digests(self) -> tuple[str, str]:
        """As ``evaluate.checkpoints.files.digests`` of the source."""
        return self.source_sha256, self.source_json_sha256

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> "EncoderSpec":
        values: dict[str, Any] = json.loads(text)
        for name, value in values.items():
            values[name] = tuple(value) if isinstance(value, list) else value
        return cls(**values)


def certificate_path(path: Path) -> Path:
    """Where the certificate of an encoder file lies: ``encoder.certificate.json`` beside ``encoder.safetensors``."""
    return path.with_suffix(".certificate.json")


def read_spec(path: Path) -> EncoderSpec | None:
    """The spec of an encoder file; None for any other file."""
    try:
        with safe_open(path, "np") as file:
            metadata = file.metadata() or {}
    except (SafetensorError, OSError):
        return None  # not a safetensors file, so not an encoder file
    return EncoderSpec.from_json(metadata["spec"]) if metadata.get("kind") == KIND else None
