"""The fine-tuned classifier on four harder test sets (columns IN-A, IN-R, IN-Sketch and IN-C of the SiameseIM table).

Protocol: nothing is trained. IN-A and IN-R: arg-max over their own 200 classes (the sets' authors' code); the score over all classes
and the clean score of val on the same classes stand beside it. IN-Sketch: all classes. IN-C: top-1 errors of 15 corruptions, mean
over 5 severities, each over AlexNet's; the column is 100 - mCE. Resize 256 bicubic and CenterCrop 224 as in fine-tuning; IN-C's
published images are 224 px already and are only cropped. Each set is read once, and a killed run goes on where it was.
Metrics in percent: imagenet_a_top1, imagenet_r_top1, imagenet_sketch_top1, imagenet_c (100 - mCE).
Without IN-C: --set corruptions=made corrupts val here, --set corrupted_images=1000 takes so many images of each corruption and
severity; both give an estimate, marked as one, with its standard error.
Cost: 3.9 million forward passes, about an hour and a half on one GPU for ViT-B. Toy world: some twenty seconds.

    python -m evaluate.robustness --ckpt FILE --classifier OUT/NAME/finetune/classifier.safetensors --data-root DIR
"""

import sys
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from evaluate.classification import classifier as classifiers
from evaluate.classification import imagenet_c, metrics
from evaluate.classification.predictions import Predictor
from evaluate.data import layouts
from evaluate.data.imagenet import ImageSet, robustness_set, val_set
from evaluate.data.transforms import CenterCrop
from evaluate.harness.task import main
from evaluate.runtime import distributed, precision
from evaluate.runtime.env import Env
from evaluate.runtime.errors import Skip, UserError
from results.atomic import sha256

SETS = ("imagenet_a", "imagenet_r", "imagenet_sketch", "imagenet_c")
CORRUPTIONS_FROM = ("published", "made")


@dataclass(frozen=True)
class Config:
    """The protocol's numbers; size and interpolation of the test crop are those the classifier was fine-tuned for."""

    corruptions: str = "published"  # IN-C as published; or made: val, corrupted here, an estimate
    corrupted_images: int | None = None  # at most so many images of each corruption and severity: an estimate
    corrupted_resize: int | None = None  # IN-C's published images are cropped already; 256 for a set made at full size
    precision: str = "auto"  # fp16 on CUDA, fp32 on a CPU; or fp32, bf16, fp16
    allowed_bad_images: int = 0  # so many of each set may be unreadable and are left out; the record names them

    def __post_init__(self) -> None:
        precision.resolve(self.precision, "cpu")
        if self.corruptions not in CORRUPTIONS_FROM:
            raise ValueError(f"corruptions is one of {', '.join(CORRUPTIONS_FROM)}, not {self.corruptions!r}")
        if self.corrupted_images is not None and self.corrupted_images < 1:
            raise ValueError(f"corrupted_images is a whole number from 1 on, not {self.corrupted_images}")


PRESETS = {"paper": Config(), "demo": Config()}


def reads(config: Config) -> tuple[str, ...]:
    """Names of the data sets."""
    return ("imagenet", *(SETS if config.corruptions == "published" else SETS[:3]))


def run(encoder: Any, config: Config, env: Env) -> dict[str, float]:
    """The four columns and the numbers beside them, in percent; a set that is absent gives none, and its reason goes into the record.

    Raises Skip without a classifier, without ImageNet (its class list), or where all four sets are absent.
    """
    if env.classifier is None or not env.classifier.is_file():
        raise Skip("robustness measures a fine-tuned classifier and there is none; run python -m evaluate.finetune, then give --classifier")
    layouts.require(env.data_root, "imagenet")
    skipped = absent(env, reads(config)[1:])
    if len(skipped) == len(SETS):
        raise Skip("; ".join(skipped.values()))
    env.device = distributed.start(env.device)
    model, classes, preprocessing = classifiers.load(env.classifier, encoder)
    arithmetic = precision.resolve(config.precision, env.device)
    predict = Predictor(model.to(env.device), sha256(env.classifier), arithmetic, env, config.allowed_bad_images)
    val = val_set(env.data_root, env.limit)
    if classes != val.classes:
        raise UserError(f"{env.classifier} knows {len(classes)} classes, not the {len(val.classes)} of imagenet/train; fine-tune on these")
    sets = {
        name: robustness_set(name, env.data_root, layouts.LAYOUTS[name][0], env.limit) for name in SETS[:3] if name not in skipped
    }
    result = natural_shifts(val, sets, predict, preprocessing, env)
    if "imagenet_c" not in skipped:
        result.update(corrupted(config, preprocessing, predict, env))
    env.report(
        protocol={
            "head": "fine-tuned classifier", "logit_mask": "200 classes of IN-A and of IN-R", "test_resolution": preprocessing.crop,
            "precision": arithmetic,
        },
        skipped=skipped,
    )  # fmt: skip
    return result


def absent(env: Env, names: tuple[str, ...]) -> dict[str, str]:
    """The reason for each set that is not there."""
    reasons = {}
    for name in names:
        try:
            layouts.require(env.data_root, name)
        except Skip as reason:
            reasons[name] = str(reason)
    return reasons


def natural_shifts(val: ImageSet, sets: dict[str, ImageSet], predict: Predictor, crop: CenterCrop, env: Env) -> dict[str, float]:
    """IN-A and IN-R among their own classes, over all classes and clean; IN-Sketch over all classes; val itself."""
    own = {name: images.scored for name, images in sets.items() if name in ("imagenet_a", "imagenet_r")}
    clean = predict(val, crop, own)
    scores = {"clean_top1": clean.correct["all"]}
    for name, images in sets.items():
        outcome = predict(images, crop, {name: own[name]} if name in own else {})
        scores[f"{name}_top1"] = outcome.correct[name if name in own else "all"]
        if name in own:
            scores[f"{name}_top1_all_classes"] = outcome.correct["all"]
            scores[f"{name}_clean_top1"] = clean.correct[name][np.isin(clean.labels, own[name])]
    result = {key: metrics.percent(correct) for key, correct in scores.items() if len(correct)}
    env.report(standard_error={key: metrics.standard_error(value, len(scores[key])) for key, value in result.items()})
    return result


def corrupted(config: Config, crop: CenterCrop, predict: Predictor, env: Env) -> dict[str, float]:
    """IN-C, and in the record what makes it an estimate."""
    shares = [number for number in (config.corrupted_images, env.limit and max(1, env.limit // len(imagenet_c.CELLS))) if number]
    per_cell = min(shares, default=None)
    if config.corruptions == "made":
        cells = imagenet_c.made(val_set(env.data_root, per_cell), crop, env.seed)
    else:
        cells = imagenet_c.published(env.data_root, replace(crop, resize=config.corrupted_resize), per_cell)
    result = imagenet_c.measure(cells, predict, env)
    asked, taken = (env.notes[name]["imagenet_c"] // len(imagenet_c.CELLS) for name in ("images_asked", "images_evaluated"))
    reasons = ["corrupted here from val, not the published images"] if config.corruptions == "made" else []
    reasons += [f"{taken} of {asked} images of each corruption and severity"] if per_cell and per_cell < asked else []
    if reasons:
        error = env.notes["standard_error"]["imagenet_c"]
        env.report(protocol={"estimates": {"imagenet_c": f"IN-C is an estimate ({'; '.join(reasons)}), standard error {error:.2f}"}})
    return result


if __name__ == "__main__":
    sys.exit(main("robustness"))
