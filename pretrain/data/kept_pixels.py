"""Images kept decoded in OUT, and no larger than a view needs: what a pretraining with ``cache_pixels`` reads in the
place of the files.

An image whose shorter side is longer than ``kept_side`` is resized to it, with the filter of the views. Then no square
crop is enlarged that was not before, and the pixels of the views are nearly, but not exactly, those of the full image.
One file holds the pixels of all images; another, written last, says where they are. Their names hold a digest of what
they were made of. An image whose pixels have changed on the disk is made anew when it is read.
"""

import contextlib
import hashlib
import math
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from evaluate.data.imagenet import facts_of
from evaluate.runtime.progress import track
from pretrain import distributed
from pretrain.config import PretrainConfig
from pretrain.data.images import DataError, Images
from results.atomic import atomic_write, remove_partial

FOLDER = "pixels"  # in OUT
MOST_BYTES = 16 * 2**30
FORMAT = 1
SAMPLE = 32  # images by which the size of all is estimated
THREADS = 16
PAUSE = 5.0  # seconds after which process 0 lets the others know that it is alive


@dataclass(frozen=True)
class KeptPixels:
    """The pixels of all images of a set, on the disk."""

    path: Path
    side: int
    """The longest shorter side, in pixels."""
    sizes: np.ndarray
    """(n, 2) height and width; 0 for an image that could not be read."""
    starts: np.ndarray
    """(n + 1,) bytes before each image."""
    checks: np.ndarray
    """(n,) CRC-32 of each image's bytes."""
    make: Callable[[int], Tensor]
    """Reads an image from its own file and resizes it."""

    def __getitem__(self, index: int) -> Tensor:
        """One image (3, H, W) uint8, colors next to each other in memory. Raises DataError naming a file that cannot be
        read."""
        begin, end = self.starts[index : index + 2].tolist()
        if end > begin:
            with contextlib.suppress(OSError):  # somebody has removed it
                pixels = np.fromfile(self.path, np.uint8, end - begin, offset=begin)
                if zlib.crc32(pixels.data) == self.checks[index]:
                    return torch.from_numpy(pixels.reshape(*self.sizes[index], 3)).permute(2, 0, 1)
        return self.make(index)

    def __str__(self) -> str:
        return (
            f"views are cut from images kept decoded in {self.path.parent}, with a shorter side of at most {self.side} "
            f"px ({self.starts[-1] / 1e9:.2f} GB of at most {MOST_BYTES / 1e9:.1f}), not from the full images"
        )


def kept_side(config: PretrainConfig) -> int:
    """The shorter side of a kept image, in pixels, at which the smallest square crop has the pixels of its view."""
    sides = [config.img_size / math.sqrt(config.crop_scale[0])]
    if config.small_views:
        sides.append(config.small_size / math.sqrt(config.small_scale[0]))
    return math.ceil(max(sides))


def keep(images: Images, out: Path, config: PretrainConfig) -> None:
    """Lets the images be read from what is kept of them in ``out``; process 0 makes it first where it is not there.

    Raises:
        DataError: where they would take more than MOST_BYTES. OSError: a full disk.
    """
    side = kept_side(config)
    digest = distributed.all_or_none(lambda: _digest(images, side, config.interpolation))
    path = out / FOLDER / f"{digest}.bin"

    def make(index: int) -> Tensor:
        return shrink(images.read_file(index), side, config.interpolation)

    def index() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        found = _index(path)
        if found is None:
            raise DataError(
                f"{path} is not there, though it has just been written; let one command at a time use {out}, and let "
                f"it be one folder for all processes"
            )
        return found

    _by_rank_zero(iter(()) if distributed.rank() or _index(path) else _write(path, len(images), make))
    images.kept = KeptPixels(path, side, *distributed.all_or_none(index), make)
    images.cache = None


