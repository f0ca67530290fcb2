"""Semantic segmentation: mean intersection over union on ADE20k's validation pictures.

Protocol: MAE's, as in the SiameseIM paper: UPerNet, the whole encoder fine-tuned, 160,000 iterations of 16 crops of 512
pixels, layer decay 0.65. The test uses sliding windows at a single scale (miou, the table's column) and, with
multi_scale, also at six scales and mirrored (miou_ms). All numbers are in mm_configs/; the model of the final iteration
is measured. Metric: mIoU in percent over those of the 150 classes that occur. Cost: about a day and a half on 8 V100;
the demo half a minute on one core.

    python -m evaluate.segmentation --ckpt FILE --data-root DIR
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from annotated_types import Ge
from pydantic import PositiveFloat, PositiveInt

from evaluate.encoder.flops import forward_gflop
from evaluate.encoder.memory import weights
from evaluate.harness.cost import Cost, Count, disk_of_training, of_training, sharing
from evaluate.harness.task import main
from evaluate.mm import memory
from evaluate.mm.recipe_names import recipe_numbers, segmenter_of
from evaluate.runtime import precision
from evaluate.runtime.env import Env
from evaluate.runtime.precision import Precision
from evaluate.runtime.settings import Settings
from results.ending import leave

if TYPE_CHECKING:
    from evaluate.encoder import Encoder
    from evaluate.encoder.spec import EncoderSpec


@dataclass(frozen=True)
class Config(Settings):
    """What is trained; a recipe's numbers stand in ``mm_configs/upernet_<family>_<schedule>_ade20k.py``."""

    recipe: Literal["paper", "demo"] = "paper"
    """paper: the paper's recipe (160,000 iterations); demo: for the toy world."""
    iterations: PositiveInt | None = None
    """Training iterations, if not the recipe's; the warm-up is scaled with them."""
    crop: Annotated[int, Ge(16)] | None = None
    """Side of the crops in pixels, if not the recipe's; pictures are resized with it."""
    batch_size: PositiveInt | None = None
    """Crops in an iteration over all processes, if not the recipe's number."""
    lr: PositiveFloat | None = None
    """Learning rate of the last layer, if not the recipe's."""
    micro_batch: PositiveInt | None = None
    """Crops that a process takes at once; gradients are accumulated over the rest of its share of the batch. none: its
    whole share. UPerNet's BatchNorm sees them together."""
    grad_checkpointing: bool = False
    """Compute a ViT's blocks again in the backward pass: the same numbers, less memory, more time."""
    precision: Precision = "auto"
    """Precision of the training; auto is fp16 on a GPU and fp32 on a CPU."""
    multi_scale: bool = True
    """Also test at several scales and mirrored, which takes about 20 times as long as the single-scale test."""


PRESETS = {
    "paper": Config(),
    # half a minute on one core: small heads, crops of 64 pixels, 300 iterations
    "demo": Config(recipe="demo", multi_scale=False),
}


HEAD_GFLOP = 3020.0  # of a training step without a ViT-B, a crop of 512 px, counted on a pretended GPU
CROPS = 2  # that the sliding window takes of a picture of validation
SCALES = 20  # single-scale tests that the test at several scales takes as long as


def reads(config: Config) -> tuple[str, ...]:
    """ADE20k."""
    return ("ade20k",)


def cost(config: Config, spec: "EncoderSpec", count: Count) -> Cost:
    """What it takes: ``evaluate.harness.cost``."""
    numbers = recipe_numbers(segmenter_of(config.recipe, spec.recipes))
    side, batch = config.crop or numbers["crop"], config.batch_size or numbers["batch_size"]
    trained = batch * (config.iterations or numbers["max_iters"])
    head = HEAD_GFLOP * (side / 512) ** 2 * (spec.embed_dim / 768) ** 2
    tested = count("ade20k/images/validation") * CROPS * (1 + SCALES * config.multi_scale)
    channels = min(spec.embed_dim, 512) if not spec.is_vit else spec.embed_dim
    return of_training(
        trained,
        tested,
        forward_gflop(spec, side),
        head,
        gpus=sharing(batch, 2),
        memory=memory.of_segmentation(spec, side, config.micro_batch or batch) if spec.family == "vit" else math.nan,
        disk=disk_of_training(weights(spec) + memory.HEADS["upernet"] * (channels / 768) ** 2),
    )


def run(encoder: "Encoder", config: Config, env: Env) -> dict[str, float]:
    """Fine-tunes a segmenter and returns ``miou`` and ``aacc`` (pixel accuracy), and both with ``_ms`` at several
    scales.

    Raises:
        Skip: no mm* packages, or an encoder without a pyramid.
        UserError: data that do not fit together, or settings that cannot train.
    """
    from evaluate.mm import recipes

    recipes.require_maps(encoder.spec)
    recipes.require_packages("mmengine", "mmcv.ops", "mmdet", "mmseg.models")
    from evaluate.mm import pictures, runner, segmenter

    schedule = "160k" if config.recipe == "paper" else config.recipe
    cfg = recipes.read_recipe(segmenter_of(config.recipe, encoder.spec.recipes))
    same = ["crop"] if config.crop == cfg.crop else []
    if config.crop:
        segmenter.set_crop(cfg, config.crop)
    segmenter.fill_encoder(cfg, encoder)
    same += recipes.as_it_stands(cfg, config.iterations, config.batch_size, config.lr, config.micro_batch)
    # several scales are measured beside the column
    env.report(immaterial={"": [*same, "multi_scale", "grad_checkpointing"]})
    recipes.shorten(cfg, config.iterations, config.batch_size, config.lr)
    if config.grad_checkpointing:
        recipes.checkpoint(cfg, encoder.spec)
    asked = segmenter.fill_data(cfg, env)
    iterations = cfg.train_cfg.max_iters
    segmenter.require_two_crops(cfg, config.micro_batch, env.device)
    views = segmenter.multi_scale_loader(cfg) if config.multi_scale else None
    metrics = runner.train_and_test(
        cfg, "ade20k", encoder, env, config.micro_batch, config.precision, views, pictures.segmentations
    )
    seen = {int(metrics.pop(name)) for name in ("images", "images_ms") if name in metrics}
    protocol = {
        "framework": "mmseg",
        "head": "UPerNet",
        "schedule": schedule,
        "iterations": iterations,
        "batch": cfg.batch_size,
        "test": "single scale",
        "test_resolution": cfg.crop,
        "precision": precision.resolve(config.precision, env.device),
    }
    padded, _ = cfg.model.data_preprocessor.size
    protocol |= recipes.of_the_encoder("segmentation", encoder.spec, cfg.crop, padded)
    if config.multi_scale:
        protocol["test of the _ms metrics"] = f"ratios {list(cfg.ratios)}, mirrored"
    env.report(protocol=protocol, images_asked={"ade20k": asked}, images_evaluated={"ade20k": min(seen)})
    return metrics


if __name__ == "__main__":
    leave(main, "segmentation")
