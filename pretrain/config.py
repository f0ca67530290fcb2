"""What defines a pretraining run, whatever its method: image, encoder, augmentation, optimizer and schedule.

A method adds its own settings in its own file, on top of ``VitConfig`` or ``ResNetConfig``: ``Config`` of
``pretrain.methods.siameseim`` is one. The values here are SiameseIM's (arXiv 2206.01204): facts of the released
scripts and defaults, named "script" where the paper's text is silent. Folders, devices and workers are no part of a
run's definition: they are arguments of ``pretrain.train``.
"""

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from annotated_types import Ge, Gt, Le, Lt
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt

from evaluate.runtime.settings import Probability, Settings

if TYPE_CHECKING:
    from torch import Tensor

BelowOne = Annotated[float, Ge(0), Lt(1)]
Share = Annotated[float, Gt(0), Le(1)]


@dataclass(frozen=True)
class PretrainConfig(Settings):
    """Base of every method's config. Lengths of images are pixels; probabilities are in [0, 1]."""

    needs_captions = False
    """Whether the method reads a caption with each image."""
    needs_geometry = False
    """Whether the method asks where view 2 lies in view 1."""
    eps = 1e-8
    """What AdamW adds to the root of its average of the squared gradient."""
    small_views = 0
    """Views of fewer pixels that the method takes besides."""
    small_size = 0
    """Side of a small view, in pixels."""
    small_scale = (0.0, 0.0)
    """Smallest and largest area of its crop, as a share of the image."""

    @property
    def one_crop(self) -> bool:
        """Whether view 2 is cut and flipped as view 1 is."""
        return False

    @property
    def plain_view1(self) -> bool:
        """Whether the colors of view 1 stay as they are."""
        return False

    method: str
    """The file of pretrain/methods/. A preset chooses it."""

    img_size: PositiveInt = 224
    """Side of a view, in pixels."""

    num_views: Annotated[int, Ge(1), Le(2)] = 2
    """Views that the method takes of an image."""
    crop_scale: tuple[Share, Share] = (0.08, 1.0)
    """Smallest and largest area of a crop, as a share of the image."""
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    """How a crop is resized; both filter what they shrink."""
    cache_pixels: bool = False
    """Whether the images are kept decoded in OUT, at most 16 GiB of them, their shorter side at most img_size over the
    root of the smallest area of a crop: faster where images are much larger than views, whose pixels differ slightly
    from those of the full images."""
    jitter: tuple[NonNegativeFloat, NonNegativeFloat, NonNegativeFloat, NonNegativeFloat] = (0.4, 0.4, 0.2, 0.1)
    """Strength of the jitter of brightness, contrast, saturation and hue, as in torchvision's ColorJitter; hue at most
    0.5."""
    jitter_probability: Probability = 0.8
    """Probability that a view's colors are jittered."""
    gray_probability: Probability = 0.2
    """Probability that a view becomes gray."""
    gray_first: bool = False
    """Whether that happens before the jitter of the colors."""
    flip_probability: Probability = 0.5
    """Probability that a view is flipped from left to right."""
    blur_probability: tuple[Probability, Probability] = (1.0, 0.1)
    """Probability that view 1 (the online view) and view 2 (the target's) are blurred."""
    blur_sigma: tuple[PositiveFloat, PositiveFloat] = (0.1, 2.0)
    """Smallest and largest standard deviation of the blur, in pixels of the view."""
    solarize_probability: tuple[Probability, Probability] = (0.0, 0.2)
    """Probability that view 1 and view 2 are solarized."""
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    """Mean of red, green and blue (ImageNet's), subtracted from pixels in [0, 1]."""
    std: tuple[PositiveFloat, PositiveFloat, PositiveFloat] = (0.229, 0.224, 0.225)
    """Standard deviation of red, green and blue (ImageNet's), by which pixels are divided."""

    epochs: PositiveInt = 1600
    """Passes over the images."""
    warmup_epochs: NonNegativeFloat = 40.0
    """Epochs in which the learning rate rises linearly."""
    warmup_lr: NonNegativeFloat = 0.0
    """Learning rate of the first step of the warm-up."""
    warmup_inclusive: bool = False
    """Whether the last step of the warm-up has the peak rate already, or the first one after it."""
    batch_size: PositiveInt = 4096
    """Images an optimizer step, over all processes and micro-batches."""
    base_lr: PositiveFloat = 6.25e-5
    """Learning rate before lr_scaling: with linear the rate at 256 images a step."""
    lr_scaling: Literal["linear", "sqrt", "none"] = "linear"
    """The learning rate is base_lr * batch_size / 256 (linear), base_lr * sqrt(batch_size), or base_lr."""
    lr_changes: Literal["step", "epoch"] = "step"
    """Whether the learning rate changes at every step or once an epoch."""
    lr_schedule: Literal["cosine", "steps"] = "cosine"
    """After the warm-up a half cosine to min_lr, or a tenth of the rate from 60 % of the epochs on and again from
    80 %."""
    min_lr: NonNegativeFloat = 0.0
    """Learning rate at the end of the cosine."""
    optimizer: Literal["adamw", "sgd", "lars", "larc"] = "adamw"
    """SGD, LARS and LARC have momentum; LARS neither adapts nor decays one-dimensional parameters, LARC does both."""
    betas: tuple[BelowOne, BelowOne] = (0.9, 0.95)
    """AdamW's decay rates of its averages of the gradient and of its square."""
    sgd_momentum: BelowOne = 0.9
    """Momentum of SGD, LARS and LARC."""
    trust: PositiveFloat = 0.001
    """Trust coefficient of LARS and LARC."""
    rate_inside: bool = False
    """Whether LARS' momentum gathers steps, each of its own learning rate, or gradients."""
    weight_decay: NonNegativeFloat = 0.05
    """Weight decay."""
    decayed: Literal["all", "matrices"] = "matrices"
    """Which parameters decay: all, or all but biases and other one-dimensional ones."""
    clip_norm: PositiveFloat | None = 1.0
    """Largest norm of the gradient; none: it is not clipped."""
    precision: Literal["fp32", "tf32", "bf16_products", "bf16", "fp16"] = "fp16"
    """Precision of the matrix products under autocast; the loss and the norms are always float32. tf32 is float32 whose
    products a GPU rounds to 10 bits of mantissa. bf16_products is float32 whose products alone have factors and results
    rounded to bf16."""
    seed: Annotated[int, Ge(0), Lt(2**64)] = 0
    """Random seed of the run."""

    def __post_init__(self) -> None:
        for name in ("crop_scale", "blur_sigma", "small_scale"):
            low, high = getattr(self, name)
            if low > high:
                raise ValueError(f"{name} is the smallest and the largest value, in this order, not {low} and {high}")
        if self.jitter[3] > 0.5:
            raise ValueError(f"jitter of the hue (the last of the four) is at most 0.5, not {self.jitter[3]}")

    @property
    def lr(self) -> float:
        """Peak learning rate (1e-3 for SiameseIM's run)."""
        if self.lr_scaling == "none":
            return self.base_lr
        if self.lr_scaling == "sqrt":
            return self.base_lr * math.sqrt(self.batch_size)
        return self.base_lr * self.batch_size / 256

    def draw_mask(self, epoch: int, index: np.ndarray) -> np.ndarray | None:
        """Masks (B, N) bool of view 1 for images of index (B,), for a method that chooses them with the crops; else
        None."""
        return None

    def draw_noise(self, epoch: int, index: np.ndarray) -> np.ndarray | None:
        """Uniform numbers (B, N) for images of index (B,), for a method that masks by them; else None."""
        return None

    def finish_view(self, view: "Tensor", number: int, epoch: int, index: np.ndarray) -> "Tensor":
        """What a method that masks pixels makes of the normalized view ``number`` (0 or 1), (B, 3, S, S), of images of
        index (B,); else the view."""
        return view

    def tokens(self, captions: list[str]) -> np.ndarray | None:
        """The ids (B, L) of captions, for a method that reads them; else None."""
        return None

    def to_json(self) -> dict[str, Any]:
        """Plain values, written beside every checkpoint."""
        return asdict(self)


