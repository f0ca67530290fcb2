"""Segmentation by the nearest patches of a frozen encoder: mean intersection over union on the validation pictures of
ADE20k or PASCAL VOC 2012.

Protocol: CAPI's (arXiv 2502.08769). Nothing is trained. Pictures are squeezed to 224 x 224 px; the patch tokens of the
last block are standardized. A test patch takes, pixel by pixel, the most frequent label of its k nearest training
patches. k (1, 3, 10 or 30) and the distance (cosine or Euclidean) are chosen on a tenth of the training pictures, which
then joins the others. mIoU at 224 px over the labels that occur or are predicted. Here all products are float32; CAPI
has rounded ADE20k's features to bfloat16. Of VOC 2012 the background is a class, and the training set is the one of
10,582 pictures where SegmentationClassAug is there; CAPI's released reader of VOC does not give its paper's numbers, as
it says itself. Metrics: miou, aacc in percent. Cost: by the plan an hour at most on one GPU for a ViT-B (none was
measured), with 14 GB of main memory for the patches; on a CPU days (--limit 500: minutes); the demo seconds.

    python -m evaluate.knn_segmentation --ckpt FILE --data-root DIR [--set dataset=voc2012]
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from pydantic import PositiveInt

from evaluate.encoder import memory
from evaluate.encoder.flops import forward_gflop
from evaluate.harness.cost import Cost, Count, pictures
from evaluate.harness.task import main
from evaluate.runtime.env import Env
from evaluate.runtime.errors import Skip, UserError
from evaluate.runtime.seeding import seed_of
from evaluate.runtime.settings import Settings
from results.ending import leave

if TYPE_CHECKING:
    from evaluate.encoder import Encoder
    from evaluate.encoder.spec import EncoderSpec


@dataclass(frozen=True)
class Config(Settings):
    """The protocol's numbers."""

    dataset: Literal["ade20k", "voc2012"] = "ade20k"
    """What is segmented."""
    img_size: PositiveInt = 224
    """Side of the squeezed pictures in pixels, a multiple of the patch size."""
    neighbors: tuple[PositiveInt, ...] = (1, 3, 10, 30)
    """Numbers of neighbors, of which one is chosen."""
    distances: tuple[Literal["cosine", "l2"], ...] = ("cosine", "l2")
    """Distances, of which one is chosen."""


PRESETS = {"paper": Config(), "demo": Config(img_size=64)}


def reads(config: Config) -> tuple[str, ...]:
    """The one set whose patches are compared."""
    return (config.dataset,)


def reads_if_there(config: Config) -> tuple[str, ...]:
    """More training pictures of VOC."""
    return ("voc2012_aug",) if config.dataset == "voc2012" else ()


def cost(config: Config, spec: "EncoderSpec", count: Count) -> Cost:
    """What it takes: ``evaluate.harness.cost``; the tenth is searched for once a distance, the test once."""
    if spec.family != "vit":  # it is going to be skipped
        return Cost(0.0, 0)
    train, test = pictures(config.dataset, count)
    patches = (config.img_size // spec.patch_size) ** 2
    pairs = (len(config.distances) * 0.1 * 0.9 * train + test) * train * patches**2
    search = 2e-9 * spec.embed_dim * pairs
    passes = (train + test) * forward_gflop(spec, config.img_size)
    compared = 3.0 * min(1.0, train * patches / 262_144)  # GiB: so many training patches are on the device at once
    return Cost(search + passes, train + test, memory=memory.of_passing(spec, config.img_size, 64, bits=32) + compared)


def draws(config: Config) -> bool:
    """The tenth on which k and the distance are chosen."""
    return True


def run(encoder: "Encoder", config: Config, env: Env) -> dict[str, float]:
    """``miou`` and ``aacc``.

    Raises:
        Skip: an encoder without patch tokens. UserError: too few pictures, or what cannot be read.
    """
    if encoder.spec.family != "vit":
        raise Skip("knn_segmentation compares patch tokens, and this encoder is no ViT")
    if config.img_size % encoder.spec.patch_size:
        raise UserError(
            f"img_size {config.img_size} is no multiple of the patch size {encoder.spec.patch_size}; choose another: "
            f"--set img_size=N"
        )
    from evaluate.classification import patch_neighbors
    from evaluate.data import dense_sets
    from evaluate.data.published_counts import size

    images = dense_sets.below(env.data_root, config.dataset)
    images.check(env.limit)
    parts = []
    for split in dense_sets.SPLITS:
        found, pictures = patch_neighbors.extract(encoder, images, split, env.limit, config.img_size, env.device)
        env.report(sizes={f"{images.name}_{split}": size(pictures, len(images.classes))})
        parts.append(found)
    whole, test = parts
    count, tested = (len(part) // part.count for part in parts)
    if count < 2:
        raise UserError(f"{images.root} has {count} training pictures; two are needed, one to choose k on")
    order = np.random.default_rng(seed_of(env.seed, "tenth")).permutation(count)
    tenth, others = whole.of(order[: max(1, count // 10)]), whole.of(order[max(1, count // 10) :])
    patch_neighbors.standardize(others, whole, test)
    tried = {
        (k, distance): patch_neighbors.scores(patch_neighbors.pixels_met(labels, tenth).sum(axis=0))["miou"]
        for distance in config.distances
        for k, labels in patch_neighbors.predict(
            others.of_a_class(), tenth, config.neighbors, distance, env.device
        ).items()
    }
    k, distance = max(tried, key=lambda pair: tried[pair])
    predicted = patch_neighbors.predict(whole.of_a_class(), test, [k], distance, env.device)[k]
    by_picture = patch_neighbors.pixels_met(predicted, test)
    _report_errors(by_picture, env)
    env.report(
        protocol={
            "head": "nearest patches",
            "k": k,
            "distance": distance,
            "chosen on": f"{max(1, count // 10)} of {count} training pictures",
            "miou there": {f"{k}, {distance}": value for (k, distance), value in tried.items()},
            "test_resolution": config.img_size,
            "precision": "fp32",
        },
        images_asked={images.name: tested},
        images_evaluated={images.name: tested},
    )
    return patch_neighbors.scores(by_picture.sum(axis=0))


def _report_errors(by_picture: np.ndarray, env: Env) -> None:
    """The metrics on 200 draws of pictures, as for the other columns of segmentation."""
    from evaluate.classification.patch_neighbors import scores
    from evaluate.runtime import bootstrap

    drawn = [scores(np.tensordot(weights, by_picture, 1)) for weights in bootstrap.draws(len(by_picture))]
    values = bootstrap.kept({name: [one[name] for one in drawn] for name in drawn[0]})
    env.report(resamples=values, standard_error=bootstrap.errors(values))


if __name__ == "__main__":
    leave(main, "knn_segmentation")
