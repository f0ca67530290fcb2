"""Logistic regression on frozen features of 1 % of the labels (column "1%"; "1% FT" in the SiameseIM
table).

Protocol (SiameseIM's main_logistic.py, after MSN; nothing is fine-tuned): the raw class token of the last block,
without any norm; each image's features minus their own mean, over their own L2 norm; softmax regression without
intercept, (1/n) sum cross entropy + (0.1/n)/2 |W|^2, solved to its optimum (scikit-learn's C = 10). Resize 256
bilinear, CenterCrop 224. Train images: the 12,811 of 1percent.txt (SimCLR's list); where the list is absent, 1 % of
each class drawn at random, and the cell is marked. Metric: top1 = accuracy of val, percent. Other choices of labels:
--set subset=10percent takes SimCLR's list of 10 %; --set shots=5 draws 5 images of each class, and --set fraction=0.1 a
tenth of each class. With --set seeds=5 there are five draws: top1 is their mean and top1_deviation their standard
deviation.
Cost: one pass over 12,811 + 50,000 images and some 20 s of solver; toy world: seconds.

    python -m evaluate.few_shot --ckpt FILE --data-root DIR
"""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
from annotated_types import Gt, Le
from pydantic import PositiveFloat, PositiveInt

from evaluate.classification.config import ImageConfig, Interpolation, Pooling
from evaluate.data import layouts, subsets
from evaluate.data.imagenet import ImageSet, val_set
from evaluate.data.published_counts import sizes
from evaluate.encoder import memory
from evaluate.encoder.flops import forward_gflop
from evaluate.harness.cost import Cost, Count, disk_of_features, of_training
from evaluate.harness.task import main
from evaluate.runtime.env import Env
from evaluate.runtime.errors import UserError
from results.ending import leave

if TYPE_CHECKING:
    from evaluate.encoder import Encoder
    from evaluate.encoder.spec import EncoderSpec


@dataclass(frozen=True)
class Config(ImageConfig):
    """The protocol's numbers."""

    interpolation: Interpolation = "bilinear"
    """The official script keeps torchvision's default, bilinear; FT and LIN use bicubic."""
    pooling: Pooling = "cls"
    """Which token is used, without a norm; an encoder without class token gives its mean patch token."""
    l2: PositiveFloat = 0.1
    """Penalty on the weights, lambda times n (see the objective above); 0.01 in the official ViT-L script."""
    subset: Literal["1percent", "10percent"] = "1percent"
    """The list of train images."""
    shots: PositiveInt | None = None
    """Number of train images of each class, drawn at random, instead of a list."""
    fraction: Annotated[float, Gt(0), Le(1)] | None = None
    """Share of the train images of each class, drawn at random, instead of a list."""
    seeds: PositiveInt = 1
    """Number of random draws."""
    max_iterations: PositiveInt = 1000
    """Largest number of iterations of the solver."""

    def __post_init__(self) -> None:
        if self.shots is not None and self.fraction is not None:
            raise ValueError("give shots or fraction, not both")
        if self.seeds > 1 and not self.draws:
            raise ValueError(f"the list {self.subset} is one draw; seeds={self.seeds} goes with shots or fraction")

    @property
    def draws(self) -> bool:
        """Whether the train images are drawn, not listed."""
        return self.shots is not None or self.fraction is not None


PRESETS = {
    "paper": Config(),
    "small_set": Config(interpolation="bicubic", shots=5, seeds=5),
    "demo": Config(img_size=32, resize=32),  # the toy world's images are 32 px; nothing else differs
}


CENTRED = "less its mean over the features, over its L2 norm"
SHARES = {"1percent": 0.01, "10percent": 0.1}  # of a class, drawn where the list is absent


def reads(config: Config) -> tuple[str, ...]:
    """Names of the data sets."""
    return ("imagenet",)


def reads_if_there(config: Config) -> tuple[str, ...]:
    """The list of labeled images, without which as many are drawn."""
    return () if config.draws else (f"imagenet_{config.subset}",)


def labels_of(config: Config, env: Env) -> Config:
    """The config with a drawn share in place of a list that is absent; the record says so."""
    if config.draws or env.images is None and not layouts.absent(env.data_root, reads_if_there(config)):
        return config
    share = SHARES[config.subset]
    if env.images is None:
        env.report(
            protocol={
                "other_protocol": f"few_shot: {100 * share:g} % of each class drawn at random, since "
                f"imagenet/{config.subset}.txt is absent; paper: SimCLR's list"
            }
        )
    return replace(config, fraction=share)


