"""Where each data set lies below the data root, exactly as its publisher unpacks it, and a fingerprint of what lies there."""

import hashlib
import os
from pathlib import Path

from evaluate.errors import Skip, UserError

CORRUPTIONS = (
    "gaussian_noise", "shot_noise", "impulse_noise", "defocus_blur", "glass_blur", "motion_blur", "zoom_blur", "snow",
    "frost", "fog", "brightness", "contrast", "elastic_transform", "pixelate", "jpeg_compression",
)  # fmt: skip

# name: the paths that must exist below the data root
LAYOUTS: dict[str, tuple[str, ...]] = {
    "imagenet": ("imagenet/train", "imagenet/val"),
    "imagenet_1percent": ("imagenet/1percent.txt",),
    "imagenet_a": ("imagenet-a",),
    "imagenet_r": ("imagenet-r",),
    "imagenet_sketch": ("imagenet-sketch",),
    "imagenet_c": tuple(f"imagenet-c/{corruption}" for corruption in CORRUPTIONS),
    "coco": (
        "coco/annotations/instances_train2017.json", "coco/annotations/instances_val2017.json",
        "coco/train2017", "coco/val2017",
    ),
    "lvis": ("lvis/lvis_v1_train.json", "lvis/lvis_v1_val.json", "coco/train2017", "coco/val2017"),
    "ade20k": (
        "ade20k/images/training", "ade20k/images/validation", "ade20k/annotations/training", "ade20k/annotations/validation",
    ),
}  # fmt: skip


def root(path: Path) -> Path:
    """The data root itself; raises UserError if it is no folder."""
    if not path.is_dir():
        raise UserError(f"the data root {path} is not a folder; it should hold imagenet/, coco/, lvis/, ade20k/, imagenet-a/ …")
    return path


def require(data_root: Path, name: str) -> None:
    """Raises Skip naming the layout expected where a set is absent."""
    missing = [part for part in LAYOUTS[name] if not (data_root / part).exists()]
    if missing:
        raise Skip(f"{name} is not under {data_root}: {missing[0]} is missing; expected {', '.join(LAYOUTS[name][:4])}")


def fingerprint(data_root: Path, names: tuple[str, ...]) -> str:
    """A hash of the sets' file names (and sizes, for single files); a made world adds its parameters.

    File contents are not read: on the full ImageNet that would take longer than many a task. A set that is absent counts as such,
    so its coming changes the fingerprint.
    """
    digest = hashlib.sha256()
    world = data_root / "world.json"
    if world.is_file():
        digest.update(world.read_bytes())
    for part in dict.fromkeys(part for name in names for part in LAYOUTS[name]):
        path = data_root / part
        digest.update(f"\n{part} {path.stat().st_size if path.is_file() else path.is_dir()}".encode())
        for folder, folders, files in os.walk(path):
            folders.sort()
            digest.update(os.path.relpath(folder, path).encode())
            digest.update("\0".join(sorted(files)).encode())
    return digest.hexdigest()[:16]
