"""What defines a pretraining run, whatever its method: image, encoder, augmentation, optimizer and schedule.

A method adds its own settings in its own file: ``Config`` of ``pretrain.methods.siameseim`` and
``pretrain.methods.mae``. The values here are SiameseIM's (arXiv 2206.01204): facts of the released scripts and
defaults, named "script" where the paper's text is silent. Folders, devices and workers are no part of a run's
definition: they are arguments of ``pretrain.train``.
"""

from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal

import numpy as np
from annotated_types import Ge, Gt, Le, Lt
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt

from evaluate.runtime.settings import Probability, Settings

BelowOne = Annotated[float, Ge(0), Lt(1)]
Share = Annotated[float, Gt(0), Le(1)]


@dataclass(frozen=True)
class PretrainConfig(Settings):
    """Base of every method's config. Lengths of images are pixels; probabilities are in [0, 1]."""

    method: str
    """The file of pretrain/methods/. A preset chooses it."""

    img_size: PositiveInt = 224
    """Side of a view, in pixels."""
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

    num_views: Annotated[int, Ge(1), Le(2)] = 2
    """Views that the method takes of an image."""
    crop_scale: tuple[Share, Share] = (0.08, 1.0)
    """Smallest and largest area of a crop, as a share of the image."""
    jitter: tuple[NonNegativeFloat, NonNegativeFloat, NonNegativeFloat, NonNegativeFloat] = (0.4, 0.4, 0.2, 0.1)
    """Strength of the jitter of brightness, contrast, saturation and hue, as in torchvision's ColorJitter; hue at most
    0.5."""
    jitter_probability: Probability = 0.8
    """Probability that a view's colors are jittered."""
    gray_probability: Probability = 0.2
    """Probability that a view becomes gray."""
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
    """Epochs in which the learning rate rises linearly from 0."""
    batch_size: PositiveInt = 4096
    """Images an optimizer step, over all processes and micro-batches."""
    base_lr: PositiveFloat = 6.25e-5
    """Learning rate at 256 images a step; the rate is base_lr * batch_size / 256."""
    min_lr: NonNegativeFloat = 0.0
    """Learning rate at the end of the cosine."""
    betas: tuple[BelowOne, BelowOne] = (0.9, 0.95)
    """AdamW's decay rates of its averages of the gradient and of its square."""
    weight_decay: NonNegativeFloat = 0.05
    """AdamW's weight decay; not applied to biases and other one-dimensional parameters."""
    clip_norm: PositiveFloat | None = 1.0
    """Largest norm of the gradient; none: it is not clipped."""
    precision: Literal["fp32", "tf32", "bf16", "fp16"] = "fp16"
    """Precision of the matrix products under autocast; the loss and the norms are always float32. tf32 is float32 whose
    products a GPU rounds to 10 bits of mantissa."""
    seed: Annotated[int, Ge(0), Lt(2**64)] = 0
    """Random seed of the run."""

    def __post_init__(self) -> None:
        if self.img_size % self.patch_size:
            raise ValueError(f"img_size {self.img_size} is not a multiple of patch_size {self.patch_size}")
        self.check_width("embed_dim", "num_heads")
        for name in ("crop_scale", "blur_sigma"):
            low, high = getattr(self, name)
            if low > high:
                raise ValueError(f"{name} is the smallest and the largest value, in this order, not {low} and {high}")
        if self.jitter[3] > 0.5:
            raise ValueError(f"jitter of the hue (the last of the four) is at most 0.5, not {self.jitter[3]}")

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

    @property
    def lr(self) -> float:
        """Peak learning rate (1e-3 for SiameseIM's run)."""
        return self.base_lr * self.batch_size / 256

    def draw_mask(self, epoch: int, index: np.ndarray) -> np.ndarray | None:
        """Masks (B, N) bool of view 1 for images of index (B,), for a method that chooses them with the crops; else
        None."""
        return None

    def draw_noise(self, epoch: int, index: np.ndarray) -> np.ndarray | None:
        """Uniform numbers (B, N) for images of index (B,), for a method that masks by them; else None."""
        return None

    def to_json(self) -> dict[str, Any]:
        """Plain values, written beside every checkpoint."""
        return asdict(self)


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
    "crop_scale": (0.25, 1.0),  # 8 % of 32 x 32 pixels is 9 x 9: less than two periods of a texture
    "epochs": 14,
    "warmup_epochs": 2.0,
    "batch_size": 64,  # many small steps matter more than anything else in minutes
    "base_lr": 1e-2,  # tuned on the toy world with SiameseIM's momentum: minutes must do
    "precision": "fp32",
}

# ``--model``: how other encoders differ from ViT-B/16. Only ViT-B has a published SiameseIM; the others are MAE's
# encoders.
MODELS: dict[str, dict[str, Any]] = {
    "vit_small": {"embed_dim": 384, "depth": 12, "num_heads": 6},
    "vit_base": {"embed_dim": 768, "depth": 12, "num_heads": 12},
    "vit_large": {"embed_dim": 1024, "depth": 24, "num_heads": 16},
    "vit_huge": {"embed_dim": 1280, "depth": 32, "num_heads": 16, "patch_size": 14},
}
