"""What defines a pretraining run. The paper's run is the default; ``DEMO`` lists how the demonstration differs.

Facts: the released scripts and defaults of SiameseIM (arXiv 2206.01204), named "script" below where the paper's text is silent; for the
``mae_`` presets Table 8 of MAE (arXiv 2111.06377) and its released code. A method ignores the fields that are said to be another's.
Folders, devices and workers are no part of it: they are arguments of ``pretrain.train``.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any


@dataclass(frozen=True)
class PretrainConfig:
    """One run. Lengths of images are pixels, of masks patches; probabilities are in [0, 1]."""

    method: str = "siameseim"
    """A file of pretrain/methods/."""

    img_size: int = 224
    patch_size: int = 16
    embed_dim: int = 768
    depth: int = 12
    num_heads: int = 12
    mlp_ratio: float = 4.0
    drop_path_rate: float = 0.0
    train_patch_embed: bool = False
    """The patch embedding stays at its random start, as in MoCo-v3 (script)."""

    decoder_embed_dim: int = 768
    decoder_num_heads: int = 16
    decoder_depth: int = 8
    """MAE's: blocks of the decoder."""
    projector_depth: int = 2
    predictor_depth: int = 4
    projector_norm: str = "batch"
    predictor_norm: str = "batch"
    """"batch" (over all tokens of all images) or "layer"."""
    neg_weight: float = 0.02
    """Weight of the term that spreads the features (lambda of the UniGrad loss)."""
    momentum: float = 0.995
    """Of the target's moving average at the start; rises to 1 on a half cosine."""

    num_masked: int = 118
    """SiameseIM's: masked patches of the online view, exactly (60.2 % of 196; script)."""
    min_block: int = 16
    """SiameseIM's: patches of the smallest block that the mask is made of."""
    mask_ratio: float = 0.75
    """MAE's: share of the patches hidden, each by itself."""
    norm_pix_loss: bool = True
    """MAE's: the target is each patch's pixels normalized by their own mean and variance."""

    num_views: int = 2
    """Views that the method takes of an image, 1 or 2."""
    crop_scale: tuple[float, float] = (0.08, 1.0)
    """Area of a crop as a share of the image."""
    jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.2, 0.1)
    """Brightness, contrast, saturation, hue."""
    jitter_probability: float = 0.8
    gray_probability: float = 0.2
    flip_probability: float = 0.5
    blur_probability: tuple[float, float] = (1.0, 0.1)
    """Of the online and the target view."""
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    """Pixels at img_size."""
    solarize_probability: tuple[float, float] = (0.0, 0.2)
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)

    epochs: int = 1600
    warmup_epochs: float = 40.0
    batch_size: int = 4096
    """Images an optimizer step, over all processes and accumulation."""
    base_lr: float = 6.25e-5
    """Learning rate at 256 images a step; scaled linearly."""
    min_lr: float = 0.0
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.05
    """Not on biases and one-dimensional parameters."""
    clip_norm: float | None = 1.0
    """Largest norm of the gradient; None: not clipped."""
    precision: str = "fp16"
    """"fp32", "bf16" or "fp16" (autocast; the loss and the norms are float32 always)."""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.img_size % self.patch_size:
            raise ValueError(f"img_size {self.img_size} is not a multiple of patch_size {self.patch_size}")
        for width, heads, name in (
            (self.embed_dim, self.num_heads, "num_heads"),
            (self.decoder_embed_dim, self.decoder_num_heads, "decoder_num_heads"),
        ):
            if width % heads:
                raise ValueError(f"{name} {heads} does not divide the width {width}")
        if self.embed_dim % 4 or self.decoder_embed_dim % 4:
            raise ValueError("embed_dim and decoder_embed_dim must be multiples of 4 (2-D sine-cosine position embedding)")
        if not 0 < self.num_masked < self.num_patches:
            raise ValueError(f"num_masked {self.num_masked} must lie between 0 and the {self.num_patches} patches of the image")
        if not 0 < self.num_visible < self.num_patches:
            raise ValueError(f"mask_ratio {self.mask_ratio} leaves {self.num_visible} of {self.num_patches} patches visible")
        if self.clip_norm is not None and self.clip_norm <= 0:
            raise ValueError(f"clip_norm is positive or None, not {self.clip_norm}")
        for name in ("projector_norm", "predictor_norm"):
            if getattr(self, name) not in ("batch", "layer"):
                raise ValueError(f"{name} is 'batch' or 'layer', not {getattr(self, name)!r}")
        if self.precision not in ("fp32", "bf16", "fp16"):
            raise ValueError(f"precision is fp32, bf16 or fp16, not {self.precision!r}")
        if self.num_views not in (1, 2):
            raise ValueError(f"num_views is 1 or 2, not {self.num_views}")
        if self.epochs < 1 or self.batch_size < 1:
            raise ValueError("epochs and batch_size must be at least 1")

    @property
    def grid_size(self) -> int:
        """Patches a side."""
        return self.img_size // self.patch_size

    @property
    def num_patches(self) -> int:
        return self.grid_size**2

    @property
    def num_visible(self) -> int:
        """Patches that MAE's encoder sees, rounded as the released code does."""
        return int(self.num_patches * (1 - self.mask_ratio))

    @property
    def lr(self) -> float:
        """Peak learning rate (1e-3 for the paper's run)."""
        return self.base_lr * self.batch_size / 256

    def to_json(self) -> dict[str, Any]:
        """Plain values, written beside every checkpoint."""
        return asdict(self)


