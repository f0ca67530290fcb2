"""k nearest neighbors on frozen features (column kNN, which is not in the SiameseIM paper's table).

Protocol (DINO, eval_knn.py): every val image is compared by cosine with every train image; the k nearest vote for their
class, each with weight exp(cosine / 0.07). The search is exact. Features: what the encoder's method recommends (class
token after the final norm, or mean patch token after a LayerNorm without parameters), from Resize 256 bicubic and
CenterCrop 224.
Metric: top1 = accuracy of val in percent at k = 20; top1_k10, _k20, _k100, _k200 beside it.
Cost: one pass over train and val, then a product of the two; about 20 minutes on one GPU for ViT-B. Toy world: seconds.

    python -m evaluate.knn --ckpt FILE --data-root DIR
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydantic import PositiveFloat, PositiveInt

from evaluate.classification.config import ImageConfig, Pooling
from evaluate.data.published_counts import sizes
from evaluate.encoder import memory
from evaluate.encoder.flops import forward_gflop
from evaluate.harness.cost import Cost, Count, disk_of_features, of_training
from evaluate.harness.task import main
from evaluate.runtime.env import Env
from results.ending import leave

if TYPE_CHECKING:
    from evaluate.encoder import Encoder
    from evaluate.encoder.spec import EncoderSpec


@dataclass(frozen=True)
class Config(ImageConfig):
    """The protocol's numbers."""

    pooling: Pooling | None = None
    """Which token is read out; none: the one that the encoder's method recommends."""
    neighbors: tuple[PositiveInt, ...] = (10, 20, 100, 200)
    """Each k that is measured; the default is DINO's."""
    headline: PositiveInt = 20
    """The k of top1; DINO reports 20."""
    temperature: PositiveFloat = 0.07

    def __post_init__(self) -> None:
        if self.headline not in self.neighbors:
            raise ValueError(f"headline {self.headline} is not one of neighbors {self.neighbors}")


PRESETS = {
    "paper": Config(),
    "demo": Config(img_size=32, resize=32),  # the toy world's images are 32 px; nothing else differs
}


def reads(config: Config) -> tuple[str, ...]:
    """Names of the data sets."""
    return ("imagenet",)


def draws(config: Config) -> bool:
    """Nothing is drawn."""
    return False


def cost(config: Config, spec: "EncoderSpec", count: Count) -> Cost:
    """What it takes: ``evaluate.harness.cost``."""
    train, val = count("imagenet/train"), count("imagenet/val")
    bank = 1.3 * 4 * spec.embed_dim * train / memory.GIB  # and a block's similarities
    return of_training(
        0,
        train + val,
        forward_gflop(spec, config.img_size),
        memory=memory.of_passing(spec, config.img_size, 64, bits=32) + bank,
        features=disk_of_features(spec, train + val),
    )


def run(encoder: "Encoder", config: Config, env: Env) -> dict[str, float]:
    """top1 at every k, in percent."""
    import torch

    from evaluate.classification.features import frozen_features, resolve_pooling
    from evaluate.classification.neighbors import classify, unit_features
    from evaluate.classification.setup import report, train_and_val

    train, val = train_and_val(env)
    found = frozen_features(encoder, config, env, train, val)
    pooling = resolve_pooling(encoder, config.pooling)
    predicted = classify(
        unit_features(found.train, encoder, pooling, env.device),
        torch.from_numpy(found.train.labels).to(env.device),
        unit_features(found.val, encoder, pooling, env.device),
        config.neighbors,
        config.temperature,
    )
    labels = torch.from_numpy(found.val.labels)
    correct = {k: classes.cpu() == labels for k, classes in predicted.items()}
    env.report(sizes=sizes(train, val), immaterial={"top1": ["neighbors"]})  # the other k are measured beside it
    env.report(unreadable_images={"train": found.train.unreadable, "val": found.val.unreadable})
    return report(
        env,
        {"top1": correct[config.headline], **{f"top1_k{k}": correct[k] for k in config.neighbors}},
        {"train": train.asked, "val": val.asked},
        {"train": len(found.train.labels), "val": len(labels)},
        {
            "pooling": pooling,
            "k": config.headline,
            "temperature": config.temperature,
            "test_resolution": config.img_size,
            "precision": found.precision,
        },
    )


if __name__ == "__main__":
    leave(main, "knn")
