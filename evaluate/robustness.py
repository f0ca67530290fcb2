"""The fine-tuned classifier on four harder test sets (columns IN-A, IN-R, IN-Sketch and IN-C of the SiameseIM table),
and on further ones where they are there.

Protocol: nothing is trained. IN-A and IN-R: arg-max over their own 200 classes, as in their authors' code; the record
also has the accuracy over all classes, and val's accuracy on the same classes. IN-Sketch: arg-max over all classes.
IN-C: the top-1 error of each of 15 corruptions, averaged over 5 severities and divided by AlexNet's; the column is
100 - mCE. Resize 256 bicubic and CenterCrop 224 as in fine-tuning; IN-C's published images are 224 px already and are
only cropped. A killed run resumes where it stopped. Metrics in percent: imagenet_a_top1, imagenet_r_top1,
imagenet_sketch_top1, imagenet_c (100 - mCE). Where IN-C is absent, or with --set corruptions=made, val is corrupted
instead, 200 images for each corruption and severity; --set corrupted_images=1000 takes 1,000. Both give an estimate,
marked as such, with its standard error.
Further sets (columns IN-V2, ReaL and ObjectNet; ``evaluate.data.further_sets``): arg-max over all classes. On ReaL and
ObjectNet any of an image's right classes counts; ReaL takes the answers on val. imagenet_v2_matched_top1,
imagenet_v2_threshold_top1, imagenet_v2_top_top1, imagenet_real_top1, objectnet_top1.
Cost: 3.9 million forward passes, about an hour and a half on one GPU for ViT-B. Toy world: some twenty seconds.

    python -m evaluate.robustness --ckpt FILE --data-root DIR \\
        --input classifier=OUT/NAME/finetune-KEY/classifier.safetensors
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np
from pydantic import NonNegativeInt, PositiveInt

from evaluate.data import further_sets, layouts
from evaluate.data.imagenet import FULL_CLASSES, ImageSet, class_names, robustness_set, val_set
from evaluate.data.published_counts import FURTHER, size
from evaluate.encoder import memory
from evaluate.encoder.flops import forward_gflop
from evaluate.harness.cost import CORRUPTED, Cost, Count, of_training
from evaluate.harness.task import main
from evaluate.runtime.env import Env
from evaluate.runtime.errors import Skip, UserError
from evaluate.runtime.precision import Precision
from evaluate.runtime.precision import resolve as resolve_precision
from evaluate.runtime.settings import Settings
from results.comparison import binomial
from results.ending import leave

if TYPE_CHECKING:
    from evaluate.classification.predictions import Predictor
    from evaluate.data.transforms import CenterCrop
    from evaluate.encoder import Encoder
    from evaluate.encoder.spec import EncoderSpec
    from results.predictions import Answers

MADE_IMAGES = 200  # of val, for each corruption and severity, where IN-C is absent
SETS = ("imagenet_a", "imagenet_r", "imagenet_sketch", "imagenet_c")


@dataclass(frozen=True)
class Config(Settings):
    """The protocol's numbers; size and interpolation of the test crop are those the classifier was fine-tuned for."""

    corruptions: Literal["published", "made"] = "published"
    """published reads IN-C; made corrupts val as it is read, which gives an estimate."""
    corrupted_images: PositiveInt | None = None
    """Largest number of images of each corruption and severity; gives an estimate."""
    corrupted_resize: PositiveInt | None = None
    """Short side in pixels before IN-C's crop. none: no resizing, for the published set; 256: for a full-size set."""
    precision: Precision = "auto"
    """Precision of the forward passes; auto is fp16 on CUDA and fp32 on a CPU."""
    max_unreadable_images: NonNegativeInt = 0
    """How many unreadable images of each set may be left out; the record names them."""


PRESETS = {"paper": Config(), "demo": Config()}


def reads(config: Config) -> tuple[str, ...]:
    """Names of the data sets without which there is nothing to measure: val is the clean score, train names the
    classes.
    """
    return ("imagenet",)


def reads_if_there(config: Config) -> tuple[str, ...]:
    """Names of the data sets of which each fills a column of its own; without IN-C val is corrupted instead."""
    return (*(SETS if config.corruptions == "published" else SETS[:3]), *layouts.FURTHER)


