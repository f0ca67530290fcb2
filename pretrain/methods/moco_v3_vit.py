"""MoCo-v3 of a vision transformer: tell an image's other view from the views of other images (arXiv 2104.02057).

    view 1 ─ base encoder with head ─ predictor ─▶ q1 ┐ cross-entropy of q1 against all k2, whose own is the answer;
    view 2 ─ momentum encoder with head ──────────▶ k2 ┴ and of q2 against all k1

The names are those of the released code. Axes: B batch, N patches of a view, D width.
"""

import copy
import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt
from timm.models.vision_transformer import PatchEmbed
from torch import Tensor, nn

from evaluate.runtime.settings import Probability
from pretrain import distributed
from pretrain.config import DEMO_COLORS, DEMO_SETTINGS, BelowOne, VitConfig
from pretrain.convnet import at_least_float32, mlp
from pretrain.data.views import Batch
from pretrain.geometry import sincos_2d
from pretrain.methods import Method
from pretrain.names import from_official as from_official
from pretrain.names import to_official as to_official
from pretrain.norm import BatchNorm
from pretrain.optimizer import cosine
from pretrain.target import move_towards
from pretrain.vit import LAYER_NORM, blocks


@dataclass(frozen=True)
class Config(VitConfig):
    """MoCo-v3's run with ViT-B/16 for 300 epochs; the defaults are those of the released code's CONFIG.md."""

    method: Literal["moco_v3_vit"] = "moco_v3_vit"
    """The file of pretrain/methods/. A preset chooses it."""
    mlp_dim: PositiveInt = 4096
    """Width of the hidden layers of the head and the predictor."""
    dim: PositiveInt = 256
    """Width of what is compared."""
    temperature: PositiveFloat = 0.2
    """What the similarities are divided by."""
    momentum: Probability = 0.99
    """Momentum of the moving average at the start; it rises to 1 on a half cosine."""

    interpolation: Literal["bicubic", "bilinear"] = "bilinear"
    epochs: PositiveInt = 300
    base_lr: PositiveFloat = 1.5e-4
    betas: tuple[BelowOne, BelowOne] = (0.9, 0.999)
    weight_decay: NonNegativeFloat = 0.1
    decayed: Literal["all", "matrices"] = "all"
    clip_norm: PositiveFloat | None = None


PAPER = Config()
DEMO = replace(PAPER, **DEMO_SETTINGS, **DEMO_COLORS, mlp_dim=128, dim=32)
PRESETS = {"paper": PAPER, "300ep": PAPER, "demo": DEMO}
MODELS = {"vit_small": {"num_heads": 12}}  # of 32 channels, unlike everyone else's


@dataclass(frozen=True)
class Outputs:
    """What one forward pass makes: loss (); predictions and targets (B, D) of the two views."""

    loss: Tensor
    prediction1: Tensor
    prediction2: Tensor
    target1: Tensor
    target2: Tensor


class Encoder(nn.Module):
    """A vision transformer whose class token goes through the head."""

    def __init__(self, config: Config):
        super().__init__()
        width = config.embed_dim
        self.cls_token = nn.Parameter(torch.empty(1, 1, width))
        self.pos_embed = nn.Parameter(sincos_2d(config.grid_size, width), requires_grad=False)
        self.patch_embed = PatchEmbed(config.img_size, config.patch_size, 3, width)
        self.blocks = blocks(
            config.depth, width, config.num_heads, config.mlp_ratio, drop_path_rate=config.drop_path_rate
        )
        self.norm = LAYER_NORM(width)
        self._initialize(config)
        self.head = mlp([width, config.mlp_dim, config.mlp_dim, config.dim], BatchNorm(config.dim, affine=False))

    def _initialize(self, config: Config) -> None:
        """The released code's random start: queries, keys and values as three matrices."""
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear):
                parts = module.weight.chunk(3) if name.endswith("qkv") else [module.weight]
                for part in parts:
                    nn.init.xavier_uniform_(part)
                nn.init.zeros_(module.bias)
        projection = self.patch_embed.proj
        limit = math.sqrt(6 / (3 * config.patch_size**2 + config.embed_dim))
        nn.init.uniform_(projection.weight, -limit, limit)
        assert projection.bias is not None
        nn.init.zeros_(projection.bias)
        nn.init.normal_(self.cls_token, std=1e-6)
        self.patch_embed.requires_grad_(config.train_patch_embed)

    def features(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) to the class token (B, D) after the final norm."""
        patches = self.patch_embed(images)
        tokens = torch.cat([self.cls_token.expand(len(patches), -1, -1), patches], dim=1) + self.pos_embed
        return self.norm(self.blocks(tokens))[:, 0]

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) to what the head makes of their features."""
        return self.head(self.features(images))


class MoCoV3(Method):
    """Model and loss of one training step, of any encoder with a head and ``features``."""

    def __init__(self, base_encoder: nn.Module, predictor: nn.Module, temperature: float, momentum: float):
        super().__init__()
        self.temperature, self.momentum = temperature, momentum
        self.base_encoder, self.predictor = base_encoder, predictor
        self.momentum_encoder = copy.deepcopy(base_encoder).requires_grad_(False)

    def after_step(self, step: int, total: int) -> None:
        """Moves the momentum encoder, as the released code does before the forward pass of the next step."""
        self.update_target(cosine(self.momentum, 1.0, step / total))

    def update_target(self, momentum: float) -> None:
        """momentum encoder = momentum * itself + (1 - momentum) * base encoder."""
        move_towards(self.momentum_encoder, self.base_encoder, momentum)

    def features(self, images: Tensor) -> Tensor:
        """The base encoder's features (B, D) before the head, of whole images (B, 3, H, W)."""
        features: Tensor = self.base_encoder.features(images)  # type: ignore[operator]  # an encoder has them
        return features.float()

    def forward(self, batch: Batch) -> Outputs:
        """The views pass one after the other: each has its own BatchNorm statistics."""
        assert batch.view2 is not None
        q1, q2 = (self.predictor(self.base_encoder(view)) for view in (batch.view1, batch.view2))
        with torch.no_grad():
            k1, k2 = self.momentum_encoder(batch.view1), self.momentum_encoder(batch.view2)
        loss = contrast(q1, k2, self.temperature) + contrast(q2, k1, self.temperature)
        return Outputs(loss, q1, q2, k1, k2)


def contrast(queries: Tensor, keys: Tensor, temperature: float) -> Tensor:
    """2 T mean_i -log softmax_j(q_i . k_j / T)_i of normalized queries (B, D) and the keys (B, D) of all processes.

    A scalar in float32 or better. The factor 2 T is the released code's. Keys carry no gradient.
    """
    with torch.autocast(queries.device.type, enabled=False):
        queries, keys = (F.normalize(at_least_float32(rows), dim=1) for rows in (queries, keys))
        everyones, first = distributed.gather_rows(keys)
        own = torch.arange(first, first + len(queries), device=queries.device)
        return 2 * temperature * F.cross_entropy(queries @ everyones.T / temperature, own)


def build(config: Config) -> MoCoV3:
    """The model, from torch's global generator."""
    encoder = Encoder(config)
    predictor = mlp([config.dim, config.mlp_dim, config.dim], BatchNorm(config.dim, affine=False))
    return MoCoV3(encoder, predictor, config.temperature, config.momentum)
