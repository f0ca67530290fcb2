"""MAE: reconstruct the pixels of masked patches from the visible ones (He et al., arXiv 2111.06377, Section 3).

    visible patches ─ encoder ─ norm ─ linear ─┐
                    mask tokens elsewhere ─────┴─ decoder ─ norm ─ linear ─▶ pixels ─ squared error, masked only

The module carries the official names, so its state dict is the official one. Axes: B batch, N patches, V visible
patches, D width, P = 3 * patch_size ** 2 pixel values of a patch.
"""

from dataclasses import dataclass, replace
from typing import Annotated, Literal

import numpy as np
import torch
from annotated_types import Ge, Gt, Le, Lt
from pydantic import NonNegativeInt, PositiveFloat, PositiveInt
from timm.models.vision_transformer import PatchEmbed
from torch import Tensor, nn

from evaluate.runtime.settings import Probability
from pretrain.config import DEMO_SETTINGS, SMALL_SETTINGS, Share, VitConfig
from pretrain.data.views import Batch, patch_noise
from pretrain.geometry import sincos_2d
from pretrain.methods import Method
from pretrain.names import from_official as from_official
from pretrain.names import to_official as to_official
from pretrain.vit import LAYER_NORM, blocks, gather_tokens, initialize


@dataclass(frozen=True)
class Config(VitConfig):
    """MAE's run; the defaults are those of Table 8 of MAE (arXiv 2111.06377) and of its released code."""

    method: Literal["mae"] = "mae"
    """The file of pretrain/methods/. A preset chooses it."""
    decoder_embed_dim: PositiveInt = 512
    """Width of the decoder."""
    decoder_num_heads: PositiveInt = 16
    """Attention heads of a block of the decoder."""
    decoder_depth: NonNegativeInt = 8
    """Blocks of the decoder."""
    mask_ratio: Annotated[float, Gt(0), Lt(1)] = 0.75
    """Share of the patches that are hidden, each by itself."""
    norm_pix_loss: bool = True
    """Whether the target is each patch's pixels normalized by their own mean and variance; if not, the pixels."""

    # What MAE does otherwise than the defaults: random resized crop and flip only, no clipping.
    train_patch_embed: bool = True
    """Whether the patch embedding is trained; if not it stays at its random start."""
    num_views: Annotated[int, Ge(1), Le(2)] = 1
    """Views that are taken of an image; MAE sees the first."""
    crop_scale: tuple[Share, Share] = (0.2, 1.0)
    jitter_probability: Probability = 0.0
    gray_probability: Probability = 0.0
    blur_probability: tuple[Probability, Probability] = (0.0, 0.0)
    solarize_probability: tuple[Probability, Probability] = (0.0, 0.0)
    base_lr: PositiveFloat = 1.5e-4
    clip_norm: PositiveFloat | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_width("decoder_embed_dim", "decoder_num_heads")
        if not 0 < self.num_visible < self.num_patches:
            raise ValueError(
                f"mask_ratio {self.mask_ratio} leaves {self.num_visible} of {self.num_patches} patches visible"
            )

    @property
    def num_visible(self) -> int:
        """Patches that the encoder sees, rounded as the released code does."""
        return int(self.num_patches * (1 - self.mask_ratio))

    def draw_noise(self, epoch: int, index: np.ndarray) -> np.ndarray:
        """Uniform numbers (B, N); the patches with the largest are hidden."""
        return patch_noise(self.seed, epoch, index, self.num_patches)


PAPER = Config()
DEMO = replace(PAPER, **DEMO_SETTINGS, decoder_embed_dim=48, decoder_num_heads=3, decoder_depth=2, mask_ratio=0.5)
SMALL = replace(
    PAPER,
    **SMALL_SETTINGS,
    decoder_embed_dim=128,
    decoder_num_heads=4,
    decoder_depth=2,
    epochs=100,
    warmup_epochs=5.0,
)
PRESETS = {"paper": PAPER, "demo": DEMO, "small": SMALL}

TARGET_EPS = 1e-6  # added to the variance of a patch


@dataclass(frozen=True)
class Outputs:
    """What one forward pass makes: loss (), predicted pixels (B, N, P), mask (B, N), True where a patch was hidden."""

    loss: Tensor
    prediction: Tensor
    mask: Tensor


