"""k nearest neighbours on frozen features (kNN; not a column of the SiameseIM table, nearly free, and everyone asks for it).

Protocol (DINO, eval_knn.py): every val image is compared by cosine with every train image; the k nearest vote for their class, each
with weight exp(cosine / 0.07); exact, no index. Features: what the encoder's method recommends (class token after the final norm, or
mean patch token after a LayerNorm without parameters), from Resize 256 bicubic and CenterCrop 224.
Metric: top1 = accuracy of val in percent at k = 20; top1_k10, _k20, _k100, _k200 beside it.
Cost: one pass over train and val, then a product of the two; about 20 minutes on one GPU for ViT-B. Toy world: seconds.

    python -m evaluate.knn --ckpt FILE --data-root DIR
"""

import sys
from dataclasses import dataclass
from typing import Any

import torch

from evaluate.classification import features, metrics
from evaluate.data import layouts
from evaluate.data.imagenet import train_set, val_set
from evaluate.data.transforms import CenterCrop
from evaluate.harness.task import main
from evaluate.runtime import distributed, precision
from evaluate.runtime.env import Env
from evaluate.runtime.progress import track

BLOCK = 256  # test images a product with the train set: on ImageNet 1.3 GB of cosines


@dataclass(frozen=True)
class Config:
    """The protocol's numbers."""

    img_size: int = 224  # pixels, side of the crop
    resize: int = 256  # pixels, short side before the crop
    interpolation: str = "bicubic"
    pooling: str | None = None  # "cls" or "mean"; None: what the encoder's method recommends
    neighbours: tuple[int, ...] = (10, 20, 100, 200)  # DINO's
    headline: int = 20  # the k of top1; DINO reports 20
    temperature: float = 0.07
    precision: str = "fp32"  # of the frozen pass: fp32, bf16, fp16, or auto (fp16 on CUDA)
    allowed_bad_images: int = 0  # so many of each set may be unreadable and are left out; the record names them

    def __post_init__(self) -> None:
        precision.resolve(self.precision, "cpu")
        if self.headline not in self.neighbours:
            raise ValueError(f"headline {self.headline} is not one of neighbours {self.neighbours}")
        if min(self.neighbours) < 1 or self.temperature <= 0:
            raise ValueError("neighbours and temperature must be positive")


PRESETS = {
    "paper": Config(),
    "demo": Config(img_size=32, resize=32),  # the toy world's images are 32 px; nothing else differs
}


def reads(config: Config) -> tuple[str, ...]:
    """Names of the data sets."""
    return ("imagenet",)


def run(encoder: Any, config: Config, env: Env) -> dict[str, float]:
    """top1 at every k, in percent; raises Skip without ImageNet."""
    layouts.require(env.data_root, "imagenet")
    features.check_image_size(encoder, config.img_size)
    env.device = distributed.start(env.device)
    train, val = train_set(env.data_root, env.limit), val_set(env.data_root, env.limit)
    preprocessing = CenterCrop(config.img_size, config.resize, config.interpolation)
    kind = features.pooling_of(encoder, config.pooling)
    arithmetic = precision.resolve(config.precision, env.device)
    found_train, found_val = (
        features.extract(encoder, images, preprocessing, env, arithmetic, allowed_bad=config.allowed_bad_images) for images in (train, val)
    )
    predicted = classify(
        _unit_features(found_train, encoder, kind, env.device),
        torch.from_numpy(found_train.labels).to(env.device),
        _unit_features(found_val, encoder, kind, env.device),
        config.neighbours,
        config.temperature,
    )
    labels = torch.from_numpy(found_val.labels)
    correct = {k: classes.cpu() == labels for k, classes in predicted.items()}
    result = {"top1": metrics.percent(correct[config.headline])}
    result.update({f"top1_k{k}": metrics.percent(correct[k]) for k in config.neighbours})
    metrics.save_correct(env.out_dir, correct[config.headline])
    env.report(
        protocol={
            "pooling": kind, "k": config.headline, "temperature": config.temperature, "test_resolution": config.img_size,
            "precision": arithmetic,
        },
        images_asked={"train": train.asked, "val": val.asked},
        images_evaluated={"train": len(found_train.labels), "val": len(labels)},
        unreadable_images={"train": found_train.unreadable, "val": found_val.unreadable},
        standard_error={name: metrics.standard_error(value, len(labels)) for name, value in result.items()},
    )  # fmt: skip
    return result


def _unit_features(found: features.Features, encoder: Any, kind: str, device: str) -> torch.Tensor:
    tokens = found.tokens(kind)
    with torch.inference_mode():
        for part in tokens.split(65536):  # in place: a second copy of the train set's features would be four gigabytes more
            part.copy_(torch.nn.functional.normalize(features.read_out(encoder, kind, part.to(device)), dim=1))
    return tokens.to(device)


def classify(
    train: torch.Tensor, train_labels: torch.Tensor, test: torch.Tensor, neighbours: tuple[int, ...], temperature: float
) -> dict[int, torch.Tensor]:
    """Predicted classes (n_test,) for each k, from unit features (n_train, D) and (n_test, D).

    One top-k for the largest k serves all; where train has fewer images than k, all vote. The processes take blocks of BLOCK test
    images in turn: what is multiplied with what does not depend on how many they are, so neither does a bit of the result.
    """
    most = min(max(neighbours), len(train))
    classes = int(train_labels.max()) + 1
    rank, world = distributed.world()
    blocks = range(0, len(test), BLOCK)
    mine: dict[int, dict[int, torch.Tensor]] = {}
    for begin in track(blocks[rank::world], "neighbours"):
        nearest = (test[begin : begin + BLOCK] @ train.T).topk(most, dim=1)
        weights, labels = (nearest.values / temperature).exp(), train_labels[nearest.indices]
        mine[begin] = {k: _vote(weights[:, :k], labels[:, :k], classes).cpu() for k in neighbours}
    found = {begin: predicted for part in distributed.gather(mine) for begin, predicted in part.items()}
    return {k: torch.cat([found[begin][k] for begin in blocks]) for k in neighbours}


def _vote(weights: torch.Tensor, labels: torch.Tensor, classes: int) -> torch.Tensor:
    votes = weights.new_zeros(len(weights), classes, dtype=torch.float64)
    return votes.scatter_add_(1, labels, weights.double()).argmax(dim=1)


if __name__ == "__main__":
    sys.exit(main("knn"))
