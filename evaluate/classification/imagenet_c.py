"""ImageNet-C: its 75 image sets, as published or made here from val, and the mean corruption error."""

import csv
import io
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from evaluate.classification.predictions import Predictions
from evaluate.data.imagenet import ImageSet, robustness_set
from evaluate.data.layouts import CORRUPTIONS, OWN_GENERATOR, SEVERITIES, imagenet_c
from evaluate.data.loader import read_image
from evaluate.data.transforms import CenterCrop
from evaluate.runtime.env import Env
from evaluate.runtime.errors import UserError
from evaluate.runtime.seeding import seed_of
from results.atomic import atomic_write

CELLS = tuple((corruption, severity) for corruption in CORRUPTIONS for severity in SEVERITIES)
Cell = tuple[
    str, int, ImageSet, Any
]  # corruption, severity, images, their transform; one at a time, for all 3.75 million would take gigabytes
JPEG_QUALITY = 85  # at which the published images are stored

# AlexNet's top-1 errors, mean over the five severities (Hendrycks and Dietterich; each paired by name, never by
# position)
ALEXNET_ERROR = {
    "gaussian_noise": 0.886428,
    "shot_noise": 0.894468,
    "impulse_noise": 0.922640,
    "defocus_blur": 0.819880,
    "glass_blur": 0.826268,
    "motion_blur": 0.785948,
    "zoom_blur": 0.798360,
    "snow": 0.866816,
    "frost": 0.826572,
    "fog": 0.819324,
    "brightness": 0.564592,
    "contrast": 0.853204,
    "elastic_transform": 0.646056,
    "pixelate": 0.717840,
    "jpeg_compression": 0.606500,
}


def mean_corruption_error(errors: Mapping[str, float]) -> float:
    """mCE in percent: 100 * mean over the 15 corruptions of error / AlexNet's error; errors are fractions, means over
    severities.

    The table's IN-C column is 100 minus this. Raises ValueError unless the corruptions are exactly the 15.
    """
    if set(errors) != set(CORRUPTIONS):
        raise ValueError(
            f"mCE needs exactly the 15 corruptions, but these differ: {sorted(set(errors) ^ set(CORRUPTIONS))}"
        )
    return 100 * sum(errors[name] / ALEXNET_ERROR[name] for name in CORRUPTIONS) / len(CORRUPTIONS)


@dataclass(frozen=True)
class Corrupt:
    """The test crop, corrupted by the package imagecorruptions and stored as JPEG once, as the published images were.

    Close to the published images, not equal to them: motion blur, snow and frost are made without ImageMagick. The
    noise depends on the seed, the corruption, the severity and the image's index alone.
    """

    crop: CenterCrop
    corruption: str
    severity: int
    seed: int

    def __call__(self, image: Image.Image, epoch: int = 0, index: int = 0) -> Image.Image:
        from imagecorruptions import corrupt  # seconds of imports that nothing else needs

        seed = seed_of(self.seed, self.corruption, self.severity, index) & 0xFFFFFFFF
        np.random.seed(seed)
        options = {"seed": seed} if self.corruption in OWN_GENERATOR else {}
        pixels = corrupt(np.asarray(self.crop(image)), self.severity, self.corruption, **options)
        stored = io.BytesIO()
        Image.fromarray(pixels).save(stored, format="JPEG", quality=JPEG_QUALITY)
        return Image.open(stored).convert("RGB")


def published(env: Env, crop: CenterCrop, per_cell: int | None) -> Iterator[Cell]:
    """The cells as published: cropped already, to the side of the crop.

    Raises UserError for a folder of images of another size.
    """
    for corruption, severity in CELLS:
        images = robustness_set("imagenet_c", env.data_root, imagenet_c(corruption, severity), per_cell, env.identities)
        size = read_image(images.files[0]).size
        if crop.resize is None and size != (crop.crop, crop.crop):
            raise UserError(
                f"{images.files[0]} is {size[0]} x {size[1]} px, but the classifier takes {crop.crop}: the published "
                f"ImageNet-C (224 px) is not resized; for a set made at full size give --set corrupted_resize=256"
            )
        yield corruption, severity, images, crop


def made(val: ImageSet, crop: CenterCrop, seed: int) -> Iterator[Cell]:
    """The cells from the same images of val, corrupted as they are read."""
    for corruption, severity in CELLS:
        yield corruption, severity, val, Corrupt(crop, corruption, severity, seed)


def measure(
    cells: Iterable[Cell], predict: Callable[..., Predictions], env: Env
) -> tuple[dict[str, float], np.ndarray]:
    """imagenet_c (100 - mCE), imagenet_c_mce and imagenet_c_mean_error (not over AlexNet's), in percent; and of each of
    the N images its share, (N,), whose mean is imagenet_c.

    Every corruption's and severity's error goes into the record and into ``imagenet_c.csv``.
    """
    table: dict[str, dict[str, float]] = {name: {} for name in CORRUPTIONS}
    shares: dict[tuple[int, str], float] = {}  # of mCE, by image
    for corruption, severity, images, transform in cells:
        found = predict(replace(images, name=f"imagenet_c/{corruption}/{severity}"), transform)
        wrong = ~found.answers.correct()
        table[corruption][str(severity)] = 100 * float(wrong.mean())
        share = 100 / len(CELLS) / (ALEXNET_ERROR[corruption] * len(found))
        for image in zip(found.answers.labels.tolist(), found.stems, wrong.tolist(), strict=True):
            shares[image[:2]] = shares.get(image[:2], 0.0) + share * image[2]
    by_corruption = {name: float(np.mean(list(row.values()))) for name, row in table.items()}
    mce = mean_corruption_error({name: error / 100 for name, error in by_corruption.items()})
    # the 75 versions of an image go wrong together, so the deviation is over images: mCE is the sum of their shares
    error = float(np.std(list(shares.values())) * np.sqrt(len(shares)))
    _write_table(env.out_dir / "imagenet_c.csv", table, by_corruption)
    env.report(
        protocol={"corruption_errors": by_corruption, "severity_errors": table},
        standard_error={"imagenet_c": error, "imagenet_c_mce": error},
    )
    result = {
        "imagenet_c": 100 - mce,
        "imagenet_c_mce": mce,
        "imagenet_c_mean_error": float(np.mean(list(by_corruption.values()))),
    }
    return result, 1 - len(shares) * np.array(list(shares.values())) / 100


def _write_table(path: Path, table: dict[str, dict[str, float]], means: dict[str, float]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        [
            "corruption",
            *(f"severity_{severity}" for severity in SEVERITIES),
            "mean_error",
            "alexnet_error",
            "corruption_error",
        ]
    )
    for name, row in table.items():
        alexnet = 100 * ALEXNET_ERROR[name]
        values = [*(row[str(severity)] for severity in SEVERITIES), means[name], alexnet, 100 * means[name] / alexnet]
        writer.writerow([name, *(f"{value:.4f}" for value in values)])
    with atomic_write(path) as written:
        written.write_text(text.getvalue())
