"""Semantic segmentation: mean intersection over union on ADE20k's validation pictures.

Protocol: MAE's, as the SiameseIM paper; UPerNet on the whole fine-tuned encoder, 160,000 iterations of 16 crops of 512 pixels, layer
decay 0.65, sliding windows at a single scale (miou, the table's column) and, where multi_scale is set, at six scales and mirrored
(miou_ms). All numbers are in mm_configs/; the final iteration is what is measured.
Metric: mIoU in percent over the 150 classes that occur. Cost: 8 V100 for about a day and a half; the demo half a minute on one core.

    python -m evaluate.segmentation --ckpt FILE --data-root DIR
"""

import copy
import sys
from dataclasses import dataclass
from typing import Any

from evaluate.data import layouts
from evaluate.harness.task import main
from evaluate.runtime import distributed, precision
from evaluate.runtime.env import Env
from evaluate.runtime.errors import UserError


@dataclass(frozen=True)
class Config:
    """What is trained; a recipe's numbers stand in ``mm_configs/upernet_<family>_<schedule>_ade20k.py``."""

    schedule: str = "paper"  # which recipe: the paper's (160k), or demo for the toy world
    iterations: int | None = None  # instead of the recipe's; the warm-up shrinks with it
    batch_size: int | None = None  # crops an iteration over all processes, instead of the recipe's
    learning_rate: float | None = None  # at the last layer, instead of the recipe's
    at_once: int | None = None  # crops a process takes at once; a larger share of the batch is accumulated
    precision: str = "auto"  # of the training: auto (fp16 on a GPU, fp32 on a CPU), fp32, fp16 or bf16
    multi_scale: bool = True  # also test at several scales and mirrored, which takes about 20 times as long as a single one

    def __post_init__(self) -> None:
        for name in ("iterations", "batch_size", "learning_rate", "at_once"):
            if getattr(self, name) is not None and getattr(self, name) <= 0:
                raise ValueError(f"{name} must be positive, not {getattr(self, name)}")
        if self.precision not in precision.CHOICES:
            raise ValueError(f"precision is one of {', '.join(precision.CHOICES)}, not {self.precision!r}")


PRESETS = {
    "paper": Config(),
    # half a minute on one core: small heads, crops of 64 pixels, 150 iterations
    "demo": Config(schedule="demo", multi_scale=False),
}


def reads(config: Config) -> tuple[str, ...]:
    """ADE20k."""
    return ("ade20k",)


def run(encoder: Any, config: Config, env: Env) -> dict[str, float]:
    """Fine-tunes a segmenter and returns ``miou`` and ``aacc`` (pixel accuracy), and both with ``_ms`` at several scales.

    Raises:
        Skip: no data or no mm* packages.
        UserError: data that do not fit together, or settings that cannot train.
    """
    layouts.require(env.data_root, "ade20k")
    from evaluate.mm import runner

    env.device = distributed.start(env.device)
    runner.require_packages("mmengine", "mmcv.ops", "mmdet", "mmseg.models")
    schedule = "160k" if config.schedule == "paper" else config.schedule
    cfg = runner.read_recipe(f"upernet_{encoder.spec.family}_{schedule}_ade20k")
    fill_encoder(cfg, encoder)
    runner.shorten(cfg, config.iterations, config.batch_size, config.learning_rate)
    asked = fill_data(cfg, env)
    iterations = cfg.train_cfg.max_iters
    require_two_crops(cfg, config, env.device)
    views = multi_scale_loader(cfg) if config.multi_scale else None
    metrics = runner.train_and_test(cfg, "ade20k", encoder, env, config.at_once, config.precision, views)
    seen = {int(metrics.pop(name)) for name in ("images", "images_ms") if name in metrics}
    env.report(
        protocol={
            "framework": "mmseg", "head": "UPerNet", "schedule": schedule, "iterations": iterations,
            "batch": cfg.batch_size, "test": "single scale", "test_resolution": cfg.crop,
            "precision": precision.resolve(config.precision, env.device),
            **({"test of the _ms metrics": f"ratios {list(cfg.ratios)}, mirrored"} if config.multi_scale else {}),
        },
        images_asked={"ade20k": asked},
        images_evaluated={"ade20k": min(seen)},
    )  # fmt: skip
    return metrics


def require_two_crops(cfg: Any, config: Config, device: str) -> None:
    """Raises UserError where BatchNorm of a map pooled to one pixel would see a single value: one crop at once in one process."""
    _, size = distributed.world()
    synchronised = size > 1 and device.startswith("cuda")
    share = cfg.batch_size // size
    if min(config.at_once or share, share) == 1 and not synchronised:
        raise UserError("UPerNet's BatchNorm needs at least two crops at once in a process; set batch_size or at_once higher")


def multi_scale_loader(cfg: Any) -> Any:
    """The recipe's test data, each picture as its views at the recipe's ratios."""
    from evaluate.mm.labels import LoadLabels, LoadPicture
    from evaluate.mm.multi_scale import Views

    loader = copy.deepcopy(cfg.test_dataloader)
    loader.dataset.pipeline = [{"type": LoadPicture}, {"type": LoadLabels}, {"type": Views, "crop": cfg.crop, "ratios": cfg.ratios}]
    return loader


def fill_encoder(cfg: Any, encoder: Any) -> None:
    """Puts in what follows from the encoder: width, depth and normalisation."""
    from evaluate.mm.resnet import ResNetBackbone, widths
    from evaluate.mm.segmentation_backbone import SegmentationBackbone

    spec, model = encoder.spec, cfg.model
    if spec.family == "vit":
        model.backbone.update(SegmentationBackbone.arguments(spec, encoder.model.state_dict()))
        model.neck.embed_dim = spec.embed_dim
        cfg.optim_wrapper.paramwise_cfg.num_layers = spec.depth
        channels = [spec.embed_dim] * 4
    else:
        model.backbone.update(ResNetBackbone.arguments(spec, encoder.model.state_dict()))
        channels = widths(spec)
    model.data_preprocessor.mean = [255 * value for value in spec.mean]
    model.data_preprocessor.std = [255 * value for value in spec.std]
    model.decode_head.in_channels = channels
    model.decode_head.channels = model.decode_head.channels or spec.embed_dim
    model.auxiliary_head.in_channels = channels[2]


def fill_data(cfg: Any, env: Env) -> int:
    """Puts in folders, classes and limits; returns how many validation pictures are asked for.

    Raises:
        UserError: a picture without a label map, or the reverse; also among what is read only after the training.
    """
    from evaluate.data.ade20k import class_names, paired_files

    root = env.data_root / "ade20k"
    for loader in (cfg.train_dataloader, cfg.test_dataloader):
        loader.num_workers = env.workers
        loader.persistent_workers = env.workers > 0
        loader.dataset.update(root=str(root), limit=env.limit, seed=env.seed)
    cfg.train_dataloader.sampler.seed = env.seed
    cfg.model.decode_head.num_classes = cfg.model.auxiliary_head.num_classes = len(class_names(root))
    return len(list(paired_files(root, "validation")[0])[: env.limit])


if __name__ == "__main__":
    sys.exit(main("segmentation"))
