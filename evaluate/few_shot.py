"""Logistic regression on frozen features of 1 % of the labels (column "1%" of the SiameseIM table, there headed "1% FT").

Protocol (SiameseIM's main_logistic.py, after MSN; nothing is fine-tuned): the raw class token of the last block, without any norm;
each image's features minus their own mean, over their own L2 norm; softmax regression without intercept,
(1/n) sum cross entropy + (0.1/n)/2 |W|^2, solved to its optimum (scikit-learn's C = 10). Resize 256 bilinear, CenterCrop 224.
Train images: the 12,811 of 1percent.txt (SimCLR's list). Metric: top1 = accuracy of val, percent.
Other labels: --set subset=10percent, SimCLR's list of 10 %; --set shots=5 or --set fraction=0.1, so many or such a part of each class,
drawn at random --set seeds=5 times: top1 is then the mean, top1_deviation the standard deviation over the draws.
Cost: one pass over 12,811 + 50,000 images and some 20 s of solver; toy world: seconds.

    python -m evaluate.few_shot --ckpt FILE --data-root DIR
"""

import sys
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from evaluate.classification import features, metrics
from evaluate.data import layouts, subsets
from evaluate.data.imagenet import ImageSet, train_set, val_set
from evaluate.data.transforms import CenterCrop
from evaluate.harness.task import main
from evaluate.runtime import distributed, precision
from evaluate.runtime.env import Env
from evaluate.runtime.errors import UserError

TOLERANCE = 1e-8  # largest entry of the objective's gradient at which the solver stops; leads to a gap of some 1e-8 on 1 % of ImageNet
GAP = 1e-6  # the objective is at most so far above its optimum; proved at each fit


@dataclass(frozen=True)
class Config:
    """The protocol's numbers."""

    img_size: int = 224  # pixels, side of the crop
    resize: int = 256  # pixels, short side before the crop
    interpolation: str = "bilinear"  # torchvision's default, which the official script leaves; FT and LIN are bicubic
    pooling: str = "cls"  # raw, no norm; an encoder without class token gives its mean patch token
    l2: float = 0.1  # lambda times n; 0.01 in the official ViT-L script
    subset: str = "1percent"  # the list of train images: 1percent or 10percent
    shots: int | None = None  # instead of a list: so many train images a class, drawn at random
    fraction: float | None = None  # instead of a list: such a part of each class's train images, drawn at random
    seeds: int = 1  # so many draws
    precision: str = "fp32"  # of the frozen pass: fp32, bf16, fp16, or auto (fp16 on CUDA)
    max_iterations: int = 1000
    allowed_bad_images: int = 0  # so many of each set may be unreadable and are left out; the record names them

    def __post_init__(self) -> None:
        precision.resolve(self.precision, "cpu")
        if self.pooling not in features.POOLINGS:
            raise ValueError(f"pooling is one of {features.POOLINGS}, not {self.pooling!r}")
        if self.l2 <= 0:
            raise ValueError(f"l2 must be positive, not {self.l2}")
        if self.subset not in subsets.LISTS:
            raise ValueError(f"subset is one of {', '.join(subsets.LISTS)}, not {self.subset!r}; for random draws give shots or fraction")
        if self.shots is not None and self.fraction is not None:
            raise ValueError("give shots or fraction, not both")
        if (self.shots is not None and self.shots < 1) or (self.fraction is not None and not 0 < self.fraction <= 1) or self.seeds < 1:
            raise ValueError("shots and seeds are whole numbers from 1 on, fraction is above 0 and at most 1")
        if self.seeds > 1 and not self.draws:
            raise ValueError(f"the list {self.subset} is one draw; seeds={self.seeds} goes with shots or fraction")

    @property
    def draws(self) -> bool:
        """Whether the train images are drawn, not listed."""
        return self.shots is not None or self.fraction is not None


PRESETS = {
    "paper": Config(),
    "demo": Config(img_size=32, resize=32),  # the toy world's images are 32 px; nothing else differs
}


def reads(config: Config) -> tuple[str, ...]:
    """Names of the data sets."""
    return ("imagenet",) if config.draws else ("imagenet", f"imagenet_{config.subset}")