def cost(config: Config, spec: "EncoderSpec", count: Count) -> Cost:
    """What it takes: ``evaluate.harness.cost``."""
    val, there = count("imagenet/val"), count(CORRUPTED) if config.corruptions == "published" else 0
    most = config.corrupted_images or (val if config.corruptions == "made" else there or MADE_IMAGES)
    each = min(there or val, most)
    corrupted = len(layouts.CORRUPTIONS) * len(layouts.SEVERITIES) * each
    images = val + corrupted + sum(count(part) for part in ("imagenet-a", "imagenet-r", "imagenet-sketch"))
    images += sum(min(count(layouts.LAYOUTS[name][0]), own) for name, (own, _) in FURTHER.items())
    needed = memory.of_passing(spec, spec.img_size, 128)
    return of_training(0, images, forward_gflop(spec, spec.img_size), memory=needed)


def run(encoder: "Encoder", config: Config, env: Env) -> dict[str, float]:
    """The columns and the numbers beside them, in percent; a set that is absent gives none, and of the paper's four its
    reason goes into the record.

    Where IN-C is absent it is estimated from val. Raises Skip without a classifier.
    """
    from evaluate.classification import classifier as classifiers
    from evaluate.classification import metrics
    from evaluate.runtime import distributed

    path = env.inputs.get("classifier")
    if path is None or not path.is_file():
        raise Skip(
            "robustness measures a fine-tuned classifier, and none is given; run evaluate.finetune, then give --input "
            "classifier=FILE"
        )
    there = layouts.without_absent_further(env.data_root, reads_if_there(config))
    skipped = layouts.absent(env.data_root, there)
    if "imagenet_c" in skipped and not any(
        layouts.locate(env.data_root, part) for part in layouts.LAYOUTS["imagenet_c"]
    ):  # where a part of it is there, the reason names what is missing
        del skipped["imagenet_c"]
        config = replace(config, corruptions="made", corrupted_images=config.corrupted_images or MADE_IMAGES)
    model, classes, crop = classifiers.load(path, encoder)
    precision = resolve_precision(config.precision, env.device)
    predict = classifiers.predictor(model.to(env.device), path, precision, env, config.max_unreadable_images)
    val = val_set(env.data_root, env.limit, env.identities)
    if classes != val.classes:
        raise UserError(
            f"{path} was fine-tuned on other classes ({len(classes)}) than those of imagenet/train "
            f"({len(val.classes)}); fine-tune again on this imagenet/train"
        )
    sets = {
        name: robustness_set(name, env.data_root, layouts.LAYOUTS[name][0], env.limit, env.identities)
        for name in SETS[:3]
        if name not in skipped
    }
    found, unusable = further([name for name in there if name not in skipped], val, env)
    skipped |= unusable
    answers, outcomes = natural_shifts(val, sets | found.v2, predict, crop)
    outcomes |= several_right(found, answers["clean_top1"], predict, crop, env)
    result = {name: metrics.percent(correct) for name, correct in outcomes.items()}
    env.report(standard_error={name: binomial(value, len(outcomes[name])) for name, value in result.items()})
    if "imagenet_c" not in skipped:
        of_corruptions, outcomes["imagenet_c"] = corrupted(config, crop, predict, env)
        result |= of_corruptions
    if distributed.rank() == 0:
        derived = {name: outcome for name, outcome in outcomes.items() if name not in answers}
        metrics.save_predictions(env.out_dir, answers, classes, derived)
    protocol = {
        "head": "fine-tuned classifier",
        "logit_mask": "200 classes of IN-A and of IN-R",
        "test_resolution": crop.crop,
        "precision": precision,
    }
    # IN-C's settings are its own; what a cell rests on marks it as the classifier's own cell is marked
    corrupted_alone = ["corruptions", "corrupted_images", "corrupted_resize"]
    env.report(
        immaterial=dict.fromkeys([*SETS[:3], *layouts.FURTHER], corrupted_alone),
        rests_on={"finetune": classifiers.how_made(path)},
    )
    env.report(protocol=protocol, skipped=skipped)
    return result


def natural_shifts(
    val: ImageSet, sets: dict[str, ImageSet], predict: "Predictor", crop: "CenterCrop"
) -> tuple[dict[str, "Answers"], dict[str, np.ndarray]]:
    """By metric what the model says of each image over all classes, and by metric whether each image is right, bool
    (n,).

    The metrics are: IN-A and IN-R among their own classes, over all classes and clean; IN-Sketch over all classes; val.
    """
    own = {name: images.scored for name, images in sets.items() if name in ("imagenet_a", "imagenet_r")}
    clean = predict(val, crop, own)
    answers, among = {"clean_top1": clean.answers}, {}
    for name, images in sets.items():
        found = predict(images, crop, {name: own[name]} if name in own else {})
        answers[f"{name}_top1_all_classes" if name in own else f"{name}_top1"] = found.answers
        if name in own:
            among[f"{name}_top1"] = found.among[name]
            among[f"{name}_clean_top1"] = clean.among[name][np.isin(clean.answers.labels, own[name])]
    correct = {name: own.correct() for name, own in answers.items()} | among
    return answers, {name: right for name, right in correct.items() if len(right)}


