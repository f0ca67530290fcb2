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
from evaluate.data.imagenet import ImageSet
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
    answers, which give top1. Of a labelled set also the mean over classes.
    """
    result = {name: metrics.percent(outcome) for name, outcome in correct.items()}
    errors = {name: binomial(value, len(correct[name])) for name, value in result.items()}
    outcomes = {}
    if env.images:
        result["mean_per_class"], outcomes["mean_per_class"] = metrics.mean_per_class(answers)
        errors["mean_per_class"] = 100 * float(outcomes["mean_per_class"].std()) / len(answers.labels) ** 0.5
    if distributed.rank() == 0:
        metrics.save_predictions(env.out_dir, {FIRST: answers}, classes, outcomes)
    env.report(
        protocol=dict(protocol),
        images_asked=dict(images_asked),
        images_evaluated=dict(images_evaluated),
        standard_error=errors,
    )
    return result


def report_scores(
    env: Env,
    scores: np.ndarray,
    marked: np.ndarray,
    classes: tuple[str, ...],
    images_asked: Mapping[str, int],
    images_evaluated: Mapping[str, int],
    protocol: Mapping[str, Any],
) -> dict[str, float]:
    """The mean average precision in percent where images have several labels, and completes the record.

    Args:
        scores: (m, classes), the higher the surer.
        marked: (m, classes) bool, the right ones. A class that no image is marked with does not count.
    """
    found = metrics.average_precision(scores, marked)
    by_class = {name: 100 * float(value) for name, value in zip(classes, found, strict=True) if np.isfinite(value)}
    if not by_class:
        raise UserError("no image of val has a label; there is nothing to score")
    env.report(
        protocol={**protocol, "average_precision": by_class},
        images_asked=dict(images_asked),
        images_evaluated=dict(images_evaluated),
    )
    return {"map": float(np.mean(list(by_class.values())))}


def report_training(env: Env, setup: Setup, answers: Answers, **protocol: Any) -> dict[str, float]:
    """``report`` of top1 and top5 of a task that trains on a setup's images and is tested on its val."""
    correct = {f"top{count}": answers.correct(count) for count in (1, 5)}
    asked, evaluated, common = _of_training(env, setup, len(answers.labels))
    if distributed.rank() == 0:
        with attempt("mistakes"):
            pictures.mistakes(env.out_dir, setup.val, answers, setup.crop)
    return report(env, answers, correct, setup.train.classes, asked, evaluated, {**protocol, **common})


def report_training_of_several(
    env: Env, setup: Setup, scores: np.ndarray, marked: np.ndarray, **protocol: Any
) -> dict[str, float]:
    """``report_scores`` of a task that trains on a setup's images and is tested on its val."""
    asked, evaluated, common = _of_training(env, setup, len(scores))
    return report_scores(env, scores, marked, setup.train.classes, asked, evaluated, {**protocol, **common})


def _of_training(env: Env, setup: Setup, tested: int) -> tuple[dict[str, int], dict[str, int], dict[str, Any]]:
    """Images asked and evaluated by set, and what every training says of its protocol; reports the sizes."""
    env.report(sizes=sizes(setup.train, setup.val))
    common = {
        "batch": setup.sampler.batch,
        "epochs": setup.sampler.epochs,
        "test_resolution": setup.crop.crop,
        "precision": setup.precision,
        "processes": setup.sampler.world_size,
    }
    return {"train": setup.train.asked, "val": setup.val.asked}, {"train": len(setup.train), "val": tested}, common
