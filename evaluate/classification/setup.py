"""What the ImageNet tasks set up and report alike."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from evaluate.classification import metrics, pictures
from evaluate.classification.config import TrainingConfig
from evaluate.classification.features import test_crop
from evaluate.classification.sampler import BatchSampler
from evaluate.data import subsets
from evaluate.data.imagenet import ImageSet, train_set, val_set
from evaluate.data.published_counts import sizes
from evaluate.data.thumbnails import attempt
from evaluate.data.transforms import CenterCrop
from evaluate.encoder import Encoder
from evaluate.runtime import distributed, precision
from evaluate.runtime.env import Env
from evaluate.runtime.errors import UserError
from evaluate.runtime.seeding import seed_of
from evaluate.runtime.settings import as_json
from results.comparison import binomial
from results.predictions import FIRST, Answers


@dataclass(frozen=True)
class Setup:
    """The images, the order in which training sees them, and what a saved state must agree with."""

    train: ImageSet
    val: ImageSet
    crop: CenterCrop
    """Of the test."""
    sampler: BatchSampler
    precision: str
    """A resolved one."""
    identity: str


def train_and_val(env: Env) -> tuple[ImageSet, ImageSet]:
    """ImageNet's train and val sets, as far as ``env.limit`` lets them be read."""
    return train_set(env.data_root, env.limit, env.identities), val_set(env.data_root, env.limit, env.identities)


def make_setup(encoder: Encoder, config: TrainingConfig, env: Env, train: ImageSet, val: ImageSet, *also: Any) -> Setup:
    """What a training under ``config`` works with; ``also`` joins what a saved state must agree with.

    Raises:
        UserError: a crop that the encoder's patches do not fill, or too few images for a step.
    """
    rank, world_size = distributed.rank(), distributed.world_size()
    resolved = precision.resolve(config.precision, env.device)
    try:
        sampler = BatchSampler(
            len(train), config.batch_size, config.micro_batch, config.epochs, env.seed, rank, world_size
        )
    except ValueError as error:
        raise UserError(f"{error}; raise --limit or --set batch_size, or start fewer processes") from error
    # a step's images are the same on any number of processes; what is drawn or normalized together follows from this
    together = world_size * sampler.micro_batches
    identity = json.dumps(
        [as_json(config), encoder.fingerprint, train.fingerprint, env.seed, together, resolved, *also]
    )
    return Setup(train, val, test_crop(encoder, config), sampler, resolved, identity)


def cuts_alike(setup: Setup, paper: TrainingConfig) -> bool:
    """Whether each process's images of a step are cut as with the paper's ``micro_batch``."""
    try:
        return replace(setup.sampler, micro_batch=paper.micro_batch).micro_batches == setup.sampler.micro_batches
    except ValueError:  # with the paper's, these processes could not share a step
        return False


def hold_out(train: ImageSet, share: float, seed: int) -> tuple[ImageSet, ImageSet]:
    """Train without, and only, a seeded ``share`` of each class, rounded, but never all of it.

    Raises UserError where that is none.
    """
    draw = np.random.default_rng(seed_of(seed, "held out"))
    held = np.zeros(len(train), dtype=bool)
    for label in train.present:
        members = draw.permutation(np.flatnonzero(train.labels == label))
        held[members[: min(round(share * len(members)), len(members) - 1)]] = True
    if not held.any():
        raise UserError(
            f"the classes of train are too small to hold out {share:.0%} of each; raise --limit or --set held_out"
        )
    return subsets.part("train", train, np.flatnonzero(~held)), subsets.part("held_out", train, np.flatnonzero(held))


def report(
    env: Env,
    answers: Answers,
    correct: Mapping[str, np.ndarray],
    classes: tuple[str, ...],
    images_asked: Mapping[str, int],
    images_evaluated: Mapping[str, int],
    protocol: Mapping[str, Any],
) -> dict[str, float]:
    """Metrics in percent from ``correct``, bool (n,) by metric in the order of val; completes the record, keeps the
    answers, which give top1.
    """
    result = {name: metrics.percent(outcome) for name, outcome in correct.items()}
    if distributed.rank() == 0:
        metrics.save_predictions(env.out_dir, {FIRST: answers}, classes)
    env.report(
        protocol=dict(protocol),
        images_asked=dict(images_asked),
        images_evaluated=dict(images_evaluated),
        standard_error={name: binomial(value, len(correct[name])) for name, value in result.items()},
    )
    return result


def report_training(env: Env, setup: Setup, answers: Answers, **protocol: Any) -> dict[str, float]:
    """``report`` of top1 and top5 of a task that trains on a setup's images and is tested on its val."""
    correct = {f"top{count}": answers.correct(count) for count in (1, 5)}
    common = {
        "batch": setup.sampler.batch,
        "epochs": setup.sampler.epochs,
        "test_resolution": setup.crop.crop,
        "precision": setup.precision,
        "processes": setup.sampler.world_size,
    }
    asked = {"train": setup.train.asked, "val": setup.val.asked}
    evaluated = {"train": len(setup.train), "val": len(answers.labels)}
    env.report(sizes=sizes(setup.train, setup.val))
    if distributed.rank() == 0:
        with attempt("mistakes"):
            pictures.mistakes(env.out_dir, setup.val, answers, setup.crop)
    return report(env, answers, correct, setup.train.classes, asked, evaluated, {**protocol, **common})
