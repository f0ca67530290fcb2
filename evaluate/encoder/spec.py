"""What the tensors of an encoder do not say: its architecture, its normalization and where it came from (no torch)."""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open

KIND = "siamese-eval encoder 1"
PROVENANCE = (
    "source_format",
    "branch",
    "epoch",
    "source_sha256",
    "source_json_sha256",
    "pooling",
)  # these change no feature


@dataclass(frozen=True)
class EncoderSpec:
    """All that the tensors' names do not say. Sizes in pixels, mean and std on the 0 to 1 scale of pixels."""

    family: str
    """``vit`` or ``resnet``."""
    embed_dim: int
    """Channels of a token, or of a ResNet's last map."""
    depth: int
    """Transformer blocks, or residual blocks of all stages."""
    mean: tuple[float, ...]
    """Subtracted from the channels of an image."""
    std: tuple[float, ...]
    """What they are then divided by."""
    img_size: int = 224
    """The side of the image that its position embedding is made for."""
    patch_size: int = 16
    """The side of a patch; a ResNet: its stride."""
    num_heads: int = 0
    """Of every block; a ResNet: 0."""
    mlp_ratio: float = 4.0
    """Hidden width of the MLP over ``embed_dim``."""
    layer_norm_eps: float = 1e-6
    """Epsilon of every LayerNorm."""
    activation: str = "gelu"
    """``gelu`` or ``quick_gelu``."""
    pre_norm: bool = False
    """LayerNorm before the blocks (CLIP); the patch embedding then has no bias."""
    final_norm: bool = False
    """LayerNorm of all tokens after the blocks; ``forward_tokens`` does not apply it."""
    fc_norm: bool = False
    """LayerNorm after pooling, of fine-tuned models."""
    class_token: bool = False
    """Whether the first token belongs to no patch."""
    registers: int = 0
    """Further tokens that belong to no patch, after the class token."""
    pos_embed: bool = True
    """Whether there is a learned or stored position embedding."""
    pos_embed_prefix: bool = True
    """Whether class token and registers have position rows."""
    qkv_bias: bool = True
    """Whether queries, keys and values have a bias."""
    layer_scale: bool = False
    """Whether each branch of a block is scaled by channel."""
    rel_pos_bias: bool = False
    """Whether attention has BEiT's table of relative positions."""
    layers: tuple[int, ...] = ()
    """Residual blocks of the four stages."""
    block: str = ""
    """``basic`` or ``bottleneck``."""
    cardinality: int = 1
    """Groups of the 3x3 convolutions (ResNeXt)."""
    base_width: int = 64
    """Channels of the first stage's 3x3 convolutions, a group."""
    batch_norm_eps: float = 1e-5
    """Epsilon of every BatchNorm."""
    pooling: str = "cls"
    """What the method recommends: ``cls`` or ``mean``."""
    interpolation: str = "bicubic"
    """How the position embedding is resized (``evaluate.encoder.interpolation.METHODS``)."""
    source_format: str = ""
    """A name of ``evaluate.checkpoints.formats.FORMATS``."""
    branch: str = ""
    """Which encoder of the file it is."""
    epoch: int | None = None
    """Of the training that made it, where the file says it."""
    source_sha256: str = ""
    """Of the weights that it was made from."""
    source_json_sha256: str = ""
    """Of the JSON files beside them that describe them; "" where there are none."""

    @property
    def source_digests(self) -> tuple[str, str]:
        """As ``evaluate.checkpoints.files.digests`` of the source."""
        return self.source_sha256, self.source_json_sha256

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> "EncoderSpec":
        values = json.loads(text)
        return cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})


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
