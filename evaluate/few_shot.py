"""Logistic regression on frozen features of 1 % of the labels (column "1%" of the SiameseIM table, there headed "1% FT").

Protocol (SiameseIM's main_logistic.py, after MSN; nothing is fine-tuned): the raw class token of the last block, without any norm;
each image's features minus their own mean, over their own L2 norm; softmax regression without intercept,
(1/n) sum cross entropy + (0.1/n)/2 |W|^2, solved to its optimum (scikit-learn's C = 10). Resize 256 bilinear, CenterCrop 224.
Train images: the 12,811 of 1percent.txt (SimCLR's list). Metric: top1 = accuracy of val, percent.
Cost: one pass over 12,811 + 50,000 images and some 20 s of solver; toy world: seconds.

    python -m evaluate.few_shot --ckpt FILE --data-root DIR
"""

import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from evaluate import distributed, features, metrics
from evaluate.data import layouts
from evaluate.data.imagenet import one_percent_set, val_set
from evaluate.data.transforms import CenterCrop
from evaluate.errors import UserError
from evaluate.task import Env, main


@dataclass(frozen=True)
class Config:
    """The protocol's numbers."""

    img_size: int = 224  # pixels, side of the crop
    resize: int = 256  # pixels, short side before the crop
    interpolation: str = "bilinear"  # torchvision's default, which the official script leaves; FT and LIN are bicubic
    pooling: str = "cls"  # raw, no norm; an encoder without class token gives its mean patch token
    l2: float = 0.1  # lambda times n; 0.01 in the official ViT-L script
    precision: str = "fp32"  # fp32, bf16, fp16, or auto (fp16 on CUDA)
    tolerance: float = 1e-8  # largest gradient entry at which the solver stops
    max_iterations: int = 1000

    def __post_init__(self) -> None:
        if self.pooling not in features.POOLINGS:
            raise ValueError(f"pooling is one of {features.POOLINGS}, not {self.pooling!r}")
        if self.l2 <= 0:
            raise ValueError(f"l2 must be positive, not {self.l2}")


PRESETS = {
    "paper": Config(),
    "demo": Config(img_size=32, resize=32),  # the toy world's images are 32 px; nothing else differs
}


def reads(config: Config) -> tuple[str, ...]:
    """Names of the data sets."""
    return ("imagenet", "imagenet_1percent")


def run(encoder: Any, config: Config, env: Env) -> dict[str, float]:
    """top1 in percent; raises Skip without ImageNet or its 1 % list."""
    for name in reads(config):
        layouts.require(env.data_root, name)
    features.check_image_size(encoder, config.img_size)
    env.device = distributed.start(env.device)
    train, val = one_percent_set(env.data_root, env.limit), val_set(env.data_root, env.limit)
    if len(train.present) < 3:
        raise UserError(f"the 1 % images are of {len(train.present)} classes, softmax regression here needs three; raise --limit")
    preprocessing = CenterCrop(config.img_size, config.resize, config.interpolation)
    kind = config.pooling if encoder.spec.class_token else "mean"
    train_rows, val_rows = (
        centre_rows(features.extract(encoder, images, preprocessing, env, config.precision).tokens(kind).double().numpy())
        for images in (train, val)
    )
    weights, objective = fit(train_rows, train.labels, config.l2, config.tolerance, config.max_iterations)
    correct = train.present[(val_rows @ weights.T).argmax(axis=1)] == val.labels
    result = {"top1": metrics.percent(correct)}
    metrics.save_correct(env.out_dir, correct)
    env.report(
        protocol={
            "pooling": f"{kind}, raw", "head": "softmax regression", "l2": config.l2, "objective": objective,
            "test_resolution": config.img_size, "fine_tuned": False,
        },
        images_asked={"1percent": train.asked, "val": val.asked},
        images_evaluated={"1percent": len(train), "val": len(val)},
        standard_error={"top1": metrics.standard_error(result["top1"], len(val))},
    )  # fmt: skip
    return result


def centre_rows(values: np.ndarray) -> np.ndarray:
    """Each row (n, D) minus its own mean over the D features, then over its own L2 norm; no statistics of the set."""
    centred = values - values.mean(axis=1, keepdims=True)
    return centred / np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), np.finfo(values.dtype).tiny)


def fit(rows: np.ndarray, labels: np.ndarray, l2: float, tolerance: float = 1e-8, max_iterations: int = 1000) -> tuple[np.ndarray, float]:
    """Weights (C, D) of the classes present, in order, and the objective (1/n) sum CE + (l2/n)/2 |W|^2 there; three classes or more.

    scikit-learn minimises C sum CE + |W|^2 / 2, which has the same optimum at C = 1 / l2.
    """
    from sklearn.linear_model import LogisticRegression  # slow to import, and only this task needs it

    solver = LogisticRegression(C=1 / l2, fit_intercept=False, tol=tolerance, max_iter=max_iterations).fit(rows, labels)
    logits = torch.from_numpy(rows @ solver.coef_.T)
    targets = torch.from_numpy(np.searchsorted(solver.classes_, labels))
    loss = torch.nn.functional.cross_entropy(logits, targets).item()
    return solver.coef_, loss + l2 / len(rows) / 2 * float((solver.coef_**2).sum())


if __name__ == "__main__":
    sys.exit(main("few_shot"))
