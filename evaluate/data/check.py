"""Whether the data sets are what they should be, before hours are spent on them: counts, classes, and some images of
each, read in full.

    uv run run_all.py --check-data --data-root DIR [--tasks knn,robustness] [--subset]

Sets with ImageNet-1k's, COCO's or LVIS's number of classes, and ADE20k, are held against the published counts: one that
lacks images is wrong, or with --subset a part. A set of other classes is meant to be one, and is a part too. Cells of a
part are marked, and no published number stands beside them. A made world is held against itself alone. Exit status:
0 all there and right, 2 something is wrong, 3 nothing is wrong but a set is absent.
"""

import json
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from evaluate.data import coco, dense_sets, further_sets, imagenet, layouts, listing, sets, subsets, voc
from evaluate.data.archives import File
from evaluate.data.layouts import CORRUPTIONS, SEVERITIES
from evaluate.data.loader import read_image
from evaluate.data.published_counts import (
    ADE20K,
    FURTHER,
    INSTANCES,
    REAL,
    SHIFTED,
    TRAIN,
    VAL,
    VAL_PER_CLASS,
    VOC2012,
    VOC2012_OWN,
)
from evaluate.data.sets import LabelledSet
from evaluate.runtime.cli import EXIT_SKIPPED, EXIT_USER
from evaluate.runtime.errors import Skip, UserError, in_one_sentence
from evaluate.runtime.progress import track

SAMPLES = 100  # images of each set that are read in full
PUBLISHED_SIDE = 224  # pixels, of ImageNet-C's images


@dataclass(frozen=True)
class Finding:
    """What was found of one set: ``status`` is ok, part, absent or wrong, ``detail`` a sentence."""

    name: str
    status: str
    detail: str

    def __str__(self) -> str:
        return f"{self.name}: {self.status}: {self.detail}"


@dataclass
class Counts:
    """Holds the counts of one set against the published ones."""

    subset: bool
    """Whether fewer images than published are meant."""
    parts: list[str] = field(default_factory=list)
    """What is not as published, and allowed."""

    def expect(self, name: str, count: int, published: int) -> None:
        """Raises UserError for another number of images than published, unless a subset is meant."""
        if count == published:
            return
        if not self.subset:
            raise UserError(
                f"{name} has {count} images instead of the published {published}; unpack it in full, or say --subset "
                f"if a part of it is meant"
            )
        self.parts.append(f"{name} has {count} of {published} images")

    def expect_classes(self, name: str, count: int, published: int) -> bool:
        """Whether a set has the published number of classes; one that has not is a part of it."""
        if count != published:
            self.parts.append(f"{name} has {count} of {published} classes")
        return count == published


def check(data_root: Path, names: Iterable[str], samples: int = SAMPLES, subset: bool = False) -> list[Finding]:
    """A finding for each set, by its name in ``layouts.LAYOUTS``; ``subset``: fewer images than published are meant."""
    found = []
    named = layouts.without_absent_further(data_root, dict.fromkeys(names))
    for name in track(named, "checking the data"):
        try:
            layouts.require(data_root, name)
            counts = Counts(subset)
            detail = CHECKS[name](data_root, samples, counts)
            if counts.parts and not layouts.is_toy(data_root):
                found.append(Finding(name, "part", f"{', '.join(counts.parts[:3])}; its cells are marked ({detail})"))
            else:
                found.append(Finding(name, "ok", detail))
        except Skip as reason:
            found.append(Finding(name, "absent", f"{reason}; {ORIGINS[name]}"))
        except (UserError, PermissionError) as reason:
            found.append(Finding(name, "wrong", in_one_sentence(reason)))
    return found