@dataclass(frozen=True)
class Further:
    """The further sets that are there."""

    v2: dict[str, ImageSet]
    real: np.ndarray | None
    """(n, C) bool, which classes are right for each image of val."""
    objectnet: tuple[ImageSet, np.ndarray] | None
    """Its images, and which classes are right for each."""


def further(names: Sequence[str], val: ImageSet, env: Env) -> tuple[Further, dict[str, str]]:
    """The further sets among ``names``; and of one that cannot be used the reason: the paper's columns go on."""
    v2, real, objects, unusable = dict[str, ImageSet](), None, None, dict[str, str]()
    for name in names:
        try:
            if name in further_sets.V2:
                v2[name] = further_sets.v2_set(name, env.data_root, env.limit, env.identities)
            elif name == further_sets.REAL:
                whole = val_set(env.data_root, None, env.identities)
                right = further_sets.real_labels(env.data_root, whole)
                env.report(sizes={name: size(int(right.any(axis=1).sum()), len(val.classes))})
                places = {file: row for row, file in enumerate(whole.files)}
                real = right[[places[file] for file in val.files]]
            elif name == further_sets.OBJECTNET:
                objects = further_sets.objectnet_set(env.data_root, env.limit, env.identities)
        except UserError as error:
            unusable[name] = str(error)
    return Further(v2, real, objects), unusable


def several_right(
    found: Further, clean: "Answers", predict: "Predictor", crop: "CenterCrop", env: Env
) -> dict[str, np.ndarray]:
    """By metric whether the best class of each image is among its right ones, bool (n,): ReaL, by the answers on val,
    and ObjectNet.
    """
    outcomes = {}
    if found.real is not None:
        right = np.delete(found.real, clean.left_out, axis=0)
        outcomes["imagenet_real_top1"] = further_sets.among_right(clean.top[:, 0], right)
        env.report(images_evaluated={further_sets.REAL: len(outcomes["imagenet_real_top1"])})
    if found.objectnet is not None:
        images, right = found.objectnet
        own = predict(images, further_sets.WithoutBorder(crop)).answers
        right = np.delete(right, own.left_out, axis=0)
        outcomes["objectnet_top1"] = further_sets.among_right(own.top[:, 0], right)
    return {name: right for name, right in outcomes.items() if len(right)}


def corrupted(
    config: Config, crop: "CenterCrop", predict: "Predictor", env: Env
) -> tuple[dict[str, float], np.ndarray]:
    """IN-C and each image's share of it, as ``imagenet_c.measure``; and in the record what makes it an estimate."""
    from evaluate.classification import imagenet_c

    cells_count = len(imagenet_c.CELLS)
    shares = [number for number in (config.corrupted_images, env.limit and max(1, env.limit // cells_count)) if number]
    per_cell = min(shares, default=None)
    if config.corruptions == "made":
        cells = imagenet_c.made(val_set(env.data_root, per_cell, env.identities), crop, env.seed)
    else:
        cells = imagenet_c.published(env, replace(crop, resize=config.corrupted_resize), per_cell)
    measured = imagenet_c.measure(cells, predict, env)
    asked, taken = (env.notes[name]["imagenet_c"] // cells_count for name in ("images_asked", "images_evaluated"))
    reasons = ["corrupted here from val, not the published images"] if config.corruptions == "made" else []
    reasons += [f"{taken} of {asked} images of each corruption and severity"] if per_cell and per_cell < asked else []
    if reasons and len(class_names(env.data_root / "imagenet/train")) != FULL_CLASSES:
        reasons.append("100 - mCE, whose errors are relative to AlexNet's on 1,000 classes")
    if not reasons:
        env.report(immaterial={"imagenet_c": ["corrupted_images"]})  # there are no more
    else:
        error = env.notes["standard_error"]["imagenet_c"]
        env.report(
            protocol={
                "estimates": {"imagenet_c": f"IN-C is an estimate ({'; '.join(reasons)}), standard error {error:.2f}"}
            }
        )
    return measured


if __name__ == "__main__":
    leave(main, "robustness")
