"""Object detection and instance segmentation: box AP and mask AP on COCO and on LVIS, for LVIS also of the rare
categories.

Protocol: ViTDet, as in the SiameseIM paper: Mask R-CNN, the whole encoder fine-tuned, 100 epochs of large-scale jitter
at 1024 pixels, layer decay 0.7, single-scale test. LVIS adds repeat factors and the federated loss. All numbers are in
mm_configs/; the model of the final iteration is measured. Metric: AP over IoU 0.5 to 0.95 in percent, by
faster-coco-eval. Cost: COCO takes 64 A100 about half a day (or one a month), the demo half a minute on one core.
ResNets are measured with FPN or, as in MoCo and SimSiam, with C4, also on PASCAL VOC (AP by the rules of 2007); see
mm_configs/README.md. Other models of timm and a user's class are
measured with FPN on their maps at strides 4, 8, 16 and 32.

    python -m evaluate.detection --ckpt FILE --data-root DIR [--set dataset=lvis] [--set recipe=NAME]
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from pydantic import PositiveFloat, PositiveInt

from evaluate.encoder.flops import forward_gflop
from evaluate.encoder.memory import GIB, weights
from evaluate.harness.cost import Cost, Count, disk_of_training, of_training, sharing
from evaluate.harness.task import main
from evaluate.mm import memory, recipe_names
from evaluate.runtime import precision
from evaluate.runtime.env import Env
from evaluate.runtime.settings import Settings
from results.ending import leave

if TYPE_CHECKING:
    from evaluate.encoder import Encoder
    from evaluate.encoder.spec import EncoderSpec


@dataclass(frozen=True)
class Config(Settings):
    """What is trained on what; a recipe's numbers stand in ``mm_configs/<recipe>.py``."""

    dataset: Literal["coco", "lvis", "voc"] = "coco"
    recipe: str = "paper"
    """paper: the recipe of the encoder's family (ViT, ResNet); demo: for the toy world; or a file of mm_configs/."""
    iterations: PositiveInt | None = None
    """Training iterations, if not the recipe's; the warm-up and the milestones are scaled with them."""
    image_size: PositiveInt | None = None
    """Side of the pictures in pixels, if not the recipe's; for the recipes with square pictures (ViTDet)."""
    batch_size: PositiveInt | None = None
    """Images in an iteration over all processes, if not the recipe's number."""
    lr: PositiveFloat | None = None
    """Learning rate of the last layer, if not the recipe's."""
    micro_batch: PositiveInt | None = None
    """Images that a process takes at once; gradients are accumulated over the rest of its share of the batch. none: its
    whole share, or with a ViT on a GPU as many as the memory holds."""
    grad_checkpointing: bool = False
    """Compute a ViT's blocks again in the backward pass: the same numbers, less memory, more time."""

    def __post_init__(self) -> None:
        if self.recipe not in ("paper", "demo") and not self.recipe.endswith(f"_{self.dataset}"):
            raise ValueError(
                f"recipe {self.recipe!r} is not for {self.dataset}: give paper, demo or a file of mm_configs/ that "
                f"ends in it"
            )


PRESETS = {
    "paper": Config(),
    # half a minute on one core: small heads, pictures of 96 pixels, some hundred iterations
    "demo": Config(recipe="demo"),
}


DETECTIONS_KB = {"coco": 11, "lvis": 140, "voc": 5}  # of an image of val, kept; LVIS tests four times as many
HEAD_GFLOP = 2080.0  # of a training step without the encoder, an image of 1024 px, counted on a pretended GPU


def reads(config: Config) -> tuple[str, ...]:
    """The one set that is trained and tested on."""
    return (config.dataset,)


