"""Linear segmentation of frozen patch tokens: mean intersection over union on the validation pictures of ADE20k or
PASCAL VOC 2012.

Protocol: DINOv2's. The encoder is frozen; BatchNorm and one linear layer on the patch tokens of its last block are
trained for 40,000 iterations of 16 crops of 512 pixels, and tested with sliding windows at a single scale. All numbers
are in mm_configs/linear_vit_40k_ade20k.py; the head of the final iteration is measured. VOC 2012 has the same numbers;
its training set is the one of 10,582 pictures where SegmentationClassAug is there, else VOC's own 1,464, and the cell
says so. With setup=multi_scale it is DINOv2's second setup (mm_configs/linear_vit_multi_scale_40k_ade20k.py), whose
column is miou_ms. Every crop is drawn anew, so no tokens are kept: the encoder passes over 640,000 crops. Metric: miou,
in percent over those of the classes (150, or 21 with the background) that occur. Cost: eight minutes on one GPU
for ViT-B by the plan, in 16 bits; in float32, as here, several times that (none was measured). The demo takes twelve
seconds of one core.

    python -m evaluate.linear_segmentation --ckpt FILE --data-root DIR [--set dataset=voc2012]
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from annotated_types import Ge
from pydantic import PositiveFloat, PositiveInt

from evaluate.encoder import memory
from evaluate.encoder.flops import forward_gflop
from evaluate.encoder.memory import GIB
from evaluate.harness.cost import Cost, Count, of_training, pictures, sharing
from evaluate.harness.task import main
from evaluate.mm.recipe_names import linear_of, recipe_numbers
from evaluate.runtime import precision
from evaluate.runtime.env import Env
from evaluate.runtime.errors import Skip
from evaluate.runtime.precision import Precision
from evaluate.runtime.settings import Settings
from results.ending import leave

if TYPE_CHECKING:
    from evaluate.encoder import Encoder
    from evaluate.encoder.spec import EncoderSpec

CROPS = 2  # that the sliding window takes of a picture of validation
LOGITS = {"ade20k": 150 * 16, "voc2012": 21 * 16}  # bytes of a pixel's logits, three times, of a picture of 4 by 3


@dataclass(frozen=True)
class Config(Settings):
    """What is trained; a recipe's numbers stand in ``mm_configs/linear_vit_<schedule>_ade20k.py``."""

    dataset: Literal["ade20k", "voc2012"] = "ade20k"
    """What is segmented."""
    setup: Literal["linear", "multi_scale"] = "linear"
    """linear: the last layer, a single scale; multi_scale: DINOv2's second setup ("+ms"), the last four layers side by
    side, larger crops, and a test at several scales and mirrored beside the one at a single scale."""
    recipe: Literal["paper", "demo"] = "paper"
    """paper: DINOv2's recipe (40,000 iterations); demo: for the toy world."""
    iterations: PositiveInt | None = None
    """Training iterations, if not the recipe's; the warm-up is scaled with them."""
    crop: Annotated[int, Ge(16)] | None = None
    """Side of the crops in pixels, if not the recipe's; pictures are resized with it."""
    batch_size: PositiveInt | None = None
    """Crops in an iteration over all processes, if not the recipe's number."""
    lr: PositiveFloat | None = None
    """Learning rate, if not the recipe's."""
    precision: Precision = "fp32"
    """Precision of the training; DINOv2's is fp32. auto is fp16 on a GPU and fp32 on a CPU."""


PRESETS = {"paper": Config(), "demo": Config(recipe="demo")}


def reads(config: Config) -> tuple[str, ...]:
    """The one set that is trained and tested on."""
    return (config.dataset,)


def reads_if_there(config: Config) -> tuple[str, ...]:
    """More training pictures of VOC."""
    return ("voc2012_aug",) if config.dataset == "voc2012" else ()


def cost(config: Config, spec: "EncoderSpec", count: Count) -> Cost:
    """What it takes: ``evaluate.harness.cost``; nothing where it is going to be skipped."""
    several = config.setup == "multi_scale"
    if spec.family != "vit" or several and spec.depth < 4:
        return Cost(0.0, 0)
    numbers = recipe_numbers(linear_of(config.recipe, config.setup))
    side, batch = config.crop or numbers["crop"], config.batch_size or numbers["batch_size"]
    _, tested = pictures(config.dataset, count)
    windows = CROPS + (2 * sum(map(_windows, numbers["ratios"])) if several else 0)  # each scale also mirrored
    passed = batch * (config.iterations or numbers["max_iters"]) + tested * windows
    largest = LOGITS[config.dataset] * (side * max(numbers["ratios"])) ** 2 / GIB if several else 0.0
    return of_training(
        0,
        passed,
        forward_gflop(spec, side),
        gpus=sharing(batch, 2),
        memory=memory.of_passing(spec, side, batch, bits=32) + largest,
    )


def run(encoder: "Encoder", config: Config, env: Env) -> dict[str, float]:
    """Trains the head and returns ``miou`` and ``aacc`` (pixel accuracy), of the second setup also both with ``_ms``
    at several scales.

    Raises:
        Skip: no mm* packages, or an encoder without patch tokens or with too few layers.
        UserError: data that do not fit together, or settings that cannot train.
    """
    from evaluate.mm import recipes

    if encoder.spec.family != "vit":
        raise Skip("linear_segmentation measures patch tokens, and this encoder is no ViT")
    recipes.require_packages("mmengine", "mmcv.ops", "mmdet", "mmseg.models")
    from evaluate.mm import frozen, runner, segmenter
    from evaluate.mm.pictures import segmentations

    cfg = recipes.read_recipe(linear_of(config.recipe, config.setup))
    same = ["crop"] if config.crop == cfg.crop else []
    if config.crop:
        segmenter.set_crop(cfg, config.crop)
    frozen.fill_encoder(cfg, encoder)
    same += recipes.as_it_stands(cfg, config.iterations, config.batch_size, config.lr, None)
    env.report(immaterial={"": same})
    recipes.shorten(cfg, config.iterations, config.batch_size, config.lr)
    asked = segmenter.fill_data(cfg, env, config.dataset)
    iterations = cfg.train_cfg.max_iters
    views = segmenter.multi_scale_loader(cfg) if config.setup == "multi_scale" else None
    metrics = runner.train_and_test(cfg, config.dataset, encoder, env, None, config.precision, views, segmentations)
    seen = {int(metrics.pop(name)) for name in ("images", "images_ms") if name in metrics}
    padded, _ = cfg.model.data_preprocessor.size
    if views:
        env.report(protocol={"test of the _ms metrics": f"ratios {list(cfg.ratios)}, mirrored"})
    env.report(
        protocol={
            "framework": "mmseg",
            "head": "BatchNorm and one linear layer on frozen patch tokens" + (", 4 layers" if views else ""),
            "schedule": "40k" if config.recipe == "paper" else config.recipe,
            "iterations": iterations,
            "batch": cfg.batch_size,
            "test": "single scale",
            "test_resolution": cfg.crop,
            "precision": precision.resolve(config.precision, env.device),
            **recipes.of_the_encoder("linear_segmentation", encoder.spec, cfg.crop, padded),
        },
        images_asked={config.dataset: asked},
        images_evaluated={config.dataset: min(seen)},
    )
    return metrics


def _windows(ratio: float) -> int:
    """That the sliding window, half its side apart, takes of a picture of 4 by 3 whose shorter side is so many of its
    own.
    """
    return math.prod(1 + math.ceil(2 * (max(side, 1.0) - 1)) for side in (ratio, ratio * 4 / 3))


if __name__ == "__main__":
    leave(main, "linear_segmentation")