@dataclass(frozen=True)
class VitConfig(PretrainConfig):
    """Base of a method that trains a vision transformer."""

    patch_size: PositiveInt = 16
    """Side of a patch, in pixels."""
    embed_dim: PositiveInt = 768
    """Width of the encoder."""
    depth: PositiveInt = 12
    """Blocks of the encoder."""
    num_heads: PositiveInt = 12
    """Attention heads of an encoder block."""
    mlp_ratio: PositiveFloat = 4.0
    """Width of the hidden layer of every block's MLP, in widths of the block."""
    drop_path_rate: BelowOne = 0.0
    """Stochastic depth of the encoder's last block; it rises linearly from 0."""
    train_patch_embed: bool = False
    """Whether the patch embedding is trained; if not it stays at its random start, as in MoCo-v3 (script)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.img_size % self.patch_size:
            raise ValueError(f"img_size {self.img_size} is not a multiple of patch_size {self.patch_size}")
        self.check_width("embed_dim", "num_heads")

    def check_width(self, width: str, heads: str) -> None:
        """Raises ValueError where the setting named ``heads`` or the position embedding does not divide the one named
        ``width``."""
        if getattr(self, width) % getattr(self, heads):
            raise ValueError(f"{heads} {getattr(self, heads)} does not divide {width} {getattr(self, width)}")
        if getattr(self, width) % 4:
            raise ValueError(
                f"{width} must be a multiple of 4 (2-D sine-cosine position embedding), not {getattr(self, width)}"
            )

    @property
    def grid_size(self) -> int:
        """Patches a side."""
        return self.img_size // self.patch_size

    @property
    def num_patches(self) -> int:
        """Patches of a view."""
        return self.grid_size**2


@dataclass(frozen=True)
class ResNetConfig(PretrainConfig):
    """Base of a method that trains a ResNet of torchvision's form; the sizes are those of ResNet-50."""

    block: Literal["basic", "bottleneck"] = "bottleneck"
    """The residual block."""
    layers: tuple[PositiveInt, PositiveInt, PositiveInt, PositiveInt] = (3, 4, 6, 3)
    """Blocks of the four stages."""
    width_per_group: PositiveInt = 64
    """Channels of the 3x3 convolutions of the first stage; basic blocks have 64."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.block == "basic" and self.width_per_group != 64:
            raise ValueError(f"width_per_group of basic blocks is 64, not {self.width_per_group}")


# How the demonstration of any method differs from its paper's run: a model that a laptop core trains on the toy world
# in minutes. It runs the same code and promises nothing of accuracy.
DEMO_SETTINGS: dict[str, Any] = {
    "img_size": 32,
    "patch_size": 8,
    "embed_dim": 48,
    "depth": 3,
    "num_heads": 3,
    "train_patch_embed": True,  # a random projection of 8 x 8 pixels to 48 channels loses most of a texture
    "blur_sigma": (0.1, 0.5),  # two pixels of blur would erase the textures at 32 pixels
    "crop_scale": (0.3, 1.0),  # 8 % of 32 x 32 pixels is 9 x 9: less than two periods of a texture
    "epochs": 16,
    "warmup_epochs": 2.0,
    "batch_size": 32,  # many small steps matter more than anything else in minutes
    "base_lr": 2e-2,  # minutes must do
    "precision": "fp32",
}
# The colors are a shortcut that two views share, unless their hues differ: then the texture is left.
DEMO_COLORS: dict[str, Any] = {
    "jitter": (0.4, 0.4, 0.4, 0.5),
    "jitter_probability": 1.0,
    "gray_probability": 0.3,
    "blur_probability": (0.2, 0.1),
    "solarize_probability": (0.0, 0.0),
}
RESNET_DEMO: dict[str, Any] = {
    **{name: DEMO_SETTINGS[name] for name in ("img_size", "blur_sigma", "crop_scale", "epochs", "warmup_epochs")},
    **{name: DEMO_SETTINGS[name] for name in ("batch_size", "precision")},
    # Half the time of a bottleneck of a quarter of ResNet-50's width, and far faster to learn: docs/methods.md
    "block": "basic",
    "layers": (1, 1, 1, 1),
    "base_lr": 8.0,  # the rate is 1 at 32 images: LARS then steps by a thousandth of a weight's norm
    **DEMO_COLORS,
}

# How a short run on photographs differs from its method's paper: small views and an encoder that one core trains in
# an hour.
SMALL_SETTINGS: dict[str, Any] = {
    "img_size": 48,
    "patch_size": 8,
    "embed_dim": 192,
    "depth": 4,
    "num_heads": 6,
    "train_patch_embed": True,
    "crop_scale": (0.2, 1.0),
    "batch_size": 64,
    "base_lr": 5e-3,
    "precision": "bf16",
}

# ``--model``: the encoders of all methods, each a vision transformer or a ResNet. Only ViT-B has a published
# SiameseIM; the other transformers are MAE's encoders.
MODELS: dict[str, dict[str, Any]] = {
    "vit_small": {"embed_dim": 384, "depth": 12, "num_heads": 6},
    "vit_base": {"embed_dim": 768, "depth": 12, "num_heads": 12},
    "vit_large": {"embed_dim": 1024, "depth": 24, "num_heads": 16},
    "vit_huge": {"embed_dim": 1280, "depth": 32, "num_heads": 16, "patch_size": 14},
    "resnet50": {"block": "bottleneck", "layers": (3, 4, 6, 3), "width_per_group": 64},
}
