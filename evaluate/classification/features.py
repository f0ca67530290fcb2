"""The frozen pass: class token and mean patch token of the last blocks, once for each image set, kept on disk for every
task.

    found = features.extract(encoder, images, crop, env, precision)
    found.tokens("mean")          (m, D) float32 of the last block, in the order of the set; "cls" likewise or None
    found.tokens("cls", -4)       of the fourth last
    found.labels                  (m,) int64, beside them
    features.probe_input(encoder, "mean", tokens)      what a linear head takes

Features are raw: no norm after the block; ``probe_input`` applies the one a protocol asks for. ``m`` is the number of
images, less those that could not be read where the task allows such. Kept below OUT/NAME/features, where every task of
this encoder finds them: two encoders, preprocessings, precisions or image sets never share any
(``evaluate.classification.cached_pass``).

Size: for ViT-B 8 tokens of 768 float32, 25 kB an image, 31 GB for ImageNet's train set; half of that in a shorter
precision, which is stored as float16: its 11 bits of mantissa are fp16's own and more than bf16's 8.

Axes: n images, K blocks (the last K, in order; the final one last), D width.
"""

import sys
from dataclasses import dataclass

import numpy as np
import torch

from evaluate.classification import cached_pass
from evaluate.classification.config import ImageConfig
from evaluate.classification.finite import IN_FP32, finite
from evaluate.data.imagenet import ImageSet
from evaluate.data.transforms import CenterCrop, normalize
from evaluate.encoder import Encoder
from evaluate.encoder.model import check_sides
from evaluate.runtime import compilation
from evaluate.runtime import precision as precisions
from evaluate.runtime.env import Env
from evaluate.runtime.errors import UserError


@dataclass(frozen=True)
class Features:
    """Features of one image set on disk."""

    stored: cached_pass.CachedPass
    images: ImageSet

    @property
    def labels(self) -> np.ndarray:
        """(m,) int64, of the images whose features there are."""
        return self.images.labels[self.stored.rows]

    @property
    def several(self) -> np.ndarray | None:
        """(m, classes) bool, of these images; None where each has one label."""
        return None if self.images.several is None else self.images.several[self.stored.rows]

    def tokens(self, kind: str, block: int = -1) -> torch.Tensor | None:
        """(m, D) float32 of one block, counted from the end, ``kind`` "cls" or "mean"; None for the class token of an
        encoder without.
        """
        return self.stored.read(f"{kind}{block}", torch.float32)

    def require_tokens(self, kind: str) -> torch.Tensor:
        """``tokens`` of the last block, of a kind that the encoder has."""
        tokens = self.tokens(kind)
        if tokens is None:
            raise ValueError(f"the encoder has no {kind} token")
        return tokens

    @property
    def unreadable(self) -> list[str]:
        """The files that were left out."""
        return [str(self.images.files[index]) for index in self.stored.unreadable]


@dataclass(frozen=True)
class FrozenFeatures:
    """What a task on frozen features works with: the train and the val set's features, and the precision that they were
    computed in.
    """

    train: Features
    val: Features
    precision: str


def frozen_features(encoder: Encoder, config: ImageConfig, env: Env, train: ImageSet, val: ImageSet) -> FrozenFeatures:
    """The features of both sets under a task's config."""
    precision = precisions.resolve(config.precision, env.device)
    crop = test_crop(encoder, config)
    first, second = (
        extract(encoder, images, crop, env, precision, max_unreadable=config.max_unreadable_images)
        for images in (train, val)
    )
    return FrozenFeatures(first, second, precision)


def test_crop(encoder: Encoder, config: ImageConfig) -> CenterCrop:
    """The protocol's test crop. Raises UserError where a ViT's patches do not fill it, or another model takes no such
    side.
    """
    patch = encoder.spec.patch_size
    if encoder.spec.family == "vit" and config.img_size % patch:
        raise UserError(
            f"img_size {config.img_size} is no multiple of the patch size {patch}; choose another: --set img_size=N"
        )
    check_sides(encoder.spec, config.img_size)
    return CenterCrop(config.img_size, config.resize, config.interpolation)


