"""Images from class folders, as uint8 tensors, in an order that depends on (seed, epoch) alone."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from pretrain import distributed, views
from pretrain.config import PretrainConfig

EXTENSIONS = {".jpeg", ".jpg", ".png", ".bmp", ".webp"}
CACHE_BYTES = 256 * 2**20  # a set that fits, decoded, is decoded once


class DataError(ValueError):
    """What is wrong with the images, in one sentence."""


class ImageFolder(Dataset[tuple[Tensor, int]]):
    """All images below a folder, sorted by path: (3, H, W) uint8 and the image's index."""

    def __init__(self, folder: Path):
        if not folder.is_dir():
            raise DataError(f"the training folder {folder} does not exist; it should hold one folder of images a class")
        self.paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in EXTENSIONS)
        if not self.paths:
            raise DataError(f"no images below {folder}; expected files ending in {', '.join(sorted(EXTENSIONS))}")
        fits = self.read(0).numel() * len(self.paths) <= CACHE_BYTES
        self.cache: dict[int, Tensor] | None = {} if fits else None

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        if self.cache is None:
            return self.read(index), index
        if index not in self.cache:
            self.cache[index] = self.read(index)
        return self.cache[index], index

    def read(self, index: int) -> Tensor:
        """One image (3, H, W) uint8 from its file. Raises DataError naming a file that cannot be read."""
        try:
            with Image.open(self.paths[index]) as file:
                return torch.from_numpy(np.array(file.convert("RGB"))).permute(2, 0, 1).contiguous()
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise DataError(f"{self.paths[index]} cannot be read as an image ({error}); replace or remove it") from error


class Collate:
    """Cuts the crops of a batch inside the worker."""

    def __init__(self, epoch: int, config: PretrainConfig):
        self.epoch, self.config = epoch, config

    def __call__(self, items: list[tuple[Tensor, int]]) -> views.Cut:
        images, index = zip(*items, strict=True)
        return views.cut(list(images), np.array(index), self.epoch, self.config)


def steps_per_epoch(images: int, config: PretrainConfig) -> int:
    """Optimiser steps an epoch; the last, incomplete batch is left out, as the paper does."""
    if images < config.batch_size:
        raise DataError(f"{images} images do not fill one batch of {config.batch_size}; lower batch_size with --set batch_size=N")
    return images // config.batch_size


def epoch_batches(
    images: ImageFolder, epoch: int, first_step: int, micro_batch: int, config: PretrainConfig, workers: int
) -> Iterator[views.Cut]:
    """This process's micro-batches of one epoch from an optimiser step on: its part of each global batch, in order."""
    order = np.random.default_rng([config.seed, epoch]).permutation(len(images))
    steps = order[: steps_per_epoch(len(images), config) * config.batch_size].reshape(-1, config.batch_size)[first_step:]
    share = config.batch_size // distributed.world_size()
    mine = steps[:, distributed.rank() * share : (distributed.rank() + 1) * share].reshape(-1, micro_batch)
    loader = DataLoader(images, batch_sampler=mine.tolist(), collate_fn=Collate(epoch, config), num_workers=workers)
    try:
        yield from loader
    except DataError as error:  # from a worker it comes with that process's traceback before its sentence
        raise DataError(str(error).strip().splitlines()[-1].removeprefix("pretrain.data.DataError: ")) from error
