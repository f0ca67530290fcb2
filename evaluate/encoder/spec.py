"""What the tensors of an encoder do not say: its architecture, its normalization and where it came from (no torch)."""

import dataclasses
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeGuard

from safetensors import SafetensorError, safe_open

from evaluate.runtime.errors import UserError

KIND = "siamese-eval encoder 1"
METHODS = ("bicubic", "bicubic_antialias", "dino")  # of resizing positions: evaluate/encoder/interpolation.py
# these change no feature: where it came from, and what its method recommends
PROVENANCE = (
    "source_format",
    "branch",
    "epoch",
    "source_sha256",
    "source_json_sha256",
    "pooling",
    "assumed",
    "options",
    "remark",
    "counts",
)
# fields that came later: at their defaults they are no part of a fingerprint, so that older encoders keep theirs
LATER = ("model", "code_sha256", "maps", "side_step")
MAX_BLOCKS, MAX_HEADS, MAX_WIDTH, MAX_SIDE, MAX_GRID = 256, 1024, 16_384, 4096, 256
# by field the least and the largest value that an encoder can have; what is larger is damaged or hostile
BOUNDS = {
    "embed_dim": (1, MAX_WIDTH),
    "depth": (1, 4 * MAX_BLOCKS),
    "img_size": (1, MAX_SIDE),
    "patch_size": (1, MAX_SIDE),
    "num_heads": (0, MAX_HEADS),
    "mlp_ratio": (1e-3, 64),
    "layer_norm_eps": (1e-30, 1),
    "batch_norm_eps": (1e-30, 1),
    "registers": (0, 1024),
    "cardinality": (1, MAX_WIDTH),
    "base_width": (1, MAX_WIDTH),
    "side_step": (0, MAX_SIDE),
}
CHOICES = {
    "family": ("vit", "resnet", "timm", "own"),
    "activation": ("gelu", "quick_gelu"),
    "pooling": ("cls", "mean"),
    "interpolation": METHODS,
    "block": ("", "basic", "bottleneck"),
}
VITS = {  # width and depth: name and heads
    (192, 12): ("T", 3),
    (384, 12): ("S", 6),
    (768, 12): ("B", 12),
    (1024, 24): ("L", 16),
    (1280, 32): ("H", 16),
    (1536, 40): ("g", 24),
}
RESNETS: dict[tuple[str, tuple[int, ...]], str] = {
    ("basic", (2, 2, 2, 2)): "18",
    ("basic", (3, 4, 6, 3)): "34",
    ("bottleneck", (3, 4, 6, 3)): "50",
    ("bottleneck", (3, 4, 23, 3)): "101",
    ("bottleneck", (3, 8, 36, 3)): "152",
}


