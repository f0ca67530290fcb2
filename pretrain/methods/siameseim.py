"""SiameseIM: predict the dense representation of one view from another, masked view (arXiv 2206.01204, Section 3).

    view 1, visible patches ─ encoder ─ projector ─┐
        mask tokens at view 2's relative positions ─┴─ predictor ─▶ prediction ┐
    view 2, all patches ─ target encoder ─ target projector ─▶ LayerNorm ─▶ target ┴─ UniGrad loss

Axes: B batch, N patches of a view, V visible patches, D width.
"""

import copy
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveInt
from timm.models.vision_transformer import PatchEmbed
from torch import Tensor, nn

from evaluate.runtime.settings import Probability
from pretrain import distributed
from pretrain.config import DEMO_COLORS, DEMO_SETTINGS, SMALL_SETTINGS, VitConfig
from pretrain.data.views import Batch, block_masks, random_masks
from pretrain.geometry import RelativeGeometry, relative_parts, sincos_2d
from pretrain.methods import Method
from pretrain.names import from_official_names
from pretrain.norm import BatchNorm
from pretrain.optimizer import cosine
from pretrain.target import move_towards
from pretrain.vit import LAYER_NORM, blocks, gather_tokens, initialize


@dataclass(frozen=True)
class Config(VitConfig):
    """SiameseIM's run; the defaults are the paper's (released scripts and defaults, "script" where the paper's text is
    silent)."""

    needs_geometry = True

    method: Literal["siameseim"] = "siameseim"
    """The file of pretrain/methods/. A preset chooses it."""
    decoder_embed_dim: PositiveInt = 768
    """Width of the projectors and the predictor."""
    decoder_num_heads: PositiveInt = 16
    """Attention heads of a block of the projectors and the predictor."""
    projector_depth: NonNegativeInt = 2
    """Blocks of each projector."""
    predictor_depth: NonNegativeInt = 4
    """Blocks of the predictor."""
    projector_norm: Literal["batch", "layer"] = "batch"
    """Norm of the projectors: batch is over all tokens of all images of a micro-batch of all processes."""
    predictor_norm: Literal["batch", "layer"] = "batch"
    """Norm of the predictor, as projector_norm."""
    neg_weight: NonNegativeFloat = 0.02
    """Weight of the term that spreads the features (lambda of the UniGrad loss)."""
    momentum: Probability = 0.995
    """Momentum of the target's moving average at the start; it rises to 1 on a half cosine."""
    num_masked: PositiveInt = 118
    """Patches of the online view that are masked, exactly (60.2 % of 196; script)."""
    min_block: PositiveInt = 16
    """Patches of the smallest block that the mask is made of."""

    # What the paper and its authors' talks compare; the defaults are the paper's run.
    target_view: Literal["other", "same"] = "other"
    """The target's crop: another one, or that of the masked view, whose colors differ all the same."""
    masked_view_colors: bool = True
    """Whether the colors of the masked view are augmented."""
    mask: Literal["block", "random"] = "block"
    """Masks of blocks, or of patches each by itself; num_masked is the same for both."""
    dense_weight: NonNegativeFloat = 1.0
    """Weight of the loss between patches."""
    global_weight: NonNegativeFloat = 0.0
    """Weight of the same loss between the means of an image's patches (ours: no source spells it out)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_width("decoder_embed_dim", "decoder_num_heads")
        if not 0 < self.num_masked < self.num_patches:
            raise ValueError(
                f"num_masked {self.num_masked} must lie between 0 and the {self.num_patches} patches of the image"
            )
        if self.num_views != 2:
            raise ValueError(f"siameseim predicts one view from another: num_views is 2, not {self.num_views}")
        if self.dense_weight == self.global_weight == 0:
            raise ValueError("dense_weight and global_weight are both 0: nothing would be learned")

    @property
    def one_crop(self) -> bool:
        """Whether view 2 is cut and flipped as view 1 is."""
        return self.target_view == "same"

    @property
    def plain_view1(self) -> bool:
        """Whether the colors of view 1, the masked one, stay as they are."""
        return not self.masked_view_colors

    def draw_mask(self, epoch: int, index: np.ndarray) -> np.ndarray:
        """Masks (B, N) of the online view."""
        if self.mask == "random":
            return random_masks(self.seed, epoch, index, self.num_patches, self.num_masked)
        return block_masks(self.seed, epoch, index, self.grid_size, self.num_masked, self.min_block)


PAPER = Config()
DEMO = replace(
    PAPER,
    **DEMO_SETTINGS,
    **DEMO_COLORS,
    decoder_embed_dim=48,
    decoder_num_heads=3,
    projector_depth=1,
    predictor_depth=1,
    num_masked=5,  # of 16
    min_block=2,
    neg_weight=0.5,  # the term's pull grows with the width: 48, not 768
    momentum=0.97,
)
SMALL = replace(
    PAPER,
    **SMALL_SETTINGS,
    decoder_embed_dim=128,
    decoder_num_heads=4,
    predictor_depth=2,
    num_masked=18,  # half of 36
    min_block=3,
    neg_weight=0.05,
    momentum=0.99,
    blur_sigma=(0.1, 1.0),  # of 48 pixels
    epochs=60,
    warmup_epochs=4.0,
)
ABLATIONS = {  # rows of an ablation: the paper's run with one or two settings changed
    "same_view": replace(PAPER, target_view="same"),
    "same_view_plain": replace(PAPER, target_view="same", masked_view_colors=False),
    "plain_masked_view": replace(PAPER, masked_view_colors=False),
    "global_loss": replace(PAPER, dense_weight=0.0, global_weight=1.0),
    "both_losses": replace(PAPER, global_weight=1.0),
    "layer_norm": replace(PAPER, projector_norm="layer", predictor_norm="layer"),
    "random_mask": replace(PAPER, mask="random"),
}
PRESETS = {"paper": PAPER, "paper_400": replace(PAPER, epochs=400), "demo": DEMO, "small": SMALL, **ABLATIONS}
MODELS = {"vit_huge": {"num_masked": 154}}  # 60.2 % of 256 patches

TARGET_NORM_EPS = 1e-5  # torch's default; with 1e-6 the golden loss moves by 1.4e-5

# ours -> the official state dict's name; first match wins
OFFICIAL_NAMES = (
    (r"online\.projector\.(.+)", r"projector_decoder_blocks.\1"),
    (r"online\.(.+)", r"\1"),
    (r"target\.projector\.(.+)", r"mm_projector_decoder_blocks.\1"),
    (r"target\.(.+)", r"mm_\1"),
    (r"predictor\.(.+)", r"predictor_decoder_blocks.\1"),
    (r"(pos_embed|decoder_pos_embed|decoder_pred\..+|decoder_pos_mlp\..+)", r"\1"),
)


@dataclass(frozen=True)
class Outputs:
    """What one forward pass makes: loss (), prediction and target before its LayerNorm (both (B, N, D))."""

    loss: Tensor
    prediction: Tensor
    target: Tensor


class TokenBatchNorm(nn.Module):
    """BatchNorm over all tokens of all images of all processes, (B, N, D) to the same, in float32."""

    def __init__(self, width: int, **factory: Any):
        super().__init__()
        self.bn = BatchNorm(width, **factory)

    def forward(self, tokens: Tensor) -> Tensor:
        with torch.autocast(tokens.device.type, enabled=False):
            return self.bn(tokens.float().flatten(0, 1)).view_as(tokens)


NORMS: dict[str, Callable[[int], nn.Module]] = {"batch": TokenBatchNorm, "layer": LAYER_NORM}


class Branch(nn.Module):
    """Encoder and projector: what both the online and the target side have. The encoder ends without a norm."""

    def __init__(self, config: Config):
        super().__init__()
        width = config.embed_dim
        self.cls_token = nn.Parameter(torch.empty(1, 1, width))
        self.mask_token = nn.Parameter(
            torch.empty(1, 1, config.decoder_embed_dim)
        )  # the target's is never used, but published
        self.patch_embed = PatchEmbed(config.img_size, config.patch_size, 3, width)
        self.blocks = blocks(
            config.depth, width, config.num_heads, config.mlp_ratio, drop_path_rate=config.drop_path_rate
        )
        self.decoder_embed = nn.Linear(width, config.decoder_embed_dim)
        self.projector = blocks(
            config.projector_depth,
            config.decoder_embed_dim,
            config.decoder_num_heads,
            config.mlp_ratio,
            NORMS[config.projector_norm],
        )

    def forward(self, images: Tensor, pos_embed: Tensor, visible: Tensor | None = None) -> Tensor:
        """As ``encode``, then through the projector."""
        return self.projector(self.decoder_embed(self.encode(images, pos_embed, visible)))

    def encode(self, images: Tensor, pos_embed: Tensor, visible: Tensor | None = None) -> Tensor:
        """Images (B, 3, H, W), position embedding (1, 1+N, D) and the cells to keep (B, V), all if None; to (B, 1+V,
        D)."""
        patches = self.patch_embed(images) + pos_embed[:, 1:]
        if visible is not None:
            patches = gather_tokens(patches, visible)
        cls = (self.cls_token + pos_embed[:, :1]).expand(len(patches), -1, -1)
        return self.blocks(torch.cat([cls, patches], dim=1))


class SiameseIM(Method):
    """Model and loss of one training step; the loop calls the module and then ``after_step``."""

    pos_embed: Tensor
    decoder_pos_embed: Tensor

    def __init__(self, config: Config):
        super().__init__()
        self.grid_size = config.grid_size
        self.num_seen = config.num_patches - config.num_masked
        self.neg_weight = config.neg_weight
        self.weights = config.dense_weight, config.global_weight
        self.momentum = config.momentum
        width = config.decoder_embed_dim
        self.online = Branch(config)
        self.predictor = blocks(
            config.predictor_depth, width, config.decoder_num_heads, config.mlp_ratio, NORMS[config.predictor_norm]
        )
        self.decoder_pred = nn.Linear(width, width)
        self.decoder_pos_mlp = nn.Linear(2 * width, width)
        self.register_buffer("pos_embed", sincos_2d(config.grid_size, config.embed_dim))
        self.register_buffer("decoder_pos_embed", sincos_2d(config.grid_size, width))
        initialize(self, self.online.patch_embed, self.online.cls_token, self.online.mask_token)
        self.online.patch_embed.requires_grad_(config.train_patch_embed)
        self.target = copy.deepcopy(self.online).requires_grad_(False)

    def after_step(self, step: int, total: int) -> None:
        """Moves the target towards the new online branch, after the ``step``-th of ``total`` steps."""
        self.update_target(cosine(self.momentum, 1.0, step / total))

    def update_target(self, momentum: float) -> None:
        """target = momentum * target + (1 - momentum) * online."""
        move_towards(self.target, self.online, momentum)

    def hidden(self, batch: Batch) -> Tensor:
        """The cells of view 1 (B, N) that the online branch does not see."""
        assert batch.mask is not None  # the config draws it
        return batch.mask

    def features(self, images: Tensor) -> Tensor:
        """The mean patch tokens (B, D) of whole images (B, 3, H, W)."""
        return self.online.encode(images, self.pos_embed)[:, 1:].float().mean(1)

    def forward(self, batch: Batch) -> Outputs:
        """The target goes first: what it needs is freed before the online branch starts to keep its activations."""
        target = self.target_side(batch)
        prediction = self.online_side(batch)
        return Outputs(self.loss(prediction, target), prediction, target)

    @torch.no_grad()
    def target_side(self, batch: Batch) -> Tensor:
        """What the target branch makes of all of view 2: (B, N, D)."""
        return self.target(batch.view2, self.pos_embed)[:, 1:]

    def online_side(self, batch: Batch) -> Tensor:
        """What the online branch, from what the mask leaves of view 1, predicts for all of view 2: (B, N, D)."""
        assert batch.geometry is not None  # the config asks for it
        visible = visible_cells(self.hidden(batch), self.num_seen)
        return self.predict(self.online(batch.view1, self.pos_embed, visible), visible, batch.geometry)

    def loss(self, prediction: Tensor, target: Tensor) -> Tensor:
        """The UniGrad loss of prediction and target, both (B, N, D); dense, global, or the weighted sum."""
        target = normalize(target)
        means = prediction.float().mean(1, keepdim=True), target.mean(1, keepdim=True)
        parts = zip(self.weights, ((prediction, target), means), strict=True)
        losses = [(weight, unigrad_loss(*pair, self.neg_weight)) for weight, pair in parts if weight]
        return sum((weight * loss for weight, loss in losses[1:]), losses[0][0] * losses[0][1])

    def predict(self, online: Tensor, visible: Tensor, geometry: RelativeGeometry) -> Tensor:
        """Online tokens (B, 1+V, D) and their cells (B, V) to the predicted tokens of view 2 (B, N, D)."""
        batch = len(online)
        positions = gather_tokens(self.decoder_pos_embed[:, 1:].expand(batch, -1, -1), visible)
        queries = self.online.mask_token + self.relative_embedding(geometry)
        cls = online[:, :1] + self.decoder_pos_embed[:, :1]
        tokens = torch.cat([cls, online[:, 1:] + positions, queries.to(online.dtype)], dim=1)
        return self.decoder_pred(self.predictor(tokens)[:, -(self.grid_size**2) :])

    def relative_embedding(self, geometry: RelativeGeometry) -> Tensor:
        """``decoder_pos_mlp`` of ``relative_sincos`` (B, N, D), without its table: a row's part is the same in all
        columns."""
        width = self.decoder_pos_embed.shape[-1]
        parts = relative_parts(geometry, self.grid_size, width)
        weights = self.decoder_pos_mlp.weight.split([width // 2, width // 2, width], dim=1)
        rows, columns, scales = (F.linear(part, weight) for part, weight in zip(parts, weights, strict=True))
        scales = scales + self.decoder_pos_mlp.bias
        return (rows[:, :, None] + (columns + scales[:, None])[:, None]).flatten(1, 2)


def visible_cells(mask: Tensor, count: int) -> Tensor:
    """Indices (B, count) of the False cells of a mask (B, N) with ``count`` of them in each row, in ascending order."""
    return mask.byte().argsort(dim=1, stable=True)[:, :count]  # nonzero() would make the CPU wait for the device


def normalize(target: Tensor) -> Tensor:
    """LayerNorm over the width without affine parameters, in float32."""
    return F.layer_norm(target.float(), target.shape[-1:], eps=TARGET_NORM_EPS)


def unigrad_loss(prediction: Tensor, target: Tensor, neg_weight: float) -> Tensor:
    """[mean_n |p_n - t_n|^2 + neg_weight * mean_n p_n^T C p_n] / D with C = mean_n t_n t_n^T over all tokens of all
    processes.

    Prediction and target are (B, N, D); the loss is a float32 scalar and C carries no gradient. The released code
    builds the (BN x BN) product and reads its diagonal; this is the same number in O(BN D^2).
    """
    with torch.autocast(prediction.device.type, enabled=False):
        p, t = prediction.float().flatten(0, 1), target.float().flatten(0, 1)
        correlation = distributed.mean_over_ranks(t.T @ t / len(t))
        attraction = (p - t).square().sum(-1).mean()
        spread = ((p @ correlation) * p).sum(-1).mean()
        return (attraction + neg_weight * spread) / p.shape[-1]


def to_official(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Our state dict under the released code's names."""
    return {_official_name(name): tensor for name, tensor in state.items()}


def from_official(state: dict[str, Tensor], names: list[str]) -> dict[str, Tensor]:
    """The released code's state dict under our names. Raises ValueError naming keys that are absent or left over."""
    return from_official_names(state, {name: _official_name(name) for name in names})


def _official_name(name: str) -> str:
    for pattern, official in OFFICIAL_NAMES:
        if re.fullmatch(pattern, name):
            return re.sub(pattern, official, name)
    raise ValueError(f"no official name for {name!r}")


def build(config: Config) -> SiameseIM:
    """The model, from torch's global generator."""
    return SiameseIM(config)