def run(encoder: Any, config: Config, env: Env) -> dict[str, float]:
    """top1 in percent; raises Skip without ImageNet or the list."""
    for name in reads(config):
        layouts.require(env.data_root, name)
    features.check_image_size(encoder, config.img_size)
    env.device = distributed.start(env.device)
    train, draws = labelled(config, env)
    val = val_set(env.data_root, env.limit)
    preprocessing = CenterCrop(config.img_size, config.resize, config.interpolation)
    kind = config.pooling if encoder.spec.class_token else "mean"
    arithmetic = precision.resolve(config.precision, env.device)
    found_train, found_val = (
        features.extract(encoder, images, preprocessing, env, arithmetic, allowed_bad=config.allowed_bad_images) for images in (train, val)
    )
    fits = []
    if distributed.world()[0] == 0:  # the others would find the same optimum, each with all the cores
        train_rows, val_rows = (centre_rows(found.tokens(kind).double().numpy()) for found in (found_train, found_val))
        for rows in draws:
            chosen = np.isin(found_train.stored.rows, rows)
            labels = found_train.labels[chosen]
            weights, objective = fit(train_rows[chosen], labels, config.l2, config.max_iterations)
            fits.append((np.unique(labels)[(val_rows @ weights.T).argmax(axis=1)] == found_val.labels, objective, len(labels)))
    correct, objectives, counts = zip(*distributed.share(fits), strict=True)
    accuracies = [metrics.percent(outcome) for outcome in correct]
    result = {"top1": float(np.mean(accuracies))}
    errors = {"top1": metrics.standard_error(result["top1"], len(found_val.labels))}
    if len(draws) > 1:
        result["top1_deviation"] = float(np.std(accuracies, ddof=1))
        errors["top1"] = result["top1_deviation"] / len(draws) ** 0.5  # of the mean, over draws of the labels
    metrics.save_correct(env.out_dir, correct[0])
    labels_from = {"shots": config.shots, "fraction": config.fraction, "accuracies": accuracies} if config.draws else {"list": config.subset}
    env.report(
        protocol={
            "pooling": f"{kind}, raw", "head": "softmax regression", "l2": config.l2, "objective": objectives[0],
            "test_resolution": config.img_size, "fine_tuned": False, "precision": arithmetic, "labels": labels_from,
        },
        images_asked={train.name: train.asked, "val": val.asked},
        images_evaluated={train.name: counts[0], "val": len(found_val.labels)},
        unreadable_images={train.name: found_train.unreadable, "val": found_val.unreadable},
        standard_error=errors,
    )  # fmt: skip
    return result


def labelled(config: Config, env: Env) -> tuple[ImageSet, list[np.ndarray]]:
    """The train images of all draws together, and of each draw the sorted indices into them.

    Raises UserError where a draw has fewer than three classes, too few for softmax regression here.
    """
    if not config.draws:
        train = subsets.listed_set(config.subset, env.data_root, env.limit)
        draws = [np.arange(len(train))]
    else:
        whole = train_set(env.data_root, env.limit)
        rows = [subsets.drawn_rows(whole, config.shots, config.fraction, env.seed, draw) for draw in range(config.seeds)]
        together = np.unique(np.concatenate(rows))
        train = subsets.part("drawn", whole, together)
        draws = [np.searchsorted(together, part) for part in rows]
    classes = min(len(np.unique(train.labels[rows])) for rows in draws)
    if classes < 3:
        raise UserError(f"the labelled images are of {classes} classes, softmax regression here needs three; raise --limit")
    return train, draws


def centre_rows(values: np.ndarray) -> np.ndarray:
    """Each row (n, D) minus its own mean over the D features, then over its own L2 norm; no statistics of the set."""
    centred = values - values.mean(axis=1, keepdims=True)
    return centred / np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), np.finfo(values.dtype).tiny)


def fit(rows: np.ndarray, labels: np.ndarray, l2: float, max_iterations: int = 1000) -> tuple[np.ndarray, float]:
    """Weights (C, D) of the classes present, in order, and the objective (1/n) sum CE + (l2/n)/2 |W|^2 there; three classes or more.

    scikit-learn minimises C sum CE + |W|^2 / 2, which has the same optimum at C = 1 / l2. The objective is strongly convex with
    modulus l2/n, so it lies at most |gradient|^2 / (2 l2/n) above its optimum.

    Raises:
        UserError: that bound is above GAP.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression  # slow to import, and only this task needs it

    solver = LogisticRegression(C=1 / l2, fit_intercept=False, tol=TOLERANCE, max_iter=max_iterations, warm_start=True)
    with warnings.catch_warnings(action="ignore", category=ConvergenceWarning):  # what it reached is judged below
        for dtype, tolerance in ((np.float32, 10 * TOLERANCE), (np.float64, TOLERANCE)):  # most of the way at half the cost
            solver.set_params(tol=tolerance).fit(rows.astype(dtype), labels)
    weights = torch.from_numpy(solver.coef_).requires_grad_()
    targets = torch.from_numpy(np.searchsorted(solver.classes_, labels))
    objective = torch.nn.functional.cross_entropy(torch.from_numpy(rows) @ weights.T, targets) + l2 / len(rows) / 2 * weights.square().sum()
    objective.backward()
    gap = float(weights.grad.square().sum()) / (2 * l2 / len(rows))  # type: ignore[union-attr]
    if gap > GAP:
        raise UserError(
            f"after {max_iterations} iterations the regression may lie {gap:.1e} above its optimum; raise --set max_iterations={max_iterations}"
        )
    return solver.coef_, objective.item()


if __name__ == "__main__":
    sys.exit(main("few_shot"))
