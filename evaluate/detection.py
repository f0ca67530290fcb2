"""Object detection and instance segmentation: COCO box AP and mask AP, and LVIS box AP, mask AP and those of its rare categories.

Protocol: ViTDet, as the SiameseIM paper; Mask R-CNN on the whole fine-tuned encoder, 100 epochs of large-scale jitter at 1024 pixels,
layer decay 0.7, single-scale test. LVIS adds repeat factors and the federated loss. All numbers are in mm_configs/; the final
iteration is what is measured. Metric: AP over IoU 0.5 to 0.95 in percent, by faster-coco-eval.
Cost: COCO 64 A100 for about half a day (or one for a month); the demo half a minute on one core.

    python -m evaluate.detection --ckpt FILE --data-root DIR [--set dataset=lvis]
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evaluate import distributed
from evaluate.data import layouts
from evaluate.errors import UserError
from evaluate.task import Env, main

ANNOTATIONS = {
    "coco": ("coco/annotations/instances_train2017.json", "coco/annotations/instances_val2017.json"),
    "lvis": ("lvis/lvis_v1_train.json", "lvis/lvis_v1_val.json"),
}


# the recipe's name goes on with the schedule and the data set
MODELS = {"vit": "mask_rcnn_vitdet", "resnet": "mask_rcnn_resnet_fpn"}
PAPER = {"vit": "100ep", "resnet": "1x"}
LARGE = {24: (0.4, 0.8), 32: (0.5, 0.9)}  # depth: drop path and layer decay of detectron2's ViTDet-L and -H


@dataclass(frozen=True)
class Config:
    """What is trained on what; a recipe's numbers stand in ``mm_configs/<model>_<schedule>_<dataset>.py``."""

    dataset: str = "coco"  # coco or lvis
    schedule: str = "paper"  # which recipe: the paper's (100ep of ViTs, 1x of ResNets), or demo for the toy world
    iterations: int | None = None  # instead of the recipe's; warm-up and steps shrink with it
    batch_size: int | None = None  # images an iteration over all processes, instead of the recipe's
    learning_rate: float | None = None  # at the last layer, instead of the recipe's
    at_once: int | None = None  # images a process takes at once; a larger share of the batch is accumulated

    def __post_init__(self) -> None:
        if self.dataset not in ANNOTATIONS:
            raise ValueError(f"dataset is coco or lvis, not {self.dataset!r}")
        for name in ("iterations", "batch_size", "learning_rate", "at_once"):
            if getattr(self, name) is not None and getattr(self, name) <= 0:
                raise ValueError(f"{name} must be positive, not {getattr(self, name)}")


PRESETS = {
    "paper": Config(),
    # half a minute on one core: small heads, pictures of 96 pixels, some hundred iterations
    "demo": Config(schedule="demo"),
}


def reads(config: Config) -> tuple[str, ...]:
    """The one set that is trained and tested on."""
    return (config.dataset,)


def run(encoder: Any, config: Config, env: Env) -> dict[str, float]:
    """Trains a detector; returns ``box_ap`` and ``mask_ap``, each with ``50`` and ``75``, for LVIS ``_rare``, ``_common``, ``_frequent``.

    Raises:
        Skip: no data or no mm* packages.
    """
    layouts.require(env.data_root, config.dataset)
    from evaluate.mm import runner

    env.device = distributed.start(env.device)
    runner.require_packages("mmengine", "mmcv.ops", "mmdet.models", "faster_coco_eval")
    family = encoder.spec.family
    schedule = PAPER[family] if config.schedule == "paper" else config.schedule
    cfg = runner.read_recipe(f"{MODELS[family]}_{schedule}_{config.dataset}")
    fill_encoder(cfg, encoder)
    runner.shorten(cfg, config.iterations, config.batch_size, config.learning_rate)
    content = fill_data(cfg, config.dataset, env)
    asked = len(content["images"])
    iterations = cfg.train_cfg.max_iters
    metrics = runner.train_and_test(cfg, config.dataset, encoder, env, config.at_once)
    env.report(
        protocol={
            "framework": "mmdet", "head": "Mask R-CNN", "schedule": schedule, "iterations": iterations,
            "batch": cfg.batch_size, "test": "single scale", "test_resolution": cfg.image_size,
        },
        images_asked={config.dataset: asked},
        images_evaluated={config.dataset: int(metrics.pop("images"))},
    )  # fmt: skip
    return metrics


def fill_encoder(cfg: Any, encoder: Any) -> None:
    """Puts in what follows from the encoder: width, depth, strides and normalisation."""
    from evaluate.mm.resnet import ResNetBackbone, widths
    from evaluate.mm.vitdet import ViTDetBackbone

    spec, model = encoder.spec, cfg.model
    if spec.family == "vit":
        strides = [spec.patch_size // 4, spec.patch_size // 2, spec.patch_size, spec.patch_size * 2, spec.patch_size * 4]
        model.backbone.update(ViTDetBackbone.arguments(spec, encoder.model.state_dict()))
        model.neck.in_channels = spec.embed_dim
        cfg.optim_wrapper.paramwise_cfg.num_layers = spec.depth
        if spec.depth in LARGE and model.backbone.drop_path:  # the demo has none
            model.backbone.drop_path, cfg.optim_wrapper.paramwise_cfg.layer_decay = LARGE[spec.depth]
    else:
        strides = [4, 8, 16, 32, 64]
        model.backbone.update(ResNetBackbone.arguments(spec, encoder.model.state_dict()))
        model.neck.in_channels = widths(spec)
    model.data_preprocessor.mean = [255 * value for value in spec.mean]
    model.data_preprocessor.std = [255 * value for value in spec.std]
    model.rpn_head.anchor_generator.strides = strides
    model.roi_head.bbox_roi_extractor.featmap_strides = strides[:4]
    model.roi_head.mask_roi_extractor.featmap_strides = strides[:4]


def fill_data(cfg: Any, dataset: str, env: Env) -> dict[str, Any]:
    """Puts in folders, classes and limits; returns the parsed validation annotations (the images that the metric asks for)."""
    from evaluate.mm.datasets import read_annotations

    train, val = (env.data_root / name for name in ANNOTATIONS[dataset])
    categories = sorted(read_annotations(train)["categories"], key=lambda category: category["id"])
    for loader, annotations in ((cfg.train_dataloader, train), (cfg.test_dataloader, val)):
        loader.num_workers = env.workers
        loader.persistent_workers = env.workers > 0
        loader.dataset.update(annotations=str(annotations), images=str(env.data_root / "coco"), limit=env.limit, seed=env.seed)
    cfg.train_dataloader.sampler.seed = env.seed
    cfg.test_evaluator.update(annotations=str(val), limit=env.limit)
    head = cfg.model.roi_head
    head.bbox_head.num_classes = head.mask_head.num_classes = len(categories)
    if "image_counts" in head.bbox_head.loss_cls:
        if not all("image_count" in category for category in categories):
            raise UserError(f"{train} has categories without image_count, which every LVIS v1 file has; fetch it again")
        head.bbox_head.loss_cls.image_counts = [category["image_count"] for category in categories]
    content = read_annotations(Path(val))
    content["images"] = content["images"][: env.limit]
    return content


if __name__ == "__main__":
    sys.exit(main("detection"))
