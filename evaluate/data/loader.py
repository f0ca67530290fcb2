"""Reads the pixels of an image set: one image, or batches in an order that the caller gives."""

import io
import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from evaluate.data.archives import File
from evaluate.data.imagenet import ImageSet
from evaluate.data.pixels import READ_ERRORS, read_rgb
from evaluate.data.transforms import Transform
from evaluate.runtime import shared_memory
from evaluate.runtime.errors import UserError, in_one_sentence

UNREADABLE = -1  # the label of an image that could not be read, where such are kept
LOADING_SECONDS = 600  # that a data loading process may take for one batch
KEPT_BYTES = 256 * 1024**2  # a set that decodes to less than this is decoded once and kept in memory
Sample = tuple[
    int, int
]  # (epoch, index of the image): all that a random transform may depend on, besides the run's seed


def read_image(file: File) -> Image.Image:
    """An RGB image; raises UserError naming a file that cannot be read to its end."""
    try:
        return read_rgb(file if isinstance(file, Path) else io.BytesIO(file.read()))
    except PermissionError as error:
        raise UserError(in_one_sentence(error)) from error
    except READ_ERRORS as error:
        raise UserError(
            f"the image {file} cannot be read ({error}); download it again (a task leaves images out only with its "
            f"setting max_unreadable_images)"
        ) from error


class Images(Dataset):
    """Decoded and transformed images, uint8 (3, H, W), with their labels, by ``(epoch, index)``.

    An unreadable file comes out as its UserError, not as an exception: a data loading process would wrap that in a
    traceback. With ``keep_unreadable`` it comes out as a black image labelled ``UNREADABLE``, for whoever counts and
    leaves out such.
    """

    def __init__(self, images: ImageSet, transform: Transform, keep_unreadable: bool = False) -> None:
        self.images, self.transform, self.keep_unreadable = images, transform, keep_unreadable
        self.kept: dict[int, Image.Image] | None = {}

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, sample: Sample) -> tuple[torch.Tensor, int] | UserError:
        epoch, index = sample
        label = int(self.images.labels[index])
        try:
            image = self._read(index)
        except UserError as error:
            if not self.keep_unreadable:
                return error
            image, label = Image.new("RGB", (256, 256)), UNREADABLE
        try:
            pixels = np.array(self.transform(image, epoch, index), dtype=np.uint8)
        except UserError as error:  # an image that the transform refuses, of a size it was not made for
            return UserError(f"{self.images.files[index]}: {error}")
        return torch.from_numpy(pixels).permute(2, 0, 1), label

    def _read(self, index: int) -> Image.Image:
        if self.kept is not None and index in self.kept:
            return self.kept[index]
        image = read_image(self.images.files[index])
        if self.kept is not None:
            self.kept[index] = image
            if 3 * image.width * image.height * len(self.images) > KEPT_BYTES:
                self.kept = None
        return image


def batches(
    dataset: Images, sampler: Iterable[list[Sample]], workers: int = 0
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Images uint8 (B, 3, H, W) and labels int64 (B,), one batch for each list of samples; raises UserError for an
    unreadable image.
    """
    listed = iter(sampler)
    first = next(listed, None)
    if first is None:
        return
    if workers:
        shared_memory.check(len(first) * _bytes(dataset[first[0]]), workers)
    loader = DataLoader(
        dataset,
        batch_sampler=itertools.chain([first], listed),
        num_workers=workers,
        collate_fn=_collate,
        pin_memory=torch.cuda.is_available(),
        timeout=LOADING_SECONDS if workers else 0,
    )
    reading = iter(loader)
    while True:
        try:
            batch = next(reading, None)
        except RuntimeError as error:
            if not str(error).startswith("DataLoader"):
                raise
            reason = str(error).splitlines()[0]
            raise UserError(
                f"a data loading process hangs or was killed ({reason}); provide more memory or /dev/shm, or choose "
                f"fewer --workers"
            ) from error
        if batch is None:
            return
        if isinstance(batch, UserError):
            raise batch
        yield batch


def _bytes(item: tuple[torch.Tensor, int] | UserError) -> int:
    return 0 if isinstance(item, UserError) else item[0].nbytes


def _collate(items: list[tuple[torch.Tensor, int] | UserError]) -> tuple[torch.Tensor, torch.Tensor] | UserError:
    images, labels = [], []
    for item in items:
        if isinstance(item, UserError):
            return item
        images.append(item[0])
        labels.append(item[1])
    return torch.stack(images), torch.tensor(labels)
