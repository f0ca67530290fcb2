"""The fine-tuned classifier on four harder test sets (columns IN-A, IN-R, IN-Sketch and IN-C of the SiameseIM table).

Protocol: nothing is trained. IN-A and IN-R: arg-max over their own 200 classes (the sets' authors' code); the score over all classes
and the clean score of val on the same classes stand beside it. IN-Sketch: all classes. IN-C: top-1 errors of 15 corruptions, mean
over 5 severities, each over AlexNet's; the column is 100 - mCE. Resize 256 bicubic and CenterCrop 224 as in fine-tuning; IN-C's
published images are 224 px already and are only cropped.
Metrics in percent: imagenet_a_top1, imagenet_r_top1, imagenet_sketch_top1, imagenet_c (100 - mCE).
Cost: 3.9 million forward passes, about an hour and a half on one GPU for ViT-B. Toy world: some twenty seconds.

    python -m evaluate.robustness --ckpt FILE --classifier OUT/NAME/finetune/classifier.safetensors --data-root DIR
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from evaluate import classifier as classifiers
from evaluate import distributed, metrics, precision
from evaluate.data import layouts
from evaluate.data.imagenet import ImageSet, concatenate, robustness_set, val_set
from evaluate.errors import Skip, UserError
from evaluate.imagenet_c import ALEXNET_ERROR, SEVERITIES, mean_corruption_error
from evaluate.task import Env, main

SETS = ("imagenet_a", "imagenet_r", "imagenet_sketch", "imagenet_c")
Measure = Callable[..., dict[str, torch.Tensor]]


@dataclass(frozen=True)
class Config:
    """The protocol's numbers; size and interpolation of the test crop are those the classifier was fine-tuned for."""

    corrupted_resize: int | None = None  # IN-C's published images are cropped already; 256 for a set made at full size
    precision: str = "auto"  # fp16 on CUDA, fp32 on a CPU; or fp32, bf16, fp16

    def __post_init__(self) -> None:
        precision.resolve(self.precision, "cpu")


PRESETS = {"paper": Config(), "demo": Config()}


def reads(config: Config) -> tuple[str, ...]:
    """Names of the data sets."""
    return ("imagenet", *SETS)


def run(encoder: Any, config: Config, env: Env) -> dict[str, float]:
    """The four columns and the numbers beside them, in percent; a set that is absent gives none, and its reason goes into the record.

    Raises Skip without a classifier, without ImageNet (its class list), or where all four sets are absent.
    """
    if env.classifier is None or not env.classifier.is_file():
        raise Skip("robustness measures a fine-tuned classifier and there is none; run python -m evaluate.finetune, then give --classifier")
    layouts.require(env.data_root, "imagenet")
    skipped = absent(env)
    if len(skipped) == len(SETS):
        raise Skip("; ".join(skipped.values()))
    env.device = distributed.start(env.device)
    model, classes, preprocessing = classifiers.load(env.classifier, encoder)
    model.to(env.device)
    arithmetic = precision.resolve(config.precision, env.device)
    val = val_set(env.data_root, env.limit)
    if classes != val.classes:
        raise UserError(f"{env.classifier} knows {len(classes)} classes, not the {len(val.classes)} of imagenet/train; fine-tune on these")

    def measure(images: ImageSet, crop: Any = preprocessing, **subsets: torch.Tensor) -> dict[str, torch.Tensor]:
        env.report(images_asked={images.name: images.asked}, images_evaluated={images.name: len(images)})
        return classifiers.outcomes(model, images, crop, env, arithmetic, subsets)

    folders = {name: env.data_root / layouts.LAYOUTS[name][0] for name in SETS[:3] if name not in skipped}
    sets = {name: robustness_set(name, env.data_root, folder, env.limit) for name, folder in folders.items()}
    result = natural_shifts(val, sets, measure, env)
    if "imagenet_c" not in skipped:
        crop = replace(preprocessing, resize=config.corrupted_resize)
        result.update(corruptions(env, lambda images: measure(images, crop)["top1"]))
    env.report(
        protocol={
            "head": "fine-tuned classifier", "logit_mask": "200 classes of IN-A and of IN-R", "test_resolution": preprocessing.crop,
            "precision": arithmetic,
        },
        skipped=skipped,
    )  # fmt: skip
    return result


