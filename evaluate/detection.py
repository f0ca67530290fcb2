"""Object detection and instance segmentation: COCO box AP and mask AP, and LVIS box AP, mask AP and those of its rare categories.

Protocol: ViTDet, as the SiameseIM paper; Mask R-CNN on the whole fine-tuned encoder, 100 epochs of large-scale jitter at 1024 pixels,
layer decay 0.7, single-scale test. LVIS adds repeat factors and the federated loss. All numbers are in mm_configs/; the final
iteration is what is measured. Metric: AP over IoU 0.5 to 0.95 in percent, by faster-coco-eval.
Cost: COCO 64 A100 for about half a day (or one for a month); the demo half a minute on one core.
ResNets are measured by FPN or, as MoCo and SimSiam do, by C4, on PASCAL VOC too (AP by the rules of 2007): mm_configs/README.md.

    python -m evaluate.detection --ckpt FILE --data-root DIR [--set dataset=lvis] [--set recipe=NAME]
"""

import sys
from dataclasses import dataclass
from typing import Any

from evaluate.data import layouts
from evaluate.data.coco import ANNOTATIONS, IMAGES
from evaluate.harness.task import main
from evaluate.runtime import distributed, precision
from evaluate.runtime.env import Env
from evaluate.runtime.errors import UserError

RECIPES = {  # family of the encoder, setting, data set: file of mm_configs/
    ("vit", "paper", "coco"): "mask_rcnn_vitdet_100ep_coco",
    ("vit", "paper", "lvis"): "mask_rcnn_vitdet_100ep_lvis",
    ("vit", "demo", "coco"): "mask_rcnn_vitdet_demo_coco",
    ("vit", "demo", "lvis"): "mask_rcnn_vitdet_demo_lvis",
    ("resnet", "paper", "coco"): "mask_rcnn_resnet_fpn_1x_coco",
    ("resnet", "paper", "lvis"): "mask_rcnn_resnet_fpn_1x_lvis",
    ("resnet", "paper", "voc"): "faster_rcnn_resnet_c4_24k_voc",
    ("resnet", "demo", "coco"): "mask_rcnn_resnet_fpn_demo_coco",
    ("resnet", "demo", "lvis"): "mask_rcnn_resnet_fpn_demo_lvis",
}
LARGE = {24: (0.4, 0.8), 32: (0.5, 0.9)}  # depth: drop path and layer decay of detectron2's ViTDet-L and -H


@dataclass(frozen=True)
class Config:
    """What is trained on what; a recipe's numbers stand in ``mm_configs/<recipe>.py``."""

    dataset: str = "coco"  # coco, lvis or voc
    recipe: str = "paper"  # the paper's for the encoder's family, demo for the toy world, or a file of mm_configs/
    iterations: int | None = None  # instead of the recipe's; warm-up and steps shrink with it
    batch_size: int | None = None  # images an iteration over all processes, instead of the recipe's
    learning_rate: float | None = None  # at the last layer, instead of the recipe's
    at_once: int | None = None  # images a process takes at once; a larger share of the batch is accumulated

    def __post_init__(self) -> None:
        if self.dataset not in ANNOTATIONS:
            raise ValueError(f"dataset is coco, lvis or voc, not {self.dataset!r}")
        if self.recipe not in ("paper", "demo") and not self.recipe.endswith(f"_{self.dataset}"):
            raise ValueError(f"recipe {self.recipe!r} is not for {self.dataset}: give paper, demo or a file of mm_configs/ that ends in it")
        for name in ("iterations", "batch_size", "learning_rate", "at_once"):
            if getattr(self, name) is not None and getattr(self, name) <= 0:
                raise ValueError(f"{name} must be positive, not {getattr(self, name)}")


PRESETS = {
    "paper": Config(),
    # half a minute on one core: small heads, pictures of 96 pixels, some hundred iterations
    "demo": Config(recipe="demo"),
}


def reads(config: Config) -> tuple[str, ...]:
    """The one set that is trained and tested on."""
    return (config.dataset,)


def run(encoder: Any, config: Config, env: Env) -> dict[str, float]:
    """Trains a detector; returns ``box_ap`` and ``mask_ap``, each with ``50`` and ``75``, for LVIS ``_rare``, ``_common``, ``_frequent``.

    VOC has boxes only.

    Raises:
        Skip: no data or no mm* packages.
        UserError: a recipe that there is not, or not for this encoder.
    """
    layouts.require(env.data_root, config.dataset)
    from evaluate.mm import runner

    env.device = distributed.start(env.device)
    runner.require_packages("mmengine", "mmcv.ops", "mmdet.models", "faster_coco_eval")
    name = recipe_of(config, encoder.spec.family)
    cfg = runner.read_recipe(name)
    fill_encoder(cfg, encoder)
    runner.shorten(cfg, config.iterations, config.batch_size, config.learning_rate)
    asked = fill_data(cfg, config.dataset, env)
    iterations = cfg.train_cfg.max_iters
    metrics = runner.train_and_test(cfg, config.dataset, encoder, env, config.at_once)
    head, _, schedule = name.removesuffix(f"_{config.dataset}").rpartition("_")
    env.report(
        protocol={
            "framework": "mmdet", "recipe": name, "head": head, "schedule": schedule, "iterations": iterations,
            "batch": cfg.batch_size, "test": "single scale", "test_resolution": cfg.image_size,
            "precision": precision.resolve("auto", env.device),
        },
        images_asked={config.dataset: asked},
        images_evaluated={config.dataset: int(metrics.pop("images"))},
    )  # fmt: skip
    return metrics