@dataclass(frozen=True)
class EncoderSpec:
    """All that the tensors' names do not say. Sizes in pixels, mean and std on the 0 to 1 scale of pixels."""

    family: str
    """``vit`` or ``resnet``; another model of timm's: ``timm``; a user's class: ``own``."""
    embed_dim: int
    """Channels of a token, or of what is pooled."""
    depth: int
    """Transformer blocks, or residual blocks of all stages; ``timm`` and ``own``: 1."""
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

    assumed: dict[str, Any] = field(default_factory=dict)
    """What nothing in the file or beside it says: name to ``value``, ``option`` (that says otherwise) and ``why``."""
    options: dict[str, Any] | None = None
    """What the conversion was asked for (branch, format, prefix, assume); None in files from before it was kept."""
    remark: str = ""
    """A sentence of its training's own settings that every table repeats."""
    model: str = ""
    """Of ``timm`` the name of its architecture, of ``own`` FILE.py:CLASS without folders."""
    code_sha256: str = ""
    """Of the file of a user's class."""
    maps: tuple[int, ...] = ()
    """Of ``timm`` and ``own``: channels of the maps at strides 4, 8, 16 and 32; () where it gives none."""
    side_step: int = 1
    """Of ``timm`` and ``own``: an image's sides are multiples of so many pixels; 0: they are ``img_size``."""
    counts: dict[str, float] = field(default_factory=dict)
    """Of ``timm`` and ``own``, counted at ``img_size``: ``gflop``, ``weights``, and the ``values`` of all maps and of
    the ``largest`` of an image."""

    @property
    def is_vit(self) -> bool:
        """Whether it gives tokens; any other gives maps, and what it pools."""
        return self.family == "vit"

    @property
    def recipes(self) -> str:
        """Which recipes of mm_configs/ are for it: ``vit``, ``resnet`` or ``pyramid``."""
        return self.family if self.family in ("vit", "resnet") else "pyramid"

    @property
    def source_digests(self) -> tuple[str, str]:
        """As ``evaluate.checkpoints.files.digests`` of the source."""
        return self.source_sha256, self.source_json_sha256

    @property
    def architecture(self) -> str:
        """As papers name it, with the side of a patch: ViT-B/16, ResNet-50; another shape by its numbers."""
        if self.family == "vit":
            size, heads = VITS.get((self.embed_dim, self.depth), ("", 0))
            if not size:
                return f"ViT (width {self.embed_dim}, depth {self.depth}, {self.num_heads} heads)/{self.patch_size}"
            other = "" if self.num_heads == heads else f" ({self.num_heads} heads)"  # MoCo-v3's ViT-S has 12
            return f"ViT-{size}/{self.patch_size}{other}"
        if self.family != "resnet":
            return self.model
        name = RESNETS.get((self.block, self.layers), f"({self.block}, {'-'.join(map(str, self.layers))})")
        wide = f" (cardinality {self.cardinality}, base width {self.base_width})"
        return f"ResNet-{name}{'' if (self.cardinality, self.base_width) == (1, 64) else wide}"

    def to_json(self) -> str:
        """The text that stands in the metadata of an encoder file."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> "EncoderSpec":
        """The spec that ``to_json`` wrote. Raises ValueError naming what no encoder can have."""
        values = json.loads(text)
        if not isinstance(values, dict):
            raise ValueError("it is no table of fields")
        fields = {item.name: item for item in dataclasses.fields(cls)}
        if unknown := sorted(set(values) - set(fields)):
            raise ValueError(f"it has the field {unknown[0]!r}, which this version does not know")
        needed = [name for name, item in fields.items() if item.default is item.default_factory is dataclasses.MISSING]
        if missing := [name for name in needed if name not in values]:
            raise ValueError(f"it lacks the field {missing[0]!r}")
        given: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in values.items()
        }
        spec = cls(**given)
        spec.check()
        return spec

    def check(self) -> None:
        """Raises ValueError naming a value that no encoder can have, or that only a hostile file would."""
        for item in dataclasses.fields(self):
            value, default = getattr(self, item.name), item.default
            if isinstance(default, bool | str) and type(value) is not type(default):
                raise ValueError(f"{item.name} is {value!r}")
            if item.name in CHOICES and value not in CHOICES[item.name]:
                raise ValueError(f"{item.name} is {value!r}; it is one of {', '.join(map(repr, CHOICES[item.name]))}")
            if item.name in BOUNDS:
                least, most = BOUNDS[item.name]
                whole = item.name not in ("mlp_ratio", "layer_norm_eps", "batch_norm_eps")
                if not is_number(value) or whole and not isinstance(value, int) or not least <= value <= most:
                    raise ValueError(f"{item.name} is {value!r}; {least} to {most} is supported")
        for name in ("mean", "std"):
            if len(getattr(self, name) or ()) != 3 or not all(map(is_number, getattr(self, name))):
                raise ValueError(f"{name} is {getattr(self, name)!r}; three numbers are expected")
        if min(self.std) <= 0:
            raise ValueError(f"std is {self.std!r}; it must be positive")
        if not all(isinstance(value, dict) for value in (self.assumed, self.counts, self.options or {})):
            raise ValueError("what was assumed, counted or asked for is no table")
        if self.family == "vit":
            if not self.num_heads or self.embed_dim % self.num_heads:
                raise ValueError(f"{self.num_heads} heads do not divide the width {self.embed_dim}")
            if self.depth > MAX_BLOCKS:
                raise ValueError(f"depth is {self.depth}; at most {MAX_BLOCKS} blocks are supported")
            if self.img_size % self.patch_size or self.img_size // self.patch_size > MAX_GRID:
                raise ValueError(f"img_size {self.img_size} and patch_size {self.patch_size} give no supported grid")
            if self.img_size // self.patch_size > 64 and self.rel_pos_bias:
                raise ValueError("relative positions are supported up to 64 patches a side")
            as_beit = self.class_token and self.activation == "gelu" and (self.pos_embed_prefix or not self.pos_embed)
            if self.rel_pos_bias and (not as_beit or self.registers or self.pre_norm):
                raise ValueError(
                    "relative positions are supported as BEiT has them: with a class token and gelu, without registers "
                    "and without a norm before the blocks"
                )
        elif self.family != "resnet":
            if not self.model or len(self.maps) not in (0, 4) or not all(type(count) is int for count in self.maps):
                raise ValueError(
                    f"model is {self.model!r} and maps is {self.maps!r}; a name and four widths are expected"
                )
        else:
            blocks = self.layers
            if len(blocks) != 4 or not all(type(count) is int and 0 < count <= MAX_BLOCKS for count in blocks):
                raise ValueError(f"layers is {blocks!r}; four counts of blocks are expected")
            if not self.block:
                raise ValueError("block is missing")


def is_number(value: Any) -> TypeGuard[float]:
    """Whether a value is a finite number, and no truth value."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def describe_assumption(name: str, entry: Mapping[str, Any]) -> str:
    """One assumption in words, with the option that says otherwise."""
    value = entry["value"]
    if name == "normalization":
        value = ", ".join(f"{key} {tuple(triple)}" for key, triple in value.items())
    return f"{name} {value} ({entry['why']}); otherwise {entry['option']}"


def certificate_path(path: Path) -> Path:
    """Where the certificate of an encoder file lies: ``encoder.certificate.json`` beside ``encoder.safetensors``."""
    return path.with_suffix(".certificate.json")


def read_spec(path: Path) -> EncoderSpec | None:
    """The spec of an encoder file; None for any other file. Raises UserError where it is damaged."""
    try:
        with safe_open(path, "np") as file:
            metadata = file.metadata() or {}
    except (SafetensorError, OSError):
        return None  # not a safetensors file, so not an encoder file
    if metadata.get("kind") != KIND:
        return None
    try:
        return EncoderSpec.from_json(metadata.get("spec", ""))
    except (ValueError, TypeError, RecursionError, OverflowError) as error:
        reason = str(error).splitlines()[0][:200]
        raise UserError(f"the encoder file {path} has a damaged spec ({reason}); convert its source again") from error
