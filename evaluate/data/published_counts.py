"""How many images and classes the published sets have, and in what a set on the disk differs from them.

Here and nowhere else: the check of the data reads it, and the record of a task, by which a cell is marked.
"""

from collections.abc import Mapping
from typing import NamedTuple, Protocol

from evaluate.data.published_sets import READY

TRAIN, VAL, VAL_PER_CLASS = 1_281_167, 50_000, 50
SHIFTED = {"imagenet_a": 7_500, "imagenet_r": 30_000, "imagenet_sketch": 50_889}
SHIFTED_CLASSES = {"imagenet_a": 200, "imagenet_r": 200, "imagenet_sketch": 1000}
FURTHER = {  # further test sets: images, and classes of their own; ObjectNet's are those that ImageNet has
    "imagenet_v2_matched": (10_000, 1000),
    "imagenet_v2_threshold": (10_000, 1000),
    "imagenet_v2_top": (10_000, 1000),
    "objectnet": (18_574, 113),
}
REAL = 46_837  # images of val to which the reassessed labels give a class
CORRUPTED = 15 * 5 * VAL
LISTS = {"1percent": 12_811, "10percent": 128_116}  # SimCLR's, which MSN and SiameseIM took over
INSTANCES = {"coco": (80, {"train": 118_287, "val": 5_000}), "lvis": (1203, {"train": 100_170, "val": 19_809})}
ADE20K = {"training": 20_210, "validation": 2_000}
VOC = {"trainval": 5_011 + 11_540, "test": 4_952}  # trainval of 2007 and of 2012, test of 2007
VOC2012_OWN = 1_464  # of its training pictures, VOC's train; SBD's label maps are the others
VOC2012 = {"training": 10_582, "validation": 1_449}


class Set(Protocol):
    """What is asked of a set of images (``evaluate.data.imagenet.ImageSet``)."""

    @property
    def name(self) -> str: ...

    @property
    def asked(self) -> int: ...

    @property
    def scored(self) -> tuple[int, ...]: ...


class Size(NamedTuple):
    """Images and classes of a set."""

    images: int
    classes: int


PUBLISHED: dict[str, Size] = {  # by the names under which a record has the sizes of what was read
    "train": Size(TRAIN, 1000),
    "val": Size(VAL, 1000),
    **{name: Size(count, 1000) for name, count in LISTS.items()},
    **{name: Size(count, SHIFTED_CLASSES[name]) for name, count in SHIFTED.items()},
    **{name: Size(*own) for name, own in FURTHER.items()},
    "imagenet_real": Size(REAL, 1000),
    "imagenet_c": Size(CORRUPTED, 1000),
    **{
        f"{name}_{split}": Size(count, classes)
        for name, (classes, counts) in INSTANCES.items()
        for split, count in counts.items()
    },
    **{f"ade20k_{split}": Size(count, 150) for split, count in ADE20K.items()},
    **{f"voc_{split}": Size(count, 20) for split, count in VOC.items()},
    **{f"voc2012_{split}": Size(count, 21) for split, count in VOC2012.items()},
    **{f"{name}_train": Size(row.train, row.classes) for name, row in READY.items()},
    **{f"{name}_val": Size(row.val, row.classes) for name, row in READY.items()},
}


def size(images: int, classes: int) -> dict[str, int]:
    """As a record has it."""
    return Size(images, classes)._asdict()


def sizes(*sets: Set) -> dict[str, dict[str, int]]:
    """The sizes of whole image sets by their names, whatever a limit left out of them."""
    return {images.name: size(images.asked, len(images.scored)) for images in sets}


def differences(found: Mapping[str, Mapping[str, int]]) -> dict[str, str]:
    """By set that has not as many images and classes as published, a sentence with both numbers."""
    sentences = {}
    for name, own in found.items():
        published = PUBLISHED.get(name)
        if published is None:
            continue
        parts = [
            f"{own[kind]:,} {kind}; published: {count:,}"
            for kind, count in published._asdict().items()
            if own[kind] != count
        ]
        if parts:
            sentences[name] = f"{name} has {' · '.join(parts)}"
    return sentences
