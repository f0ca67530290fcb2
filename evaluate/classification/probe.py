"""A linear head on frozen tokens: how it is made, what it sees, how it is trained and tested."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from timm.layers import trunc_normal_
from torch import nn

from evaluate.classification import features, loop
from evaluate.classification.finite import finite, require_finite
from evaluate.classification.sampler import BatchSampler
from evaluate.classification.setup import Setup
from evaluate.data.loader import Images, batches
from evaluate.data.transforms import RandomCropFlip, SingleDrawCropFlip, normalize
from evaluate.encoder import Encoder
from evaluate.runtime import compilation, distributed, precision
from evaluate.runtime.env import Env
from evaluate.runtime.lars import LARS

BATCH_NORM_EPS, HEAD_STD = 1e-6, 0.01
CROPS = {"single_draw": SingleDrawCropFlip, "torchvision": RandomCropFlip}


def make_head(width: int, classes: int, batch_norm: bool = True) -> nn.Sequential:
    """Batch norm without affine and a linear layer, initialized as the official code does."""
    linear = nn.Linear(width, classes)
    trunc_normal_(linear.weight, std=HEAD_STD)
    nn.init.zeros_(linear.bias)
    return nn.Sequential(
        nn.BatchNorm1d(width, affine=False, eps=BATCH_NORM_EPS) if batch_norm else nn.Identity(), linear
    )


def make_optimizer(
    head: nn.Module, name: str, momentum: float, weight_decay: float, trust: float
) -> torch.optim.Optimizer:
    """LARS, LARC (LARS on every tensor) or SGD; the loop sets the rate at every step."""
    if name == "sgd":
        return torch.optim.SGD(head.parameters(), lr=0.0, momentum=momentum, weight_decay=weight_decay)
    return LARS(head.parameters(), 0.0, weight_decay, momentum, trust, vectors=name == "larc")


@dataclass(frozen=True)
class FrozenInputs:
    """Where a head's inputs come from: the frozen encoder's ``pooling`` token of a setup's images."""

    encoder: Encoder
    pooling: str
    setup: Setup
    env: Env

    def augmented(self, crop: str) -> Callable[[BatchSampler], Iterator[tuple[torch.Tensor, torch.Tensor]]]:
        """What the head sees, (B, D), and labels (B,), a micro-batch at a time, of crops that are drawn anew each
        epoch.
        """
        spec, env = self.encoder.spec, self.env
        transform = CROPS[crop](self.setup.crop.crop, self.setup.crop.interpolation, env.seed)

        def draw(sampler: BatchSampler) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
            for pixels, labels in batches(Images(self.setup.train, transform), sampler, env.workers):
                normalized = normalize(pixels, spec.mean, spec.std, env.device)
                with torch.no_grad():
                    raw = finite(partial(self._tokens, normalized), self.setup.precision)
                    tokens = features.probe_input(self.encoder, self.pooling, raw["tokens"])
                yield tokens, labels.to(env.device, non_blocking=True)

        return draw

    def _tokens(self, images: torch.Tensor, resolved: str) -> dict[str, torch.Tensor]:
        with precision.autocast(resolved, self.env.device):
            cls, mean = compilation.compiled(features.frozen_tokens, self.env.compile)(self.encoder, images)
        chosen = cls if self.pooling == "cls" else mean
        assert chosen is not None
        return {"tokens": chosen[:, -1].float()}

    def cached(self) -> Callable[[BatchSampler], Iterator[tuple[torch.Tensor, torch.Tensor]]]:
        """As ``augmented``, of test crops that are computed once."""
        found = features.extract(self.encoder, self.setup.train, self.setup.crop, self.env, self.setup.precision)
        tokens = found.require_tokens(self.pooling)
        train = self.setup.train
        labels = torch.from_numpy(train.labels if train.several is None else train.several.astype(np.float32))

        def draw(sampler: BatchSampler) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
            for samples in sampler:
                chosen = torch.tensor([index for _, index in samples])
                with torch.no_grad():
                    seen = features.probe_input(self.encoder, self.pooling, tokens[chosen].to(self.env.device))
                yield seen, labels[chosen].to(self.env.device)

        return draw

    def logits(self, head: nn.Module, max_unreadable: int = 0) -> tuple[features.Features, torch.Tensor]:
        """The readable images of val, and what the head says of each: (m, classes)."""
        found = features.extract(
            self.encoder, self.setup.val, self.setup.crop, self.env, self.setup.precision, max_unreadable=max_unreadable
        )
        tokens = found.require_tokens(self.pooling)
        self.env.report(unreadable_images={"val": found.unreadable})
        with torch.inference_mode():
            seen = require_finite(features.probe_input(self.encoder, self.pooling, tokens.to(self.env.device)))
            return found, head.eval()(seen).cpu()


def loss_of(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Summed over images: cross entropy of labels (B,), or of several labels (B, classes) each one's own."""
    if labels.dtype.is_floating_point:
        return nn.functional.binary_cross_entropy_with_logits(logits, labels, reduction="sum")
    return nn.functional.cross_entropy(logits, labels, reduction="sum")


def fit(
    head: nn.Module,
    setup: Setup,
    env: Env,
    optimizer: torch.optim.Optimizer,
    rate: Callable[[float], float],
    inputs: Callable[[BatchSampler], Iterator[tuple[torch.Tensor, torch.Tensor]]],
) -> None:
    """Trains the head in place to the last epoch; ``rate`` gives the learning rate at a fractional epoch."""
    head.train()
    sampler = setup.sampler

    def step(number: int, part: int, batch: Any) -> torch.Tensor:
        if part == 0:
            optimizer.zero_grad()
        tokens, labels = batch
        loss = loss_of(head(tokens), labels) / sampler.batch
        loss.backward()
        if part == sampler.micro_batches - 1:
            distributed.sum_gradients(list(head.parameters()))
        return loss * sampler.world_size  # for who watches: of this process's images, the mean

    loop.train("the linear probe", setup, env, {"head": head, "optimizer": optimizer}, inputs, rate, step)
    distributed.broadcast(list(head.buffers()))
