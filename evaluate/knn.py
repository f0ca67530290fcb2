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
    bank = (4 + 2) * spec.embed_dim * train / memory.GIB + 0.5  # in float32 and fp16, and what a block takes
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

    from evaluate.classification import metrics, pictures
    from evaluate.classification.features import frozen_features, resolve_pooling, test_crop
    from evaluate.classification.neighbors import classify, shares_of_votes, unit_features
    from evaluate.classification.setup import report, report_scores
    from evaluate.data.sets import train_and_val
    from evaluate.data.thumbnails import attempt
    from evaluate.runtime import distributed

    train, val = train_and_val(env)
    found = frozen_features(encoder, config, env, train, val)
    pooling = resolve_pooling(encoder, config.pooling)
    near, far = (unit_features(part, encoder, pooling, env.device) for part in (found.train, found.val))
    env.report(sizes=sizes(train, val), immaterial={"top1": ["neighbors"]})  # the other k are measured beside it
    env.report(unreadable_images={"train": found.train.unreadable, "val": found.val.unreadable})
    asked = {"train": train.asked, "val": val.asked}
    evaluated = {"train": len(found.train.labels), "val": len(found.val.labels)}
    protocol = {
        "pooling": pooling,
        "k": config.headline,
        "temperature": config.temperature,
        "test_resolution": config.img_size,
        "precision": found.precision,
    }
    if found.train.several is not None and found.val.several is not None:
        marked = torch.from_numpy(found.train.several).to(env.device)
        votes = shares_of_votes(near, marked, far, config.headline, config.temperature)
        return report_scores(env, votes.numpy(), found.val.several, train.classes, asked, evaluated, protocol)
    train_labels = torch.from_numpy(found.train.labels).to(env.device)
    voted = classify(near, train_labels, far, config.neighbors, config.temperature)
    answers = {k: metrics.answers(val, found.val.stored.unreadable, *own) for k, own in voted.items()}
    if distributed.rank() == 0:
        crop, said = test_crop(encoder, config), answers[config.headline].top[:, 0]
        with attempt("neighbors"):
            pictures.neighbors(env.out_dir, found.train, found.val, (near, far), said, crop)
        with attempt("patches"):
            pictures.patches(env.out_dir, encoder, found.val, crop, env.device)
    return report(
        env,
        answers[config.headline],
        {"top1": answers[config.headline].correct(), **{f"top1_k{k}": own.correct() for k, own in answers.items()}},
        train.classes,
        asked,
        evaluated,
        protocol,
    )


if __name__ == "__main__":
    leave(main, "knn")
