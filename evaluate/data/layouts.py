"""Where each data set lies below the data root, exactly as its publisher unpacks it, and a fingerprint of what lies
there.
"""

import os
from collections.abc import Iterable
from pathlib import Path

from evaluate.data import coco, listing
from evaluate.data.published_sets import READY
from evaluate.runtime.errors import Skip, UserError

CORRUPTIONS = (
    "gaussian_noise",
    "shot_noise",
    "impulse_noise",
    "defocus_blur",
    "glass_blur",
    "motion_blur",
    "zoom_blur",
    "snow",
    "frost",
    "fog",
    "brightness",
    "contrast",
    "elastic_transform",
    "pixelate",
    "jpeg_compression",
)
SEVERITIES = (1, 2, 3, 4, 5)  # of each corruption
DEPTH = 3  # folders between a data root and the deepest folder that is taken for it by mistake
OWN_GENERATOR = (
    "impulse_noise",
    "glass_blur",
)  # of the package imagecorruptions: the ones that numpy's global seed does not reach

# name: the paths that must exist below the data root
LAYOUTS: dict[str, tuple[str, ...]] = {
    "imagenet": ("imagenet/train", "imagenet/val"),
    "imagenet_1percent": ("imagenet/1percent.txt",),
    "imagenet_10percent": ("imagenet/10percent.txt",),
    "imagenet_a": ("imagenet-a",),
    "imagenet_r": ("imagenet-r",),
    "imagenet_sketch": ("imagenet-sketch",),
    "imagenet_c": tuple(f"imagenet-c/{corruption}" for corruption in CORRUPTIONS),
    "imagenet_v2_matched": ("imagenetv2-matched-frequency-format-val",),
    "imagenet_v2_threshold": ("imagenetv2-threshold0.7-format-val",),
    "imagenet_v2_top": ("imagenetv2-top-images-format-val",),
    "imagenet_real": ("imagenet/real.json",),
    "objectnet": ("objectnet-1.0/images", "objectnet-1.0/mappings"),
    "coco": (*coco.ANNOTATIONS["coco"], "coco/train2017", "coco/val2017"),
    "lvis": (*coco.ANNOTATIONS["lvis"], "coco/train2017", "coco/val2017"),
    "voc": tuple(
        f"VOCdevkit/{part}"
        for part in (
            "VOC2007/ImageSets/Main/trainval.txt",
            "VOC2007/ImageSets/Main/test.txt",
            "VOC2007/JPEGImages",
            "VOC2007/Annotations",
            "VOC2012/ImageSets/Main/trainval.txt",
            "VOC2012/JPEGImages",
            "VOC2012/Annotations",
        )
    ),
    "voc2012": tuple(
        f"VOCdevkit/VOC2012/{part}"
        for part in (
            "ImageSets/Segmentation/train.txt",
            "ImageSets/Segmentation/val.txt",
            "JPEGImages",
            "SegmentationClass",
        )
    ),
    "voc2012_aug": ("VOCdevkit/VOC2012/SegmentationClassAug",),
    "ade20k": (
        "ade20k/images/training",
        "ade20k/images/validation",
        "ade20k/annotations/training",
        "ade20k/annotations/validation",
    ),
}

# no column of the paper: measured where they are there, and nothing is said of them elsewhere
FURTHER = ("imagenet_v2_matched", "imagenet_v2_threshold", "imagenet_v2_top", "imagenet_real", "objectnet")
MORE_TO_LEARN = ("voc2012_aug",)  # a part of a training set, which is smaller without it; nothing is said of it either

# the archives as published, any of which may lie there instead of the unpacked folder
ARCHIVES: dict[str, tuple[str, ...]] = {
    "imagenet-a": ("imagenet-a.tar",),
    "imagenet-r": ("imagenet-r.tar",),
    "imagenet-sketch": ("imagenet-sketch.tar", "imagenet-sketch.zip", "ImageNet-Sketch.zip"),
    **{f"imagenet-c/{name}": ("imagenet-c/noise.tar",) for name in CORRUPTIONS[:3]},
    **{f"imagenet-c/{name}": ("imagenet-c/blur.tar",) for name in CORRUPTIONS[3:7]},
    **{f"imagenet-c/{name}": ("imagenet-c/weather.tar",) for name in CORRUPTIONS[7:11]},
    **{f"imagenet-c/{name}": ("imagenet-c/digital.tar",) for name in CORRUPTIONS[11:]},
}


def imagenet_c(corruption: str, severity: int) -> str:
    """The part below the data root that holds one corruption of ImageNet-C at one severity."""
    return f"imagenet-c/{corruption}/{severity}"


def locate(data_root: Path, part: str) -> Path | None:
    """The file or folder ``part`` below the data root, else an archive that holds it, else None."""
    return next((data_root / name for name in (part, *ARCHIVES.get(part, ())) if (data_root / name).exists()), None)


def root(path: Path) -> Path:
    """The data root itself; raises UserError if it is no folder, or if the sets lie above it or one folder deeper."""
    if not path.is_dir():
        raise UserError(
            f"the data root {path} is not a folder; it should hold imagenet/, coco/, lvis/, ade20k/, imagenet-a/ …"
        )
    if not _holds_a_set(path):
        whole = Path(os.path.abspath(path))
        deeper = (Path(entry.path) for entry in listing.entries(whole) if listing.is_folder(entry))
        meant = next((near for near in (*whole.parents[:DEPTH], *deeper) if _holds_a_set(near)), None)
        if meant:
            raise UserError(f"the data root {path} holds none of the data sets; did you mean --data-root {meant}?")
    return path


def _holds_a_set(folder: Path) -> bool:
    every = (*LAYOUTS.values(), *(row.parts for row in READY.values()))
    return os.access(folder, os.X_OK) and any(locate(folder, part) for parts in every for part in parts)


def require(data_root: Path, name: str) -> None:
    """Raises Skip naming the layout expected where a set is absent."""
    missing = [part for part in LAYOUTS[name] if locate(data_root, part) is None]
    if missing:
        archives = "".join(f" or {archive}" for archive in ARCHIVES.get(missing[0], ()))
        raise Skip(
            f"{name} is not under {data_root}: {missing[0]}{archives} is missing; expected "
            f"{', '.join(LAYOUTS[name][:4])}"
        )


def pretraining_part(data_root: Path) -> str:
    """The part below the data root whose images are for pretraining: the toy world's unlabelled ones, else train."""
    return "unlabelled" if (data_root / "unlabelled").is_dir() else "imagenet/train"


def is_toy(data_root: Path) -> bool:
    """Whether the data were made by this project (``evaluate.data.toy``)."""
    return (data_root / "world.json").is_file()


def without_absent_further(data_root: Path, names: Iterable[str]) -> list[str]:
    """Sets without those of FURTHER and MORE_TO_LEARN of which no part is there."""
    optional = {*FURTHER, *MORE_TO_LEARN}
    return [name for name in names if name not in optional or any(locate(data_root, part) for part in LAYOUTS[name])]


def absent(data_root: Path, names: Iterable[str]) -> dict[str, str]:
    """The reason for each set of these that is not there."""
    reasons = {}
    for name in names:
        try:
            require(data_root, name)
        except Skip as reason:
            reasons[name] = str(reason)
    return reasons