PAPER = PretrainConfig()

# A model that a laptop core trains on the toy world in minutes. It runs the same code and promises nothing of accuracy.
DEMO = replace(
    PAPER,
    img_size=32,
    patch_size=8,
    embed_dim=48,
    depth=3,
    num_heads=3,
    train_patch_embed=True,  # a random projection of 8 x 8 pixels to 48 channels loses most of a texture
    decoder_embed_dim=48,
    decoder_num_heads=3,
    predictor_depth=2,
    num_masked=10,  # 60 % of 16
    min_block=2,
    blur_sigma=(0.1, 0.5),  # two pixels of blur would erase the textures at 32 pixels
    crop_scale=(0.25, 1.0),  # 8 % of 32 x 32 pixels is 9 x 9: less than two periods of a texture
    epochs=14,
    warmup_epochs=2.0,
    batch_size=64,  # many small steps matter more than anything else in minutes
    base_lr=1e-2,  # with the momentum tuned on the toy world: minutes must do
    momentum=0.99,
    precision="fp32",
)

# How MAE's recipe differs from SiameseIM's (random resized crop and flip only, no clipping).
MAE: dict[str, Any] = {
    "method": "mae",
    "train_patch_embed": True,
    "num_views": 1,
    "crop_scale": (0.2, 1.0),
    "jitter_probability": 0.0,
    "gray_probability": 0.0,
    "blur_probability": (0.0, 0.0),
    "solarize_probability": (0.0, 0.0),
    "clip_norm": None,
}
MAE_PAPER = replace(PAPER, **MAE, decoder_embed_dim=512, base_lr=1.5e-4)
MAE_DEMO = replace(DEMO, **{**MAE, "crop_scale": DEMO.crop_scale}, decoder_depth=2)

PRESETS = {"paper": PAPER, "paper_400": replace(PAPER, epochs=400), "demo": DEMO, "mae_paper": MAE_PAPER, "mae_demo": MAE_DEMO}

# ``--model``: how other encoders differ from ViT-B/16. Only ViT-B has a published SiameseIM; the others take MAE's encoders and keep the
# decoder and 60.2 % of the patches masked.
MODELS: dict[str, dict[str, Any]] = {
    "vit_small": {"embed_dim": 384, "depth": 12, "num_heads": 6},
    "vit_base": {"embed_dim": 768, "depth": 12, "num_heads": 12},
    "vit_large": {"embed_dim": 1024, "depth": 24, "num_heads": 16},
    "vit_huge": {"embed_dim": 1280, "depth": 32, "num_heads": 16, "patch_size": 14, "num_masked": 154},
}


def configure(preset: str, assignments: Sequence[str] = (), model: str | None = None) -> PretrainConfig:
    """A preset with the encoder of MODELS that ``model`` names and ``NAME=VALUE`` overrides (``clip_norm=null``: no clipping).

    Raises ValueError listing the legal names for an unknown one.
    """
    config = PRESETS[preset]
    values: dict[str, Any] = dict(MODELS[model]) if model else {}
    for text in assignments:
        name, separator, value = text.partition("=")
        if not separator or name not in config.to_json():
            raise ValueError(f"unknown setting {text!r}; write NAME=VALUE with one of {', '.join(config.to_json())}")
        example = getattr(PAPER, name)  # clip_norm may be None, here not
        try:
            parsed = value if isinstance(example, str) else json.loads(value.lower())
            if parsed is None and name == "clip_norm":
                values[name] = None
            else:
                values[name] = tuple(parsed) if isinstance(example, tuple) else type(example)(parsed)
        except (ValueError, TypeError) as error:
            raise ValueError(f"{name} takes a value like {example!r}, not {value!r}") from error
    return replace(config, **values)
