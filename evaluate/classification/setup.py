"""What the tasks that train on ImageNet (FT, LIN, the sweep) set up and report alike."""

import json
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from evaluate.classification import features, metrics
from evaluate.classification.sampler import Draws
from evaluate.data import layouts, subsets
from evaluate.data.imagenet import ImageSet, train_set, val_set
from evaluate.data.transforms import CenterCrop
from evaluate.runtime import distributed, precision
from evaluate.runtime.env import Env
from evaluate.runtime.errors import UserError
from evaluate.runtime.seeding import seed_of


@dataclass(frozen=True)
class Setting:
    """The images, the order in which training draws them, and what a saved state must agree with."""

    train: ImageSet
    val: ImageSet
    test: CenterCrop
    draws: Draws
    arithmetic: str  # resolved precision
    identity: str

    @property
    def rank(self) -> int:
        return self.draws.rank


def sets(encoder: Any, config: Any, env: Env) -> tuple[ImageSet, ImageSet]:
    """ImageNet's train and val, after the checks and the start of the process group. Raises Skip without ImageNet."""
    layouts.require(env.data_root, "imagenet")
    features.check_image_size(encoder, config.img_size)
    env.device = distributed.start(env.device)
    return train_set(env.data_root, env.limit), val_set(env.data_root, env.limit)


def setting(encoder: Any, config: Any, env: Env, train: ImageSet, val: ImageSet, *also: Any) -> Setting:
    """``config`` has img_size, resize, interpolation, batch_size, micro_batch, epochs and precision; ``also`` joins the identity."""
    rank, world = distributed.world()
    arithmetic = precision.resolve(config.precision, env.device)
    try:
        draws = Draws(len(train), config.batch_size, config.micro_batch, config.epochs, env.seed, rank, world)
    except ValueError as error:
        raise UserError(f"{error}; raise --limit or --set batch_size, or start fewer processes") from error
    test = CenterCrop(config.img_size, config.resize, config.interpolation)
    identity = json.dumps([asdict(config), encoder.fingerprint, train.fingerprint, env.seed, world, arithmetic, *also])
    return Setting(train, val, test, draws, arithmetic, identity)


def hold_out(train: ImageSet, share: float, seed: int) -> tuple[ImageSet, ImageSet]:
    """Train without, and only, a seeded ``share`` of each class, rounded, but never all of it. Raises UserError where that is none."""
    draw = np.random.default_rng(seed_of(seed, "held out"))
    held = np.zeros(len(train), dtype=bool)
    for label in train.present:
        members = draw.permutation(np.flatnonzero(train.labels == label))
        held[members[: min(round(share * len(members)), len(members) - 1)]] = True
    if not held.any():
        raise UserError(f"the classes of train are too small to hold out {share:.0%} of each; raise --limit or --set held_out")

    return subsets.part("train", train, np.flatnonzero(~held)), subsets.part("held_out", train, np.flatnonzero(held))


def report(env: Env, what: Setting, correct: dict[str, torch.Tensor], **protocol: Any) -> dict[str, float]:
    """Metrics in percent from ``correct``, bool (n,) by metric in the order of val; completes the record, keeps the outcome of top1."""
    result = {name: metrics.percent(outcome) for name, outcome in correct.items()}
    if what.rank == 0:
        metrics.save_correct(env.out_dir, correct["top1"])
    env.report(
        protocol={
            **protocol, "batch": what.draws.batch, "epochs": what.draws.epochs, "test_resolution": what.test.crop,
            "precision": what.arithmetic, "processes": what.draws.world,
        },
        images_asked={"train": what.train.asked, "val": what.val.asked},
        images_evaluated={"train": len(what.train), "val": len(correct["top1"])},
        standard_error={name: metrics.standard_error(value, len(correct["top1"])) for name, value in result.items()},
    )  # fmt: skip
    return result


def check_finite(loss: torch.Tensor, epoch: int, name: str) -> None:
    """Raises UserError where an epoch's summed loss is not finite: such a run cannot recover, and its last state is still good."""
    if not torch.isfinite(loss):
        raise UserError(f"{name} diverged: the loss is not finite in epoch {epoch}; lower --set base_lr, or --set precision=fp32 if it was fp16")