def cost(config: Config, spec: "EncoderSpec", count: Count) -> Cost:
    """What it takes: ``evaluate.harness.cost``; of a ResNet a lower bound, since its heads are not counted."""
    numbers = recipe_names.recipe_numbers(recipe_names.recipe_of(config.recipe, config.dataset, spec.recipes))
    side = config.image_size or numbers["image_size"]
    batch = config.batch_size or numbers["batch_size"]
    trained = batch * (config.iterations or numbers["max_iters"])
    vit = spec.family == "vit"
    gflop = forward_gflop(spec, side, window=14 if vit else None)
    head = HEAD_GFLOP * (side / 1024) ** 2 * (numbers["channels"] / 256) ** 2 if vit else 0.0
    tested = count("VOCdevkit" if config.dataset == "voc" else "coco/val2017")
    at_once = config.micro_batch or (1 if vit else batch)  # as few as the device wants, with a ViT
    heads = memory.HEADS["vitdet"] * (numbers.get("channels", 256) / 256) ** 2
    return of_training(
        trained,
        tested,
        gflop,
        head,
        gpus=sharing(batch) if vit else (1,),
        memory=memory.of_detection(spec, side, at_once, config.grad_checkpointing) if vit else math.nan,
        disk=disk_of_training(weights(spec) + heads) + tested * DETECTIONS_KB[config.dataset] * 1e3 / GIB,
    )


def run(encoder: "Encoder", config: Config, env: Env) -> dict[str, float]:
    """Trains a detector; returns ``box_ap`` and ``mask_ap``, each with ``50`` and ``75``, for LVIS ``_rare``,
    ``_common``, ``_frequent``.

    VOC has boxes only.

    Raises:
        Skip: no mm* packages, or an encoder without a pyramid.
        UserError: a recipe that there is not, or not for this encoder.
    """
    from evaluate.mm import recipes

    recipes.require_maps(encoder.spec)
    recipes.require_packages("mmengine", "mmcv.ops", "mmdet.models", "faster_coco_eval")
    from evaluate.mm import detector, pictures, runner

    name = recipe_names.recipe_of(config.recipe, config.dataset, encoder.spec.recipes)
    cfg = recipes.read_recipe(name)
    same = ["image_size"] if config.image_size == cfg.image_size else []
    if config.image_size:
        detector.set_image_size(cfg, config.image_size)
    detector.fill_encoder(cfg, encoder)
    same += recipes.as_it_stands(cfg, config.iterations, config.batch_size, config.lr, config.micro_batch)
    same.append("grad_checkpointing")
    if encoder.spec.family == "vit":  # those recipes have LayerNorm everywhere; the ResNets' train BatchNorm
        same.append("micro_batch")
    published = recipe_names.RECIPES.get((encoder.spec.recipes, PRESETS["paper"].recipe, config.dataset))
    env.report(immaterial={"": [*same, *(["recipe"] if name == published else [])]})
    recipes.shorten(cfg, config.iterations, config.batch_size, config.lr)
    if config.grad_checkpointing:
        recipes.checkpoint(cfg, encoder.spec)
    asked = detector.fill_data(cfg, config.dataset, env)
    iterations, padded = cfg.train_cfg.max_iters, cfg.model.backbone.get("img_size", cfg.image_size)
    metrics = runner.train_and_test(cfg, config.dataset, encoder, env, config.micro_batch, draw=pictures.detections)
    head, _, schedule = name.removesuffix(f"_{config.dataset}").rpartition("_")
    env.report(
        protocol={
            "framework": "mmdet",
            "published_framework": "detectron2",
            "recipe": name,
            "head": head,
            "schedule": schedule,
            "iterations": iterations,
            "batch": cfg.batch_size,
            "test": "single scale",
            "test_resolution": cfg.image_size,
            "precision": precision.resolve("auto", env.device),
            "strides": list(cfg.model.roi_head.bbox_roi_extractor.featmap_strides),
            **recipes.of_the_encoder("detection", encoder.spec, cfg.image_size, padded),
        },
        images_asked={config.dataset: asked},
        images_evaluated={config.dataset: int(metrics.pop("images"))},
    )
    return metrics


if __name__ == "__main__":
    leave(main, "detection")
