"""A detector's recipe, completed from the encoder and the data."""

import sys
from typing import Any

from mmengine.config import Config, ConfigDict

from evaluate.data.coco import ANNOTATIONS, IMAGES, check_instances
from evaluate.data.published_counts import size
from evaluate.data.voc import CLASSES, check_voc
from evaluate.encoder.model import Encoder
from evaluate.mm.backbones.layers import padded_side
from evaluate.mm.backbones.pyramid import PyramidBackbone
from evaluate.mm.backbones.resnet import ResNetBackbone, widths
from evaluate.mm.backbones.vitdet import ViTDetBackbone
from evaluate.runtime import distributed
from evaluate.runtime.env import Env
from evaluate.runtime.errors import UserError

LARGE = {24: (0.4, 0.8), 32: (0.5, 0.9)}  # depth: drop path and layer decay of detectron2's ViTDet-L and -H


def set_image_size(cfg: Config, side: int) -> None:
    """Takes pictures of another side than the recipe's, in training and in testing.

    Raises:
        UserError: a recipe whose pictures are not square.
    """
    jitter, test = (loader.dataset.pipeline[1] for loader in (cfg.train_dataloader, cfg.test_dataloader))
    if "img_size" not in cfg.model.backbone:
        raise UserError(
            f"image_size {side} is a setting of the recipes with square pictures, which are ViTDet's; leave it out"
        )
    cfg.image_size = cfg.model.backbone.img_size = jitter.size = test.shortest = test.longest = side


def fill_encoder(cfg: Config, encoder: Encoder) -> None:
    """Puts in what follows from the encoder: width, depth, the padding, strides and normalization.

    A ViT's strides are its patch size times 1/4, 1/2, 1, 2 and 4, which need not be whole: 3.5 of 14 px.
    """
    spec, model = encoder.spec, cfg.model
    strides: list[float] = [4, 8, 16, 32, 64]
    if spec.family == "vit":
        strides = [spec.patch_size * stride / 16 for stride in strides]
        model.backbone.img_size = padded_side(model.backbone.img_size, spec.patch_size)
        model.data_preprocessor.pad_size_divisor = model.backbone.img_size  # a square
        model.backbone.update(ViTDetBackbone.arguments(spec, encoder.model.state_dict()))
        model.neck.in_channels = spec.embed_dim
        cfg.optim_wrapper.paramwise_cfg.num_layers = spec.depth
        if spec.depth in LARGE and model.backbone.drop_path:  # the demo has none
            model.backbone.drop_path, cfg.optim_wrapper.paramwise_cfg.layer_decay = LARGE[spec.depth]
    elif spec.recipes == "pyramid":
        model.backbone.update(type=PyramidBackbone, **PyramidBackbone.arguments(spec, {}))
        model.neck.in_channels = list(spec.maps)
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


def _fill_c4(model: ConfigDict, arguments: dict[str, Any], before: int, after: int) -> None:
    """The channels before and after the encoder's last stage, which is a part of the head."""
    model.rpn_head.update(in_channels=before, feat_channels=before)
    model.roi_head.shared_head.update(arguments)
    model.roi_head.bbox_roi_extractor.out_channels = before
    model.roi_head.bbox_head.in_channels = after
    if "mask_head" in model.roi_head:
        model.roi_head.mask_head.in_channels = after


def fill_data(cfg: Config, dataset: str, env: Env) -> int:
    """Puts in folders, classes and limits; returns how many images are to be tested."""
    train, val = (env.data_root / name for name in ANNOTATIONS[dataset])
    for loader, annotations in ((cfg.train_dataloader, train), (cfg.test_dataloader, val)):
        loader.num_workers = env.workers
        loader.persistent_workers = env.workers > 0
        loader.dataset.update(
            annotations=str(annotations), images=str(env.data_root / IMAGES[dataset]), limit=env.limit, seed=env.seed
        )
    cfg.train_dataloader.sampler.seed = env.seed
    cfg.test_evaluator.update(annotations=str(val), limit=env.limit)
    if dataset == "voc":
        counts = {name: len(pictures) for name, pictures in check_voc(train, env.limit).items()}
        env.report(sizes={f"voc_{name}": size(count, len(CLASSES)) for name, count in counts.items()})
        return min(counts["test"], env.limit or counts["test"])
    found = check_instances(env.data_root, dataset, env.limit)
    if found.left_out and distributed.rank() == 0:
        print(
            f"{train}: the training leaves out the objects without a usable box or outline: {found.left_out}",
            file=sys.stderr,
        )
    fill_classes(cfg, [category.get("image_count") for category in found.categories])
    images = {"train": found.train_images, "val": found.val_images}
    classes = len(found.categories)
    env.report(sizes={f"{dataset}_{split}": size(count, classes) for split, count in images.items()})
    return found.tested


def fill_classes(cfg: Config, image_counts: list[int | None]) -> None:
    """Puts in the number of classes and, for the federated loss, how many training images hold each."""
    head = cfg.model.roi_head
    for part in (head.bbox_head, head.mask_head):
        part.num_classes = len(image_counts)
        if "image_counts" in part.get("loss_cls", {}):
            part.loss_cls.image_counts = image_counts