def labelled(config: Config, env: Env, whole: ImageSet | None) -> tuple[ImageSet, list[np.ndarray]]:
    """The train images of all draws together, and of each draw the sorted indices into them; ``whole`` is None where a
    list names the images.

    Raises UserError where a draw has fewer than three classes, too few for softmax regression here.
    """
    if whole is None:
        train = subsets.listed_set(config.subset, env.data_root, env.limit, env.identities)
        draws = [np.arange(len(train))]
    else:
        env.report(sizes=sizes(whole))
        rows = [
            subsets.drawn_rows(whole, config.shots, config.fraction, env.seed, draw) for draw in range(config.seeds)
        ]
        together = np.unique(np.concatenate(rows))
        train = subsets.part("drawn", whole, together)
        draws = [np.searchsorted(together, part) for part in rows]
    classes = min(len(np.unique(train.labels[rows])) for rows in draws)
    if classes < 3:
        raise UserError(
            f"the labeled images have only {classes} classes, but the regression needs at least three; raise --limit"
        )
    return train, draws


def draws(config: Config) -> bool:
    """Only where the labeled images are drawn."""
    return config.draws


def cost(config: Config, spec: "EncoderSpec", count: Count) -> Cost:
    """What it takes: ``evaluate.harness.cost``; the solver, minutes on one process, is not counted."""
    share, train = config.fraction or SHARES[config.subset], count("imagenet/train")
    labelled = config.shots * 1000 if config.shots else round(share * train)  # of 1,000 classes
    images = min(config.seeds * labelled, train) + count("imagenet/val")
    return of_training(
        0,
        images,
        forward_gflop(spec, config.img_size),
        gpus=(1,),
        memory=memory.of_passing(spec, config.img_size, 64, bits=32),
        features=disk_of_features(spec, images),
    )


def run(encoder: "Encoder", config: Config, env: Env) -> dict[str, float]:
    """top1 in percent; with several draws their mean, and top1_deviation."""
    import torch

    from evaluate.classification import heads, metrics
    from evaluate.classification.features import frozen_features, resolve_pooling
    from evaluate.classification.setup import report
    from evaluate.classification.softmax_regression import centre_rows, fit
    from evaluate.data.sets import train_and_val
    from evaluate.runtime import distributed
    from results.predictions import Answers

    config = labels_of(config, env)
    if config.draws:
        whole, val = train_and_val(env)
    else:  # a list reads train itself
        whole, val = None, val_set(env.data_root, env.limit, env.identities)
    train, draws = labelled(config, env, whole)
    found = frozen_features(encoder, config, env, train, val)
    pooling = resolve_pooling(encoder, config.pooling)
    fits: list[tuple[Answers, float, int]] = []
    if distributed.rank() == 0:  # the others would find the same optimum, each with all the cores
        train_rows, val_rows = (
            centre_rows(part.require_tokens(pooling).double().numpy()) for part in (found.train, found.val)
        )
        for rows in draws:
            chosen = np.isin(found.train.stored.rows, rows)
            labels = found.train.labels[chosen]
            weights, objective = fit(train_rows[chosen], labels, config.l2, config.max_iterations)
            top, probabilities = metrics.best_of_logits(torch.from_numpy(val_rows @ weights.T))
            classes = torch.from_numpy(np.unique(labels))[top]
            answers = metrics.answers(val, found.val.stored.unreadable, classes, probabilities)
            if not fits:  # of several draws the first is kept, as of its answers
                known = [val.classes[label] for label in np.unique(labels)]
                token = {"vit": f"{pooling} token of the last block", "resnet": "last map"}.get(
                    encoder.spec.family, "pooled features"
                )
                seen = f"{token}, {CENTRED}"
                about = {"encoder": encoder.fingerprint, "input": seen, "classes": known}
                heads.save(env.out_dir, torch.from_numpy(weights), None, about)
            fits.append((answers, objective, len(labels)))
    draws_answers, objectives, counts = zip(*distributed.broadcast_object(fits), strict=True)
    accuracies = [metrics.percent(answers.correct()) for answers in draws_answers]
    labels_from = (
        {"shots": config.shots, "fraction": config.fraction, "accuracies": accuracies}
        if config.draws
        else {"list": config.subset}
    )
    env.report(sizes=sizes(train, val), immaterial={"": ["max_iterations"]})  # the optimum is proven, or it has failed
    env.report(unreadable_images={train.name: found.train.unreadable, "val": found.val.unreadable})
    result = report(
        env,
        draws_answers[0],
        {"top1": draws_answers[0].correct()},
        val.classes,
        {train.name: train.asked, "val": val.asked},
        {train.name: counts[0], "val": len(found.val.labels)},
        {
            "pooling": f"{pooling}, raw",
            "head": "softmax regression",
            "l2": config.l2,
            "objective": objectives[0],
            "test_resolution": config.img_size,
            "fine_tuned": False,
            "precision": found.precision,
            "labels": labels_from,
        },
    )
    if len(draws) > 1:
        by_metric = {"top1": accuracies}
        if env.images:
            by_metric["mean_per_class"] = [metrics.mean_per_class(answers)[0] for answers in draws_answers]
        for name, values in by_metric.items():
            result |= {name: float(np.mean(values)), f"{name}_deviation": float(np.std(values, ddof=1))}
            # of the mean, over draws of the labels
            env.report(standard_error={name: result[f"{name}_deviation"] / len(draws) ** 0.5})
    return result


if __name__ == "__main__":
    leave(main, "few_shot")
