"""Many linear heads on the frozen tokens of a setup's images: their inputs, their training, and who is right.

Axes: B images, H heads of one input, D width of an input.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from evaluate.classification import cached_pass, loop, metrics
from evaluate.classification.finite import IN_FP32, finite
from evaluate.classification.predictions import BATCH, PROBABILITY, TOP
from evaluate.classification.setup import Setup
from evaluate.classification.stacked_heads import StackedHeads, make_optimizer
from evaluate.data.imagenet import ImageSet
from evaluate.data.loader import Images, batches
from evaluate.data.transforms import RandomCropFlip, normalize
from evaluate.encoder import Encoder
from evaluate.runtime import compilation, distributed, precision
from evaluate.runtime.env import Env
from results.predictions import Answers


@dataclass(frozen=True)
class HeadInputs:
    """What the heads see: class tokens of the last blocks, with or without the last block's mean patch token, after the
    final norm.
    """

    encoder: Encoder
    blocks: tuple[int, ...]
    """How many of the last blocks give their class token, one input each."""
    poolings: tuple[str, ...]
    """"cls" and "cls+mean", one input each."""
    compile: bool = False
    """Whether they are computed through ``torch.compile``."""

    def __call__(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """(B, D) float32 of normalized images by name: "4 blocks, cls+mean" and so on."""
        encoder = self.encoder
        if not encoder.spec.is_vit:
            return {"mean": encoder.pooled(images).float()}
        tokens = encoder.forward_blocks(images, max(self.blocks))
        if not encoder.spec.class_token:
            means = [self._norm(block.patches).mean(dim=1) for block in tokens]
            return {f"{count} blocks, mean": torch.cat(means[-count:], dim=1).float() for count in self.blocks}
        classes, mean = [self._norm(block.cls) for block in tokens], self._norm(tokens[-1].patches).mean(dim=1)
        return {
            f"{count} blocks, {kind}": torch.cat(
                classes[-count:] + ([mean] if kind == "cls+mean" else []), dim=1
            ).float()
            for count in self.blocks
            for kind in self.poolings
        }

    def _norm(self, tokens: torch.Tensor) -> torch.Tensor:
        if self.encoder.spec.final_norm:
            return self.encoder.model.norm(tokens)
        return torch.nn.functional.layer_norm(tokens, tokens.shape[-1:], eps=self.encoder.spec.layer_norm_eps)

    @torch.no_grad()
    def widths(self, img_size: int) -> dict[str, int]:
        """The width of each input, from a blank image."""
        blank = torch.zeros(1, 3, img_size, img_size, device=next(self.encoder.parameters()).device)
        return {name: value.shape[1] for name, value in self(blank).items()}

    def of_pixels(self, pixels: torch.Tensor, resolved: str, device: str) -> dict[str, torch.Tensor]:
        """The inputs of pixels uint8 (B, 3, H, W) in a resolved precision."""
        images = normalize(pixels, self.encoder.spec.mean, self.encoder.spec.std, device)

        def forward(resolved: str) -> dict[str, torch.Tensor]:
            with torch.no_grad(), precision.autocast(resolved, device):
                return compilation.compiled(HeadInputs.__call__, self.compile)(self, images)

        values = finite(forward, resolved)
        del values[IN_FP32]
        return values


def fit(
    heads: StackedHeads, inputs: HeadInputs, setup: Setup, env: Env, rate: Callable[[float], float], momentum: float
) -> None:
    """Trains all heads in place to the last epoch; ``rate`` gives the highest learning rate at a fractional epoch."""
    optimizer, sampler = make_optimizer(heads, momentum), setup.sampler
    count = len(heads.weights) * len(heads.base_lrs)
    crop = RandomCropFlip(setup.crop.crop, setup.crop.interpolation, env.seed)

    def step(number: int, part: int, batch: Any) -> torch.Tensor:
        if part == 0:
            optimizer.zero_grad(set_to_none=False)
        pixels, labels = batch
        labels = labels.to(env.device, non_blocking=True)
        loss = heads.accumulate(inputs.of_pixels(pixels, setup.precision, env.device), labels, sampler.batch)
        if part == sampler.micro_batches - 1:
            distributed.sum_gradients(list(heads.parameters()))
        return loss * sampler.world_size / count  # for who watches: the mean of the heads on this process's images

    parts = {"heads": heads, "optimizer": optimizer}
    loop.train(
        "the sweep", setup, env, parts, lambda left: batches(Images(setup.train, crop), left, env.workers), rate, step
    )


def accuracies(
    heads: StackedHeads, inputs: HeadInputs, images: ImageSet, setup: Setup, env: Env, max_unreadable: int = 0
) -> dict[str, list[float]]:
    """Top-1 in percent of every head on a set: by input, in the order of the rates."""
    stored = _pass(
        heads,
        inputs,
        images,
        setup,
        env,
        max_unreadable,
        lambda logits: {name: value.argmax(dim=2).to(torch.int32) for name, value in logits.items()},
    )
    labels = torch.from_numpy(images.labels[stored.rows])
    return {
        name: [metrics.percent(column) for column in (stored.require(name) == labels[:, None]).unbind(dim=1)]
        for name in heads.weights
    }


def chosen_answers(
    heads: StackedHeads, name: str, index: int, inputs: HeadInputs, setup: Setup, env: Env, max_unreadable: int = 0
) -> Answers:
    """What one head says of each image of val."""

    def best(logits: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        top, probabilities = metrics.best_of_logits(logits[name][:, index])
        return {TOP: top.to(torch.int32), PROBABILITY: probabilities}

    stored = _pass(heads, inputs, setup.val, setup, env, max_unreadable, best, head=f"{name} {index}")
    return metrics.answers(setup.val, stored.unreadable, stored.require(TOP), stored.require(PROBABILITY))


def _pass(
    heads: StackedHeads,
    inputs: HeadInputs,
    images: ImageSet,
    setup: Setup,
    env: Env,
    max_unreadable: int,
    choose: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]],
    head: str = "all",
) -> cached_pass.CachedPass:
    """What ``choose`` takes from the heads' logits, image by image; the record names unreadable images."""
    digest = hashlib.sha256()
    for parameter in heads.parameters():
        digest.update(parameter.detach().cpu().numpy().tobytes())
    cache_key = {
        "encoder": inputs.encoder.fingerprint,
        "heads": digest.hexdigest(),
        "kept": [TOP, PROBABILITY] if head != "all" else [],
        "head": head,
        "precision": setup.precision,
        **cached_pass.how(env),
    }

    def compute(pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        return choose(heads(inputs.of_pixels(pixels, setup.precision, env.device)))

    stored = cached_pass.compute(
        env.out_dir / "predictions", images, setup.crop, compute, cache_key, env, max_unreadable, BATCH
    )
    unreadable = [str(images.files[row]) for row in stored.unreadable]
    env.report(images_evaluated={images.name: len(stored.rows)}, unreadable_images={images.name: unreadable})
    return stored
