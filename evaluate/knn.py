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

from evaluate import distributed, features, metrics
from evaluate.data import layouts
from evaluate.data.imagenet import train_set, val_set
from evaluate.data.transforms import CenterCrop
from evaluate.progress import track
from evaluate.task import Env, main


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
    precision: str = "fp32"  # fp32, bf16, fp16, or auto (fp16 on CUDA)

    def __post_init__(self) -> None:
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
    train_features, val_features = (
        _unit_features(features.extract(encoder, images, preprocessing, env, config.precision), encoder, kind, env.device)
        for images in (train, val)
    )
    rank, world = distributed.world()
    predicted = classify(
        train_features, torch.from_numpy(train.labels).to(env.device), val_features[rank::world], config.neighbours, config.temperature
    )
    labels = torch.from_numpy(val.labels)
    correct = {k: distributed.assemble(classes.cpu(), len(val)) == labels for k, classes in predicted.items()}
    result = {"top1": metrics.percent(correct[config.headline])}
    result.update({f"top1_k{k}": metrics.percent(correct[k]) for k in config.neighbours})
    metrics.save_correct(env.out_dir, correct[config.headline])
    env.report(
        protocol={"pooling": kind, "k": config.headline, "temperature": config.temperature, "test_resolution": config.img_size},
        images_asked={"train": train.asked, "val": val.asked},
        images_evaluated={"train": len(train), "val": len(val)},
        standard_error={name: metrics.standard_error(value, len(val)) for name, value in result.items()},
    )
    return result


def _unit_features(found: features.Features, encoder: Any, kind: str, device: str) -> torch.Tensor:
    with torch.inference_mode():
        tokens = found.tokens(kind)
        return torch.nn.functional.normalize(features.read_out(encoder, kind, tokens.to(device)), dim=1)


def classify(
    train: torch.Tensor, train_labels: torch.Tensor, test: torch.Tensor, neighbours: tuple[int, ...], temperature: float, block: int = 1024
) -> dict[int, torch.Tensor]:
    """Predicted classes (n_test,) for each k, from unit features (n_train, D) and (n_test, D).

    One top-k for the largest k serves all; where train has fewer images than k, all vote.
    """
    most = min(max(neighbours), len(train))
    classes = int(train_labels.max()) + 1
    predicted: dict[int, list[torch.Tensor]] = {k: [] for k in neighbours}
    for begin in track(range(0, len(test), block), "neighbours"):
        nearest = (test[begin : begin + block] @ train.T).topk(most, dim=1)
        weights, labels = (nearest.values / temperature).exp(), train_labels[nearest.indices]
        for k in neighbours:
            votes = weights.new_zeros(len(weights), classes).scatter_add_(1, labels[:, :k], weights[:, :k])
            predicted[k].append(votes.argmax(dim=1))
    return {k: torch.cat(parts) for k, parts in predicted.items()}


if __name__ == "__main__":
    sys.exit(main("knn"))