def absent(env: Env) -> dict[str, str]:
    """The reason for each set that is not there."""
    reasons = {}
    for name in SETS:
        try:
            layouts.require(env.data_root, name)
        except Skip as reason:
            reasons[name] = str(reason)
    return reasons


def natural_shifts(val: ImageSet, sets: dict[str, ImageSet], measure: Measure, env: Env) -> dict[str, float]:
    """IN-A and IN-R among their own classes, over all classes and clean; IN-Sketch over all classes; val itself."""
    masked = {name: torch.from_numpy(sets[name].present) for name in ("imagenet_a", "imagenet_r") if name in sets}
    clean = measure(val, **masked)
    result = {"clean_top1": metrics.percent(clean["top1"])}
    counts = {"clean_top1": len(val)}
    for name, images in sets.items():
        outcome = measure(images, **({name: masked[name]} if name in masked else {}))
        result[f"{name}_top1"], counts[f"{name}_top1"] = metrics.percent(outcome.get(name, outcome["top1"])), len(images)
        if name in masked:
            same = torch.from_numpy(np.isin(val.labels, images.present))
            result[f"{name}_top1_all_classes"], counts[f"{name}_top1_all_classes"] = metrics.percent(outcome["top1"]), len(images)
            if same.any():
                result[f"{name}_clean_top1"], counts[f"{name}_clean_top1"] = metrics.percent(clean[name][same]), int(same.sum())
    env.report(standard_error={key: metrics.standard_error(result[key], count) for key, count in counts.items()})
    return result


def corruptions(env: Env, correct_of: Callable[[ImageSet], torch.Tensor]) -> dict[str, float]:
    """IN-C from one pass over its 75 folders; the errors of each corruption and severity go into the record."""
    cells = [(name, severity) for name in ALEXNET_ERROR for severity in SEVERITIES]
    limit = None if env.limit is None else max(1, env.limit // len(cells))
    root = env.data_root / "imagenet-c"
    parts = [robustness_set("imagenet_c", env.data_root, root / name / str(severity), limit) for name, severity in cells]
    wrong = ~correct_of(concatenate("imagenet_c", parts)).numpy()
    table: dict[str, dict[str, float]] = {name: {} for name in ALEXNET_ERROR}
    begin = 0
    weighted, images = [], []
    for (name, severity), part in zip(cells, parts, strict=True):
        errors = wrong[begin : begin + len(part)]
        table[name][str(severity)] = 100 * float(errors.mean())
        weighted.append(errors / (ALEXNET_ERROR[name] * len(part)) * (100 / len(cells)))
        images += [f"{file.parent.name}/{file.stem}" for file in part.files]
        begin += len(part)
    by_corruption = {name: float(np.mean(list(row.values()))) for name, row in table.items()}
    mce = mean_corruption_error({name: error / 100 for name, error in by_corruption.items()})
    # the 75 versions of an image go wrong together, so the deviation is over images: mCE is the sum of their shares
    _, which = np.unique(images, return_inverse=True)
    shares = np.bincount(which, weights=np.concatenate(weighted))
    error = float(shares.std() * np.sqrt(len(shares)))
    env.report(
        protocol={"corruption_errors": by_corruption, "severity_errors": table},
        standard_error={"imagenet_c": error, "imagenet_c_mce": error},
    )
    mean = float(np.mean(list(by_corruption.values())))
    return {"imagenet_c": 100 - mce, "imagenet_c_mce": mce, "imagenet_c_mean_error": mean}


if __name__ == "__main__":
    sys.exit(main("robustness"))