class MAE(Method):
    """Model and loss of one training step; the loop calls the module."""

    pos_embed: Tensor
    decoder_pos_embed: Tensor

    def __init__(self, config: Config):
        super().__init__()
        self.patch_size, self.num_visible, self.norm_pix_loss = (
            config.patch_size,
            config.num_visible,
            config.norm_pix_loss,
        )
        width, narrow = config.embed_dim, config.decoder_embed_dim
        self.cls_token = nn.Parameter(torch.empty(1, 1, width))
        self.mask_token = nn.Parameter(torch.empty(1, 1, narrow))
        self.register_buffer("pos_embed", sincos_2d(config.grid_size, width, columns_first=True))
        self.register_buffer("decoder_pos_embed", sincos_2d(config.grid_size, narrow, columns_first=True))
        self.patch_embed = PatchEmbed(config.img_size, config.patch_size, 3, width)
        self.blocks = blocks(
            config.depth, width, config.num_heads, config.mlp_ratio, drop_path_rate=config.drop_path_rate
        )
        self.norm = LAYER_NORM(width)
        self.decoder_embed = nn.Linear(width, narrow)
        self.decoder_blocks = blocks(config.decoder_depth, narrow, config.decoder_num_heads, config.mlp_ratio)
        self.decoder_norm = LAYER_NORM(narrow)
        self.decoder_pred = nn.Linear(narrow, 3 * config.patch_size**2)
        initialize(self, self.patch_embed, self.cls_token, self.mask_token)
        self.patch_embed.requires_grad_(config.train_patch_embed)

    def forward(self, batch: Batch) -> Outputs:
        """Sees view 1 alone; ``batch.noise`` decides what is hidden."""
        assert batch.noise is not None  # the config draws it
        return self.reconstruct(batch.view1, batch.noise)

    def reconstruct(self, images: Tensor, noise: Tensor) -> Outputs:
        """Images (B, 3, H, W); noise (B, N), smallest where a patch stays visible."""
        visible, mask = random_mask(noise, self.num_visible)
        prediction = self.decode(self.encode(images, visible), visible)
        target = patchify(images, self.patch_size)
        target = normalize(target) if self.norm_pix_loss else target
        return Outputs(masked_loss(prediction, target, mask), prediction, mask)

    def hidden(self, batch: Batch) -> Tensor:
        """The cells of view 1 (B, N) that the encoder does not see."""
        assert batch.noise is not None
        return random_mask(batch.noise, self.num_visible)[1]

    def features(self, images: Tensor) -> Tensor:
        """The mean patch tokens (B, D) of whole images (B, 3, H, W)."""
        return self.encode(images)[:, 1:].float().mean(1)

    def encode(self, images: Tensor, visible: Tensor | None = None) -> Tensor:
        """Images (B, 3, H, W) and the cells to keep (B, V), all if None, to tokens (B, 1+V, D)."""
        patches = self.patch_embed(images) + self.pos_embed[:, 1:]
        if visible is not None:
            patches = gather_tokens(patches, visible)
        cls = (self.cls_token + self.pos_embed[:, :1]).expand(len(patches), -1, -1)
        return self.norm(self.blocks(torch.cat([cls, patches], dim=1)))

    def decode(self, encoded: Tensor, visible: Tensor) -> Tensor:
        """Tokens (B, 1+V, D) and their cells (B, V) to the pixels of all patches (B, N, P)."""
        tokens = self.decoder_embed(encoded)
        batch, width, cells = len(tokens), tokens.shape[-1], self.decoder_pos_embed.shape[1] - 1
        hidden = self.mask_token.to(tokens.dtype).expand(batch, cells, -1)
        patches = hidden.scatter(1, visible[..., None].expand(-1, -1, width), tokens[:, 1:])
        tokens = torch.cat([tokens[:, :1], patches], dim=1) + self.decoder_pos_embed
        return self.decoder_pred(self.decoder_norm(self.decoder_blocks(tokens)))[:, 1:]


def random_mask(noise: Tensor, num_visible: int) -> tuple[Tensor, Tensor]:
    """Noise (B, N) to the cells (B, num_visible) where it is smallest, in that order, and the mask (B, N), True
    elsewhere."""
    visible = noise.argsort(dim=1, stable=True)[:, :num_visible]
    return visible, torch.ones_like(noise, dtype=torch.bool).scatter(1, visible, False)


def patchify(images: Tensor, patch_size: int) -> Tensor:
    """Images (B, 3, H, W) to patches (B, N, P); within a patch row, column, colour."""
    patches = images.unfold(2, patch_size, patch_size).unfold(3, patch_size, patch_size)
    return patches.permute(0, 2, 3, 4, 5, 1).flatten(1, 2).flatten(2)


def normalize(patches: Tensor) -> Tensor:
    """(x - mean) / sqrt(var + eps) of each patch (B, N, P), with the unbiased variance."""
    variance, mean = torch.var_mean(patches, dim=-1, keepdim=True)
    return (patches - mean) / (variance + TARGET_EPS).sqrt()


def masked_loss(prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Mean over masked patches of mean_P (prediction - target)^2, a float32 scalar; (B, N, P), (B, N, P), (B, N)
    bool."""
    with torch.autocast(prediction.device.type, enabled=False):
        error = (prediction.float() - target.float()).square().mean(-1)
        return (error * mask).sum() / mask.sum()


def build(config: Config) -> MAE:
    """The model, from torch's global generator."""
    return MAE(config)