def frozen_tokens(encoder: Encoder, images: torch.Tensor, blocks: int = 1) -> tuple[torch.Tensor | None, torch.Tensor]:
    """Raw class tokens (B, K, D), or None, and mean patch tokens (B, K, D) of normalized images; of any other encoder
    than a ViT, what it pools.
    """
    if not encoder.spec.is_vit:
        return None, encoder.pooled(images)[:, None]
    tokens = encoder.forward_blocks(images, blocks)
    means = torch.stack([block.patches.mean(dim=1) for block in tokens], dim=1)
    return (torch.stack([block.cls for block in tokens], dim=1) if tokens[-1].cls is not None else None), means


def resolve_pooling(encoder: Encoder, asked: str | None) -> str:
    """Which token is read out: the one asked for, else the method's own; the mean where there is no class token."""
    return (asked or encoder.spec.pooling) if encoder.spec.class_token else "mean"


def described(encoder: Encoder, kind: str) -> str:
    """What ``probe_input`` gives, in words."""
    if not encoder.spec.is_vit:
        return "the last map, averaged" if encoder.spec.family == "resnet" else "what the model itself pools"
    if kind == "cls":
        return "the class token of the last block after the encoder's final norm"
    return "the mean of the last block's patch tokens after a LayerNorm without parameters"


def probe_input(encoder: Encoder, kind: str, tokens: torch.Tensor) -> torch.Tensor:
    """The linear probe's input from raw tokens (…, D).

    A class token goes through the encoder's own final norm, where it has one (MAE, MoCo-v3, DINO). The mean patch token
    goes through a LayerNorm without parameters: ``fc_norm`` of SiameseIM's ``--global_pool``, fresh and frozen. A
    ResNet's pooled map is taken as it is.
    """
    if not encoder.spec.is_vit:
        return tokens
    if kind == "cls":
        return encoder.model.norm(tokens)
    return torch.nn.functional.layer_norm(tokens, tokens.shape[-1:], eps=encoder.spec.layer_norm_eps)


def extract(
    encoder: Encoder,
    images: ImageSet,
    crop: CenterCrop,
    env: Env,
    precision: str = "fp32",
    blocks: int = 4,
    max_unreadable: int = 0,
) -> Features:
    """The features of a set: read from ``env.out_dir.parent / "features"``, where missing or damaged computed.

    Several processes share the shards out; the features do not depend on how many, to the last bit.

    Args:
        precision: fp32, tf32, bf16, fp16, or auto (fp16 on CUDA, fp32 on a CPU).
        blocks: the last so many; a ResNet has one.
        max_unreadable: so many images may be unreadable; the rest of the task then goes by ``labels``.
    """
    precision = precisions.resolve(precision, env.device)
    blocks = min(blocks, encoder.spec.depth) if encoder.spec.family == "vit" else 1
    mean, std = encoder.spec.mean, encoder.spec.std
    frozen = compilation.compiled(frozen_tokens, env.compile)

    def compute(pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        normalized = normalize(pixels, mean, std, env.device)

        def forward(precision: str) -> dict[str, torch.Tensor]:
            with precisions.autocast(precision, env.device):
                cls, patches = frozen(encoder, normalized, blocks)
            tokens = {"cls": cls, "mean": patches} if cls is not None else {"mean": patches}
            return {
                f"{kind}{k - blocks}": _shorten(value[:, k], precision)
                for kind, value in tokens.items()
                for k in range(blocks)
            }

        return finite(forward, precision)

    cache_key = {"encoder": encoder.fingerprint, "precision": precision, "blocks": blocks, **cached_pass.how(env)}
    stored = cached_pass.compute(env.out_dir.parent / "features", images, crop, compute, cache_key, env, max_unreadable)
    report_fp32(stored, images.name, precision, env)
    return Features(stored, images)


def report_fp32(stored: cached_pass.CachedPass, name: str, precision: str, env: Env) -> None:
    """Says, and adds to the record, how many images of a pass were computed again in fp32."""
    again = stored.read(IN_FP32)
    count = int(again.sum()) if again is not None else 0
    if count:
        print(
            f"{name}: {count} of {stored.count} images overflowed in {precision} and were computed again in fp32",
            file=sys.stderr,
        )
        env.report(protocol={f"computed again in fp32, {name}": count})


def _shorten(tokens: torch.Tensor, precision: str) -> torch.Tensor:
    """float16 where the arithmetic was no finer and the values fit its range, else float32."""
    half = tokens.half()
    return half if precision in precisions.DTYPES and bool(half.isfinite().all()) else tokens.float()
