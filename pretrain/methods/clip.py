"""CLIP: tell an image's own caption from those of other images, and a caption's own image (arXiv 2103.00020).

    image   ─ visual tower ─▶ i ┐ cross-entropy of each image against all captions and of each caption against all
    caption ─ text tower ───▶ t ┘ images; a learned scale multiplies their cosines

Towers and tokenizer are those of the package open_clip_torch, and so are the names. The loss is its ``ClipLoss`` in our
words: that one gathers over a group of its own, which knows nothing of micro-batches that one process looks at alone.
The visual tower is what is evaluated. The paper's 400 million pairs are not public. Axes: B batch, L tokens, D width.
"""

import functools
import math
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Annotated, Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from annotated_types import Ge, Le
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor

from evaluate.runtime.errors import UserError
from evaluate.runtime.settings import Probability
from pretrain import distributed
from pretrain.config import DEMO_SETTINGS, BelowOne, Share, VitConfig
from pretrain.convnet import at_least_float32
from pretrain.data.views import Batch
from pretrain.methods import Method
from pretrain.names import from_official_names

PREFIX = "towers."  # of our names, before open_clip's


@dataclass(frozen=True)
class Config(VitConfig):
    """CLIP's run with ViT-B/16; the defaults are those of its paper, and of open_clip where it is silent."""

    needs_captions = True

    method: Literal["clip"] = "clip"
    """The file of pretrain/methods/. A preset chooses it."""
    dim: PositiveInt = 512
    """Width of what is compared."""
    text_width: PositiveInt = 512
    """Width of the text tower."""
    text_depth: PositiveInt = 12
    """Blocks of the text tower."""
    text_heads: PositiveInt = 8
    """Attention heads of a block of the text tower."""
    context_length: PositiveInt = 77
    """Tokens of a caption with its start and end; a longer one is cut."""
    vocab_size: PositiveInt = 49408
    """Tokens that the text tower knows; the tokenizer has 49,408."""
    quick_gelu: bool = True
    """Whether both towers have x sigmoid(1.702 x), as OpenAI's weights, or GELU, as open_clip's plain ViT-B-16."""
    layer_norm_eps: PositiveFloat = 1e-5
    """Epsilon of every LayerNorm."""
    eps: PositiveFloat = 1e-6
    """What AdamW adds to the root of its average of the squared gradient."""

    train_patch_embed: bool = True
    """Whether the patch embedding is trained; if not it stays at its random start."""
    drop_path_rate: Annotated[float, Ge(0), Le(0)] = 0.0
    """Stochastic depth, which these towers do not have."""
    num_views: Annotated[int, Ge(1), Le(1)] = 1
    crop_scale: tuple[Share, Share] = (0.9, 1.0)
    jitter_probability: Probability = 0.0
    gray_probability: Probability = 0.0
    flip_probability: Probability = 0.0
    blur_probability: tuple[Probability, Probability] = (0.0, 0.0)
    solarize_probability: tuple[Probability, Probability] = (0.0, 0.0)
    mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    """Mean of red, green and blue, subtracted from pixels in [0, 1]."""
    std: tuple[PositiveFloat, PositiveFloat, PositiveFloat] = (0.26862954, 0.26130258, 0.27577711)
    """Standard deviation of red, green and blue, by which pixels are divided."""
    epochs: PositiveInt = 32
    batch_size: PositiveInt = 32768
    base_lr: PositiveFloat = 5e-4
    lr_scaling: Literal["linear", "sqrt", "none"] = "none"
    warmup_epochs: NonNegativeFloat = 2000 * 32768 / 400e6  # 2000 steps, in epochs of 400 million pairs
    warmup_lr: NonNegativeFloat = 5e-4 / 2000  # the rate of step s is the share (s + 1) / 2000 of the largest
    warmup_inclusive: bool = True
    betas: tuple[BelowOne, BelowOne] = (0.9, 0.98)
    weight_decay: NonNegativeFloat = 0.2
    clip_norm: PositiveFloat | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.text_width % self.text_heads:
            raise ValueError(f"text_heads {self.text_heads} does not divide text_width {self.text_width}")

    def tokens(self, captions: list[str]) -> np.ndarray:
        """The ids (B, L) of captions: start, text, end, zeros."""
        tokenize = tokenizer()
        if tokenize.vocab_size > self.vocab_size:
            raise UserError(f"vocab_size {self.vocab_size} is below the tokenizer's {tokenize.vocab_size}; raise it")
        return tokenize(captions, context_length=self.context_length).numpy()


