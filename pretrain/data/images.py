"""Images of a folder as uint8 tensors: JPEGs by torchvision's decoder, which copies less than PIL, everything else by
PIL.

An image that cannot be read is replaced by another one, chosen by its index alone: by every worker, process and restart
alike. What the decoder does not notice (a wrong stripe in a JPEG) nobody can.
"""

import hashlib
import io
import os
import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.io import ImageReadMode, decode_jpeg

from evaluate.data import archives, listing
from evaluate.data.pixels import READ_ERRORS, read_rgb
from evaluate.data.sources import EXTENSIONS

JPEG = b"\xff\xd8\xff"


def decode(file: archives.File) -> Tensor:
    """(3, H, W) RGB, colours next to each other in memory; the pixels that ``read_rgb`` gives, as they are stored.

    Raises:
        READ_ERRORS: for a file that is not a whole image.
    """
    content = bytearray(file.read_bytes() if isinstance(file, Path) else file.read())
    if content.startswith(JPEG):
        try:
            image = decode_jpeg(torch.frombuffer(content, dtype=torch.uint8), ImageReadMode.UNCHANGED)
        except RuntimeError:
            return _by_pil(file, content)  # which says what is wrong
        if len(image) == 3:
            return image
        if len(image) == 1:
            return image.permute(1, 2, 0).repeat(1, 1, 3).permute(2, 0, 1)
    return _by_pil(file, content)  # CMYK, whose conversion is PIL's own, and other formats


def _by_pil(file: archives.File, content: bytearray) -> Tensor:
    source = file if isinstance(file, Path) else io.BytesIO(content)
    return torch.from_numpy(np.array(read_rgb(source))).permute(2, 0, 1)


CACHE_BYTES = 256 * 2**20  # a set that fits, decoded, is decoded once


# From a damaged image to the one in its place: far enough to leave a damaged folder, prime so that all are reached.
STRIDE = 7919


MAX_REPLACEMENTS = 100


TRAIN = re.compile(r"train(ing)?\d*", re.I)
HELD_OUT = re.compile(r"(val(id(ation)?)?|test(ing)?)\d*", re.I)


class DataError(ValueError):
    """What is wrong with the images, in one sentence."""


class Sample(NamedTuple):
    """An image (3, H, W) uint8, its index, and why it is another's: the damaged images' indices, each with a
    sentence; the caption, where images have one."""

    image: Tensor
    index: int  # type: ignore[assignment]  # hides a tuple's own method, which nothing here calls
    damaged: dict[int, str]
    caption: str = ""


class Pixels(Protocol):
    """Images that are read from elsewhere than their files."""

    def __getitem__(self, index: int) -> Tensor:
        """One image (3, H, W) uint8. Raises DataError naming a file that cannot be read."""
        ...


class Images(Dataset[Sample]):
    """Images of given files in their order.

    ``names`` say which they are, ``classes`` name each one's class, and ``identity`` (their number and a digest of
    their names) says whether two runs read the same ones.
    """

    def __init__(self, paths: Sequence[archives.File], names: list[str], classes: list[str]):
        self.paths, self.names, self.classes = list(paths), names, classes
        digest = hashlib.sha256("\0".join(names).encode(errors="surrogateescape")).hexdigest()[:16]
        self.identity: dict[str, int | str] = {"number": len(names), "digest": digest}
        self.kept: Pixels | None = None
        """Pixels in the place of the files' (``pretrain.data.kept_pixels``)."""
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
                return Sample(self.read(position), index, damaged, self.caption(position))
            except DataError as error:
                damaged[position] = str(error)
        raise DataError(f"{damaged[index]}, and so with {len(damaged) - 1} others that were tried in its place")

    def read(self, index: int) -> Tensor:
        """One image (3, H, W) uint8. Raises DataError naming a file that cannot be read."""
        return self.read_file(index) if self.kept is None else self.kept[index]

    def read_file(self, index: int) -> Tensor:
        """One image (3, H, W) uint8 from its file. Raises DataError naming a file that cannot be read."""
        try:
            return decode(self.paths[index])
        except READ_ERRORS as error:
            raise DataError(
                f"{self.paths[index]} cannot be read as an image ({error}); replace or remove it"
            ) from error

    def caption(self, index: int) -> str:
        """The caption of an image; "" where images have none. Raises DataError naming what cannot be read."""
        return ""


class ImageFolder(Images):
    """All images below a folder, sorted by path, but for those below ``leave_out``.

    Their names are their paths below the folder, and a class is the folder that names it.
    """

    def __init__(self, folder: Path, leave_out: Path | None = None):
        if not folder.is_dir():
            raise DataError(f"the training folder {folder} does not exist; it should hold one folder of images a class")
        if leave_out and os.path.realpath(leave_out) == os.path.realpath(folder):
            raise DataError(f"the output folder is the training folder {folder} itself; choose another --out")
        files = {name for name, _ in listing.walk(folder, lambda entry: None, leave_out)}
        names = (name for name in files if os.path.splitext(name)[1].lower() in EXTENSIONS)
        found = sorted((name for name in names if not _is_of_a_run(name, files)), key=lambda name: name.split("/"))
        if not found:
            raise DataError(f"no images below {folder}; expected files ending in {', '.join(sorted(EXTENSIONS))}")
        super().__init__([folder / name for name in found], found, _classes(folder, found))


def _is_of_a_run(name: str, files: set[str]) -> bool:
    """Whether an image is the picture that an earlier run has drawn in its output folder."""
    head, _, tail = name.rpartition("/")
    return tail == "batch.png" and f"{head}/log.jsonl".lstrip("/") in files


def _classes(folder: Path, names: list[str]) -> list[str]:
    """The folder below ``folder`` that names each image's class: the one that it lies in, or the one above where all
    of these are called alike (``<class>/images/``).

    Raises:
        DataError: held-out images lie beside those of train, or class folders of one name in several places.
    """
    found = [name.rpartition("/")[0] for name in names]
    inside: dict[PurePosixPath, set[str]] = defaultdict(set)
    for lowest in set(found):
        for part in (PurePosixPath(lowest), *PurePosixPath(lowest).parents)[:-1]:
            inside[part.parent].add(part.name)
    for above, below in sorted(inside.items()):
        train, held_out = (sorted(filter(kind.fullmatch, below)) for kind in (TRAIN, HELD_OUT))
        if train and held_out:
            raise DataError(
                f"{folder / above} holds {train[0]} beside {held_out[0]}, on which nothing may be pretrained; "
                f"did you mean --data {folder / above / train[0]}?"
            )
    while (
        len(distinct := set(found)) > 1
        and all("/" in name for name in distinct)
        and len({name.rpartition("/")[2] for name in distinct}) == 1
    ):
        found = [name.rpartition("/")[0] for name in found]
    places: dict[str, str] = {}
    for name in sorted(set(found)):
        other = places.setdefault(name.rpartition("/")[2], name)
        if other != name:
            raise DataError(
                f"{folder} holds the class folder {other.rpartition('/')[2]} in several places, {other} and {name}; "
                "give --data the folder that holds each class once"
            )
    return found
