"""A small world in ImageNet's layouts, and a small encoder, for the tests of the ImageNet columns."""

from pathlib import Path

import numpy as np
from PIL import Image

from evaluate.data.layouts import CORRUPTIONS

WNIDS = ("n00000001", "n00000002", "n00000003", "n00000004")


def paint(label: int, rng: np.random.Generator, size: int = 32) -> Image.Image:
    """Stripes at a random phase in random colours, under noise; their direction and a weak tint tell the class."""
    y, x = np.mgrid[:size, :size]
    angle = np.pi * label / len(WNIDS)
    wave = np.sin((np.cos(angle) * x + np.sin(angle) * y) * 1.1 + rng.uniform(0, 6.28))[..., None]
    colours = rng.uniform(60, 190, (2, 3))
    colours += 40 * np.eye(4, 3)[label]
    pixels = colours[0] + (colours[1] - colours[0]) * (wave + 1) / 2 + rng.normal(0, 12, (size, size, 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def write_folder(folder: Path, per_class: int, wnids: tuple[str, ...] = WNIDS, seed: int = 0) -> None:
    """``folder/<wnid>/<wnid>_<i>.png``."""
    rng = np.random.default_rng(seed)
    for wnid in wnids:
        (folder / wnid).mkdir(parents=True)
        for number in range(per_class):
            paint(WNIDS.index(wnid), rng).save(folder / wnid / f"{wnid}_{number}.png")


def write_world(root: Path, train: int = 40, val: int = 15, corrupted: int = 1) -> Path:
    """All sets of the ImageNet columns, ``train``, ``val`` and ``corrupted`` images a class."""
    write_folder(root / "imagenet/train", train, seed=1)
    write_folder(root / "imagenet/val", val, seed=2)
    names = [f"{wnid}_{number}.png" for number in range(6) for wnid in WNIDS]
    (root / "imagenet/1percent.txt").write_text("\n".join(names))  # no newline at the end, as in the published list
    write_folder(root / "imagenet-a", 3, WNIDS[1:3], seed=3)
    write_folder(root / "imagenet-r", 3, WNIDS[:3], seed=4)
    write_folder(root / "imagenet-sketch", 2, seed=5)
    for number, name in enumerate(CORRUPTIONS):
        for severity in range(1, 6):
            write_folder(root / "imagenet-c" / name / str(severity), corrupted, seed=100 + 10 * number + severity)
    return root
