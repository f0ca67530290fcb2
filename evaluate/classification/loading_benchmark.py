"""The loading of images beside timm's loader: from JPEGs to normalized batches, in one process."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from evaluate.classification.benchmark import row, seconds
from evaluate.data.imagenet import ImageSet
from evaluate.data.loader import Images, batches
from evaluate.data.made_photographs import make_images
from evaluate.data.transforms import CenterCrop, FinetuneAugmentation, RandomCropFlip, Transform, normalize

SIDE, RESIZED, BATCH = 224, 256, 32
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
RAND_AUGMENT = "rand-m9-mstd0.5-inc1"  # FT's
FASTER = 1.2


def rows(count: int, rounds: int) -> list[str]:
    """A row for each transform: ``count`` JPEGs of 500 x 375 pixels, CPU seconds on one thread."""
    with tempfile.TemporaryDirectory() as made:
        paths = make_images(Path(made) / "class", count)
        with Image.open(paths[0]) as image:
            about = f"loading, {count} JPEGs of {image.width} x {image.height}"
        return [
            _beside_timm(f"{about}, {name}", Path(made), transform, options, rounds)
            for name, (transform, options) in _transforms().items()
        ]


def _transforms() -> dict[str, tuple[Transform, dict[str, Any]]]:
    """Ours, and what timm's ``create_loader`` is told to do the same."""
    train = {"is_training": True, "color_jitter": None}
    return {
        "test crop": (CenterCrop(SIDE, RESIZED, "bicubic"), {"crop_pct": SIDE / RESIZED}),
        "LIN's crop and flip": (RandomCropFlip(SIDE, "bicubic", 0), train),
        "FT's augmentation": (
            FinetuneAugmentation(SIDE, "bicubic", RAND_AUGMENT, MEAN, 0),
            {**train, "auto_augment": RAND_AUGMENT},
        ),
    }


def _beside_timm(what: str, folder: Path, transform: Transform, options: dict[str, Any], rounds: int) -> str:
    from timm.data import ImageDataset, create_loader

    files = tuple(sorted(folder.glob("*/*")))
    batch = min(BATCH, len(files))  # in a training timm leaves out what does not fill one
    labels = np.zeros(len(files), dtype=np.int64)
    images = ImageSet("train", files, labels, ("class",), "", len(files), (0,))

    def ours() -> None:
        dataset = Images(images, transform)
        dataset.kept = None  # each is decoded, as of a set that is too large to be kept
        samples = [(0, index) for index in range(len(files))]
        order = [samples[first : first + batch] for first in range(0, len(files), batch)]
        for pixels, _ in batches(dataset, order):
            normalize(pixels, MEAN, STD, "cpu")

    theirs = create_loader(
        ImageDataset(str(folder)),
        (3, SIDE, SIDE),
        batch,
        interpolation="bicubic",
        mean=MEAN,
        std=STD,
        num_workers=0,
        persistent_workers=False,
        device=torch.device("cpu"),
        **options,
    )
    calls: tuple[Callable[[], Any], Callable[[], Any]] = (ours, lambda: [None for _ in theirs])
    pairs = [(seconds(calls[0])[0], seconds(calls[1])[0]) for _ in range(rounds + 1)]
    return row(what, "timm", pairs[1:], FASTER)  # without the first, in which memory is taken and modules are loaded