PAPER = Config()
DEMO_TOWERS: dict[str, Any] = {"dim": 32, "text_width": 48, "text_depth": 2, "text_heads": 3, "context_length": 24}
DEMO = replace(PAPER, **DEMO_SETTINGS | DEMO_TOWERS | {"base_lr": 1e-3, "warmup_lr": 4e-6})
PRESETS = {"paper": PAPER, "demo": DEMO}
MODELS: dict[str, dict[str, Any]] = {  # open_clip's ViT-S-16, ViT-L-14 and ViT-H-14
    "vit_small": {"dim": 384, "text_width": 384, "text_heads": 6},
    "vit_large": {"patch_size": 14, "dim": 768, "text_width": 768, "text_heads": 12},
    "vit_huge": {"dim": 1024, "text_width": 1024, "text_heads": 16, "text_depth": 24},
}


@dataclass(frozen=True)
class Outputs:
    """What one forward pass makes: loss, scale (); normalized features (B, D); logits (B, B of all) of images."""

    loss: Tensor
    image_features: Tensor
    text_features: Tensor
    logits_per_image: Tensor
    scale: Tensor


class CLIP(Method):
    """Model and loss of one training step."""

    def __init__(self, config: Config):
        super().__init__()
        norm = {"norm_kwargs": {"eps": config.layer_norm_eps}, "mlp_ratio": config.mlp_ratio}
        image = {"image_size": config.img_size, "patch_size": config.patch_size, "width": config.embed_dim}
        image |= {"layers": config.depth, "head_width": config.embed_dim // config.num_heads}
        text = {"context_length": config.context_length, "vocab_size": config.vocab_size, "width": config.text_width}
        text |= {"layers": config.text_depth, "heads": config.text_heads}
        self.towers = open_clip().CLIP(config.dim, image | norm, text | norm, quick_gelu=config.quick_gelu)
        self.towers.visual.conv1.requires_grad_(config.train_patch_embed)

    def after_step(self, step: int, total: int) -> None:
        """Keeps the scale between 1 and 100, as the released code does."""
        with torch.no_grad():
            self.towers.logit_scale.clamp_(0, math.log(100))

    def features(self, images: Tensor) -> Tensor:
        """The visual tower's class token (B, D) after its last norm, before the projection, of whole images (B, 3, H,
        W)."""
        visual = self.towers.visual
        return visual.ln_post(visual.transformer(visual._embeds(images)))[:, 0].float()

    def forward(self, batch: Batch) -> Outputs:
        """Compares the images with their captions, ``batch.text``."""
        assert batch.text is not None  # the config makes them
        image, text = self.towers.encode_image(batch.view1), self.towers.encode_text(batch.text)
        with torch.autocast(image.device.type, enabled=False):
            image, text = (F.normalize(at_least_float32(rows), dim=1) for rows in (image, text))
            scale = self.towers.logit_scale.exp()
            loss, logits = contrast(image, text, scale)
        return Outputs(loss, image, text, logits, scale)


def contrast(images: Tensor, texts: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Half of mean_i -log softmax_j(scale i_i . t_j)_i and half of the same of the texts; also the images' logits.

    Normalized features (B, D), compared with those of all processes with their gradient.
    """
    (every_image, first), (every_text, _) = distributed.gather_rows(images), distributed.gather_rows(texts)
    own = torch.arange(first, first + len(images), device=images.device)
    of_images, of_texts = scale * images @ every_text.T, scale * texts @ every_image.T
    return (F.cross_entropy(of_images, own) + F.cross_entropy(of_texts, own)) / 2, of_images


@functools.cache
def tokenizer() -> Any:
    """Byte pairs of lower-cased text; its table comes with the package."""
    return open_clip().SimpleTokenizer()


def open_clip() -> ModuleType:
    """The package with the towers and the tokenizer. Raises UserError where it is absent."""
    try:
        import open_clip  # seconds, for this method alone
    except ImportError as error:
        raise UserError(
            f"clip needs the package open_clip_torch, which cannot be imported ({error}); uv sync --extra clip adds it"
        ) from error
    return open_clip


def build(config: Config) -> CLIP:
    """The model, from torch's global generator."""
    return CLIP(config)


def to_official(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state dict under open_clip's names."""
    return {name.removeprefix(PREFIX): tensor for name, tensor in state.items()}


def from_official(state: dict[str, Tensor], names: list[str]) -> dict[str, Tensor]:
    """Back from open_clip's names. Raises ValueError naming keys that are absent or left over."""
    return from_official_names(state, {name: name.removeprefix(PREFIX) for name in names})