def check_labelled(images: LabelledSet, samples: int = SAMPLES, subset: bool = False) -> Finding:
    """A finding for a labelled set besides ImageNet, as ``check``."""
    counts = Counts(subset)
    try:
        train, val = images.read()
        if images.ready and counts.expect_classes(images.name, len(train.classes), images.ready.classes):
            counts.expect(train.name, len(train), images.ready.train)
            counts.expect(val.name, len(val), images.ready.val)
        said = [*counts.parts, *filter(None, ["" if images.ready else sets.in_both(train, val)])]
        read = f"train {_read_some(train.files, samples)}, val {_read_some(val.files, samples)}"
        detail = ", ".join([read, f"{len(train.classes)} classes", *said])
        return Finding(images.name, "part" if counts.parts else "ok", detail)
    except Skip as reason:
        return Finding(images.name, "absent", str(reason))
    except (UserError, PermissionError) as reason:
        return Finding(images.name, "wrong", in_one_sentence(reason))


def report(
    data_root: Path,
    names: Iterable[str],
    samples: int = SAMPLES,
    subset: bool = False,
    needed: Iterable[str] | None = None,
    labelled: Iterable[LabelledSet] = (),
) -> int:
    """Prints a line a set; the exit status: 0, EXIT_USER where one is wrong, EXIT_SKIPPED where none is wrong and one
    absent that is ``needed`` (None: all are).
    """
    found = [*check(data_root, names, samples, subset), *(check_labelled(one, samples, subset) for one in labelled)]
    for finding in found:
        print(finding, file=sys.stderr if finding.status == "wrong" else sys.stdout)
    statuses = {finding.status for finding in found}
    absent = {finding.name for finding in found if finding.status == "absent"}
    lacking = absent if needed is None else absent.intersection(needed)
    return EXIT_USER if "wrong" in statuses else EXIT_SKIPPED if lacking else 0


def _imagenet(data_root: Path, samples: int, counts: Counts) -> str:
    train, val = imagenet.train_set(data_root), imagenet.val_set(data_root)
    if counts.expect_classes("imagenet/train", len(train.classes), imagenet.FULL_CLASSES):
        official = tuple(json.loads(imagenet.OFFICIAL_CLASSES.read_text())["imagenet"])
        if train.classes != official:
            strange = sorted(set(train.classes) - set(official))
            raise UserError(f"imagenet/train has 1000 classes, but not ImageNet-1k's, for example {strange[0]}")
        counts.expect("imagenet/train", len(train), TRAIN)
        counts.expect("imagenet/val", len(val), VAL)
        of_class = np.bincount(val.labels, minlength=len(val.classes))
        if not counts.subset and (of_class.min() != VAL_PER_CLASS or of_class.max() != VAL_PER_CLASS):
            raise UserError(
                f"imagenet/val should have {VAL_PER_CLASS} images a class; {val.classes[int(of_class.argmin())]} has "
                f"{of_class.min()}"
            )
    return (
        f"train {_read_some(train.files, samples)}, val {_read_some(val.files, samples)}, {len(train.classes)} classes"
    )


def _listed(name: str) -> Callable[[Path, int, Counts], str]:
    def check_list(data_root: Path, samples: int, counts: Counts) -> str:
        return f"{len(subsets.listed_set(name, data_root))} names, all of them in train"

    return check_list


def _shifted(name: str) -> Callable[[Path, int, Counts], str]:
    def check_set(data_root: Path, samples: int, counts: Counts) -> str:
        images = imagenet.robustness_set(name, data_root, layouts.LAYOUTS[name][0])
        if counts.expect_classes(layouts.LAYOUTS[name][0], len(images.classes), imagenet.FULL_CLASSES):
            counts.expect(layouts.LAYOUTS[name][0], len(images), SHIFTED[name])
        return f"{_read_some(images.files, samples)}, {len(images.scored)} classes"

    return check_set