def recipe_of(config: Config, family: str) -> str:
    """The file of mm_configs/ for an encoder of this family. Raises UserError where there is none, or another family's is asked for."""
    own, other = ("_vitdet_", "_resnet_") if family == "vit" else ("_resnet_", "_vitdet_")
    name = RECIPES.get((family, config.recipe, config.dataset), config.recipe)
    if name in PRESETS:
        known = ", ".join(sorted({f"{setting} of {dataset}" for kind, setting, dataset in RECIPES if kind == family}))
        raise UserError(f"there is no {config.recipe} recipe of {config.dataset} for a {family} encoder; there is {known}")
    if other in name or own not in name:
        raise UserError(f"recipe {name} is not for a {family} encoder; choose one with {own.strip('_')} in its name from mm_configs/")
    return name


def fill_encoder(cfg: Any, encoder: Any) -> None:
    """Puts in what follows from the encoder: width, depth, strides and normalisation."""
    from evaluate.mm.resnet import ResNetBackbone, widths
    from evaluate.mm.vitdet import ViTDetBackbone

    spec, model = encoder.spec, cfg.model
    strides = [4, 8, 16, 32, 64]
    if spec.family == "vit":
        strides = [spec.patch_size * stride // 16 for stride in strides]
        model.backbone.update(ViTDetBackbone.arguments(spec, encoder.model.state_dict()))
        model.neck.in_channels = spec.embed_dim
        cfg.optim_wrapper.paramwise_cfg.num_layers = spec.depth
        if spec.depth in LARGE and model.backbone.drop_path:  # the demo has none
            model.backbone.drop_path, cfg.optim_wrapper.paramwise_cfg.layer_decay = LARGE[spec.depth]
    else:
        model.backbone.update(ResNetBackbone.arguments(spec, encoder.model.state_dict()))
        if "neck" in model:
            model.neck.in_channels = widths(spec)
        else:
            _fill_c4(model, ResNetBackbone.arguments(spec, {}), *widths(spec)[2:])
    model.data_preprocessor.mean = [255 * value for value in spec.mean]
    model.data_preprocessor.std = [255 * value for value in spec.std]
    if "neck" in model:
        model.rpn_head.anchor_generator.strides = strides
        model.roi_head.bbox_roi_extractor.featmap_strides = strides[:4]
        model.roi_head.mask_roi_extractor.featmap_strides = strides[:4]


def _fill_c4(model: Any, arguments: dict[str, Any], before: int, after: int) -> None:
    """The channels before and after the encoder's last stage, which is a part of the head."""
    model.rpn_head.update(in_channels=before, feat_channels=before)
    model.roi_head.shared_head.update(arguments)
    model.roi_head.bbox_roi_extractor.out_channels = before
    model.roi_head.bbox_head.in_channels = after
    if "mask_head" in model.roi_head:
        model.roi_head.mask_head.in_channels = after


def fill_data(cfg: Any, dataset: str, env: Env) -> int:
    """Puts in folders, classes and limits; returns how many images are to be tested."""
    train, val = (env.data_root / name for name in ANNOTATIONS[dataset])
    for loader, annotations in ((cfg.train_dataloader, train), (cfg.test_dataloader, val)):
        loader.num_workers = env.workers
        loader.persistent_workers = env.workers > 0
        loader.dataset.update(annotations=str(annotations), images=str(env.data_root / IMAGES[dataset]), limit=env.limit, seed=env.seed)
    cfg.train_dataloader.sampler.seed = env.seed
    cfg.test_evaluator.update(annotations=str(val), limit=env.limit)
    if dataset == "voc":
        from evaluate.data.voc import read_voc

        return len(read_voc(val, [cfg.test_evaluator.folder])["images"][: env.limit])
    from evaluate.data.coco import read_annotations, require_scorable

    categories = sorted(read_annotations(train)["categories"], key=lambda category: category["id"])
    counts = [category.get("image_count") for category in categories]
    if dataset == "lvis" and None in counts:
        raise UserError(f"{train} has categories without image_count, which every LVIS v1 file has; fetch it again")
    fill_classes(cfg, counts)
    return require_scorable(val, read_annotations(val), env.limit)


def fill_classes(cfg: Any, image_counts: list[int | None]) -> None:
    """Puts in the number of classes and, for the federated loss, how many training images hold each."""
    head = cfg.model.roi_head
    for part in (head.bbox_head, head.mask_head):
        part.num_classes = len(image_counts)
        if "image_counts" in part.get("loss_cls", {}):
            part.loss_cls.image_counts = image_counts


if __name__ == "__main__":
    sys.exit(main("detection"))
