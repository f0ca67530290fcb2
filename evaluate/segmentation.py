"""Semantic segmentation: mean intersection over union on ADE20k's validation pictures.

Protocol: MAE's, as the SiameseIM paper; UPerNet on the whole fine-tuned encoder, 160,000 iterations of 16 crops of 512 pixels, layer
decay 0.65, sliding windows at a single scale (miou, the table's column) and, where multi_scale is set, at six scales and mirrored
(miou_ms). All numbers are in mm_configs/; the final iteration is what is measured.
Metric: mIoU in percent over the 150 classes that occur. Cost: 8 V100 for about a day and a half; the demo half a minute on one core.

    python -m evaluate.segmentation --ckpt FILE --data-root DIR
"""

import sys
from dataclasses import dataclass
from typing import Any

from evaluate.data import layouts
from evaluate.harness.task import main
from evaluate.runtime import distributed, precision
from evaluate.runtime.env import Env


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
    from evaluate.mm import recipes

    layouts.require(env.data_root, "ade20k")
    recipes.require_packages("mmengine", "mmcv.ops", "mmdet", "mmseg.models")
    from evaluate.mm import runner, segmenter

    env.device = distributed.start(env.device)
    schedule = "160k" if config.schedule == "paper" else config.schedule
    cfg = recipes.read_recipe(f"upernet_{encoder.spec.family}_{schedule}_ade20k")
    segmenter.fill_encoder(cfg, encoder)
    recipes.shorten(cfg, config.iterations, config.batch_size, config.learning_rate)
    asked = segmenter.fill_data(cfg, env)
    iterations = cfg.train_cfg.max_iters
    segmenter.require_two_crops(cfg, config.at_once, env.device)
    views = segmenter.multi_scale_loader(cfg) if config.multi_scale else None
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


if __name__ == "__main__":
    sys.exit(main("segmentation"))