def _digest(images: Images, side: int, interpolation: str) -> str:
    """Of what the pixels are made of: names, sizes and times of change of the files, and how they are resized."""
    digest = hashlib.sha256(f"{FORMAT} {side} {interpolation} {images.identity['digest']}".encode())
    for file in images.paths:
        with contextlib.suppress(OSError):  # a link that leads nowhere, which the run names when it reads it
            digest.update(facts_of(file).encode())
    return digest.hexdigest()[:16]


def shrink(image: Tensor, side: int, interpolation: str) -> Tensor:
    """An image (3, H, W) uint8 with a shorter side of at most ``side`` pixels."""
    height, width = image.shape[1:]
    if min(height, width) <= side:
        return image
    size = [max(side, round(length * side / min(height, width))) for length in (height, width)]
    return F.interpolate(image[None], size, mode=interpolation, antialias=True)[0]


def _index(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Sizes, starts and checks of the images of a file of pixels; None unless it is there and whole."""
    try:
        with np.load(path.with_suffix(".npz"), allow_pickle=False) as kept:
            sizes, starts, checks = kept["sizes"], kept["starts"], kept["checks"]
        return (sizes, starts, checks) if path.stat().st_size == starts[-1] else None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


def _by_rank_zero(work: Iterator[None]) -> None:
    """Goes through process 0's work, while the others wait; if it fails, all raise as in ``all_or_none``.

    It may take hours, and a process that says nothing for minutes is taken for dead.
    """
    failed: list[Exception] = []

    def ends() -> bool:
        """Whether the work has ended within PAUSE."""
        until = time.monotonic() + PAUSE
        try:
            while time.monotonic() < until:
                next(work)
        except StopIteration:
            return True
        except (DataError, OSError) as error:
            failed.append(error)
            return True
        return False

    while not distributed.any_rank(distributed.rank() == 0 and ends()):
        pass

    def say() -> None:
        if failed:
            raise failed[0]

    distributed.all_or_none(say)


def _write(path: Path, count: int, make: Callable[[int], Tensor]) -> Iterator[None]:
    """Writes the pixels of all images, and yields after each. Raises as ``keep``."""

    def too_much(size: float) -> DataError:
        return DataError(
            f"cache_pixels would keep {size / 1e9:.1f} GB of pixels or more in {path.parent}, beyond "
            f"{MOST_BYTES / 1e9:.1f}; leave it off, or take a smaller img_size or a larger crop_scale"
        )

    def pixels(index: int) -> np.ndarray | None:
        try:
            return np.ascontiguousarray(make(index).permute(1, 2, 0).numpy())
        except DataError:
            return None  # said again, by its name, whenever the image is to be read

    chosen = sorted({number * count // SAMPLE for number in range(SAMPLE)})
    sample = [found.nbytes for found in map(pixels, chosen) if found is not None]
    expected = count * sum(sample) / max(len(sample), 1)
    if expected > MOST_BYTES:
        raise too_much(expected)
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_partial(path.parent, "*")
    for old in path.parent.iterdir():
        if old.suffix in (".bin", ".npz"):  # of other images or sizes
            old.unlink()
    sizes, checks = np.zeros((count, 2), np.int32), np.zeros(count, np.uint32)
    with atomic_write(path) as written, written.open("wb") as file:
        for index, found in enumerate(track(_in_order(pixels, count), "pixels", count)):
            if found is not None:
                sizes[index], checks[index] = found.shape[:2], zlib.crc32(found.data)
                file.write(found.data)
            if file.tell() > MOST_BYTES:
                raise too_much(file.tell())
            yield
    starts = np.concatenate([[0], np.cumsum(3 * sizes.astype(np.int64).prod(1))])
    with atomic_write(path.with_suffix(".npz")) as written:
        np.savez(written, sizes=sizes, starts=starts, checks=checks)


def _in_order(pixels: Callable[[int], np.ndarray | None], count: int) -> Iterator[np.ndarray | None]:
    """Of every image, made by several threads, few at once."""
    with ThreadPoolExecutor(min(THREADS, distributed.cores())) as pool:
        for first in range(0, count, 4 * THREADS):
            yield from pool.map(pixels, range(first, min(count, first + 4 * THREADS)))