def _corrupted(data_root: Path, samples: int, counts: Counts) -> str:
    expected: set[tuple[int, str]] | None = None
    each = max(1, samples // (len(SEVERITIES) * len(CORRUPTIONS)))
    for corruption in CORRUPTIONS:
        for severity in SEVERITIES:
            part = layouts.imagenet_c(corruption, severity)
            images = imagenet.robustness_set("imagenet_c", data_root, part)
            found = set(zip(images.labels.tolist(), (file.stem for file in images.files), strict=True))
            expected = expected or found
            if found != expected:
                raise UserError(
                    f"{part} should hold the same {len(expected)} images as {CORRUPTIONS[0]}/1, but it lacks "
                    f"{len(expected - found)} of them and has {len(found - expected)} in addition; unpack both again"
                )
            full = len(images.classes) == imagenet.FULL_CLASSES
            if full:
                counts.expect(part, len(images), VAL)
            elif expected is found:
                counts.expect_classes("imagenet-c", len(images.classes), imagenet.FULL_CLASSES)
            _read_some(images.files, each, PUBLISHED_SIDE if full else None)
    return (
        f"15 corruptions, 5 severities, {len(expected or ())} images each; {75 * min(each, len(expected or ()))} read"
    )


def _v2(name: str) -> Callable[[Path, int, Counts], str]:
    def check_set(data_root: Path, samples: int, counts: Counts) -> str:
        images = further_sets.v2_set(name, data_root)
        if counts.expect_classes(layouts.LAYOUTS[name][0], len(images.scored), imagenet.FULL_CLASSES):
            counts.expect(layouts.LAYOUTS[name][0], len(images), FURTHER[name][0])
        return f"{_read_some(images.files, samples)}, {len(images.scored)} classes"

    return check_set


def _real(data_root: Path, samples: int, counts: Counts) -> str:
    right = further_sets.real_labels(data_root, imagenet.val_set(data_root))
    if right.shape[1] == imagenet.FULL_CLASSES:
        counts.expect(layouts.LAYOUTS["imagenet_real"][0], int(right.any(axis=1).sum()), REAL)
    return f"{right.any(axis=1).sum()} of {len(right)} images of val have a right class"


def _objectnet(data_root: Path, samples: int, counts: Counts) -> str:
    (images, _), (published, classes) = further_sets.objectnet_set(data_root), FURTHER["objectnet"]
    if counts.expect_classes(layouts.LAYOUTS["objectnet"][0], len(images.scored), classes):
        counts.expect(layouts.LAYOUTS["objectnet"][0], len(images), published)
    return f"{_read_some(images.files, samples)} of {len(images.scored)} classes that train has"


def _instances(name: str) -> Callable[[Path, int, Counts], str]:
    def check_instances(data_root: Path, samples: int, counts: Counts) -> str:
        classes, published = INSTANCES[name]
        found, parts = coco.check_instances(data_root, name), []
        coco.forget()
        for (split, count), annotations in zip(published.items(), coco.ANNOTATIONS[name], strict=True):
            files = found.pictures[split]
            if counts.expect_classes(annotations, len(found.categories), classes):
                counts.expect(annotations, len(files), count)
            parts.append(f"{split} {_read_some(files, samples)}")
        left_out = f", objects without a usable box or outline: {found.left_out}" if found.left_out else ""
        return f"{', '.join(parts)}, {len(found.categories)} classes{left_out}"

    return check_instances


def _ade20k(data_root: Path, samples: int, counts: Counts) -> str:
    parts = []
    for split, images in dense_sets.below(data_root, "ade20k").check().items():
        if not layouts.is_toy(data_root):
            counts.expect(f"ade20k/images/{split}", len(images), ADE20K[split])
        parts.append(f"{split} {_read_some(images, samples)}")
    return ", ".join(parts)


def _voc(data_root: Path, samples: int, counts: Counts) -> str:
    found = voc.check_voc(data_root / "VOCdevkit")
    return ", ".join(f"{name} {_read_some(pictures, samples)}" for name, pictures in found.items())


def _voc2012(data_root: Path, samples: int, counts: Counts) -> str:
    found, parts = dense_sets.below(data_root, "voc2012").check(), []
    whole = layouts.locate(data_root, layouts.LAYOUTS["voc2012_aug"][0]) is not None
    published = VOC2012 if whole else {**VOC2012, "training": VOC2012_OWN}
    for split, images in found.items():
        counts.expect(f"VOC2012's {split}", len(images), published[split])
        parts.append(f"{split} {_read_some(images, samples)}")
    if not whole:
        counts.parts.append(
            f"VOC2012's training has its own {VOC2012_OWN} of {VOC2012['training']} images, for want of "
            f"SegmentationClassAug"
        )
    return ", ".join(parts)


def _voc2012_aug(data_root: Path, samples: int, counts: Counts) -> str:
    folder = data_root / layouts.LAYOUTS["voc2012_aug"][0]
    return f"{len(listing.entries(folder))} files, of which voc2012 takes the label maps that are none of val"


CHECKS: dict[str, Callable[[Path, int, Counts], str]] = {
    "imagenet": _imagenet,
    **{f"imagenet_{name}": _listed(name) for name in subsets.LISTS},
    **{name: _shifted(name) for name in SHIFTED},
    "imagenet_c": _corrupted,
    **{name: _v2(name) for name in further_sets.V2},
    "imagenet_real": _real,
    "objectnet": _objectnet,
    **{name: _instances(name) for name in INSTANCES},
    "ade20k": _ade20k,
    "voc": _voc,
    "voc2012": _voc2012,
    "voc2012_aug": _voc2012_aug,
}

# where each set is to be had, as docs/data.md says too
ORIGINS = {
    "imagenet": "ImageNet-1k (ILSVRC2012) is published at image-net.org for registered users: train 138 GB, val 6.3 GB",
    "imagenet_1percent": "github.com/google-research/simclr has it as imagenet_subsets/1percent.txt: 12,811 names",
    "imagenet_10percent": "github.com/google-research/simclr has it as imagenet_subsets/10percent.txt: 128,116 names",
    "imagenet_a": "ImageNet-A is published at github.com/hendrycks/natural-adv-examples: 7,500 images",
    "imagenet_r": "ImageNet-R is published at github.com/hendrycks/imagenet-r: 30,000 images, 2.2 GB",
    "imagenet_sketch": "ImageNet-Sketch is published at github.com/HaohanWang/ImageNet-Sketch: 50,889 images",
    "imagenet_c": "ImageNet-C is published at github.com/hendrycks/robustness: 3,750,000 images in four archives",
    "imagenet_v2_matched": "ImageNet-V2 is published at huggingface.co/datasets/vaishaal/ImageNetV2: 10,000 images",
    "imagenet_v2_threshold": "beside it, as imagenetv2-threshold0.7.tar.gz",
    "imagenet_v2_top": "beside it, as imagenetv2-top-images.tar.gz",
    "imagenet_real": "ReaL is published at github.com/google-research/reassessed-imagenet: real.json",
    "objectnet": "ObjectNet is published at objectnet.dev: 50,273 images, 18,574 of them of ImageNet's classes",
    "coco": "COCO 2017 is published at cocodataset.org: train 18 GB, val 1 GB, annotations 241 MB",
    "lvis": "LVIS v1 is published at lvisdataset.org: two files of annotations; its images are COCO's",
    "ade20k": "ADE20k is published at sceneparsing.csail.mit.edu as ADEChallengeData2016.zip: 22,210 images",
    "voc": "PASCAL VOC is published at host.robots.ox.ac.uk/pascal/VOC: trainval of 2007 and 2012, test of 2007",
    "voc2012": "VOC 2012's segmentation is published with its detection: train 1,464 images, val 1,449",
    "voc2012_aug": "SBD's 9,118 further label maps are passed on as SegmentationClassAug (mmsegmentation makes them)",
}


def _read_some(files: list[File] | list[Path] | tuple[File, ...], samples: int, side: int | None = None) -> str:
    """Reads evenly spaced files in full.

    Raises UserError naming one that is unreadable or not ``side`` pixels wide and high.
    """
    chosen = [files[index * len(files) // samples] for index in range(samples)] if samples < len(files) else files
    for file in chosen:
        size = read_image(file).size
        if side is not None and size != (side, side):
            raise UserError(
                f"{file} is {size[0]} x {size[1]} px, but ImageNet-C's published images are {side} px; download the "
                f"published set (one made at full size is another set)"
            )
    return f"{len(files)} images ({len(chosen)} read)"
