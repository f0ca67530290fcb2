"""Images of a folder as uint8 tensors: JPEGs by torchvision's decoder, which copies less than PIL, everything else by
PIL.

An image that cannot be read is replaced by another one, chosen by its index alone: by every worker, process and restart
alike. What the decoder does not notice (a wrong stripe in a JPEG) nobody can.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.io import ImageReadMode, decode_jpeg

JPEG = b"\xff\xd8\xff"


def decode(path: Path) -> Tensor:
    """(3, H, W) RGB, colours next to each other in memory; the pixels that PIL's ``convert("RGB")`` gives, EXIF
    rotation not applied.

    Raises:
        OSError, SyntaxError, ValueError: of PIL, for a file that is not a whole image.
    """
    content = bytearray(path.read_bytes())
    if content.startswith(JPEG):
        try:
            image = decode_jpeg(torch.frombuffer(content, dtype=torch.uint8), ImageReadMode.UNCHANGED)
        except RuntimeError:
            return _by_pil(path)  # which says what is wrong
        if len(image) == 3:
            return image
        if len(image) == 1:
            return image.permute(1, 2, 0).repeat(1, 1, 3).permute(2, 0, 1)
    return _by_pil(path)  # CMYK, whose conversion is PIL's own, and other formats


def _by_pil(path: Path) -> Tensor:
    with Image.open(path) as file:
        return torch.from_numpy(np.array(file.convert("RGB"))).permute(2, 0, 1)


EXTENSIONS = {".jpeg", ".jpg", ".png", ".bmp", ".webp"}


CACHE_BYTES = 256 * 2**20  # a set that fits, decoded, is decoded once


# From a damaged image to the one in its place: far enough to leave a damaged folder, prime so that all are reached.
STRIDE = 7919


MAX_REPLACEMENTS = 100


class DataError(ValueError):
    """What is wrong with the images, in one sentence."""


class Sample(NamedTuple):
    """An image (3, H, W) uint8, its index, and why it is another's: the damaged images' indices, each with a
    sentence."""

    image: Tensor
    index: int  # type: ignore[assignment]  # hides a tuple's own method, which nothing here calls
    damaged: dict[int, str]


class ImageFolder(Dataset[Sample]):
    """All images below a folder, sorted by path."""

    def __init__(self, folder: Path):
        if not folder.is_dir():
            raise DataError(f"the training folder {folder} does not exist; it should hold one folder of images a class")
        self.paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in EXTENSIONS)
        if not self.paths:
            raise DataError(f"no images below {folder}; expected files ending in {', '.join(sorted(EXTENSIONS))}")
        self.cache: dict[int, Sample] | None = None
        if self[0].image.numel() * len(self.paths) <= CACHE_BYTES:
            self.cache = {}

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Sample:
        if self.cache is None:
            return self.read_or_replace(index)
        if index not in self.cache:
            self.cache[index] = self.read_or_replace(index)
        return self.cache[index]

    def read_or_replace(self, index: int) -> Sample:
        """The image, or another one in its place. Raises DataError where image after image is damaged."""
        damaged: dict[int, str] = {}
        for number in range(min(len(self), MAX_REPLACEMENTS)):
            position = (index + number * STRIDE) % len(self)
            try:
                return Sample(self.read(position), index, damaged)
            except DataError as error:
                damaged[position] = str(error)
        raise DataError(f"{damaged[index]}, and so with {len(damaged) - 1} others that were tried in its place")

    def read(self, index: int) -> Tensor:
        """One image (3, H, W) uint8 from its file. Raises DataError naming a file that cannot be read."""
        try:
            return decode(self.paths[index])
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise DataError(
                f"{self.paths[index]} cannot be read as an image ({error}); replace or remove it"
            ) from error
