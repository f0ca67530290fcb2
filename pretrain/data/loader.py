"""Batches of crops for the training loop, in an order that depends on (seed, epoch) alone."""

import queue
import signal
import threading
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from evaluate.runtime import shared_memory
from pretrain import distributed
from pretrain.config import PretrainConfig
from pretrain.data import views
from pretrain.data.images import DataError, Images


class Loaded(NamedTuple):
    """The crops of a micro-batch, and the images that could not be read for it, by index. Named tuples are what the
    loader can pin."""

    crops: views.Crops
    damaged: dict[int, str]


@dataclass(frozen=True)
class Step:
    """What this process trains on in one optimizer step: its epoch and micro-batches, and the images that could not be
    read, by index."""

    epoch: int
    micro: list[views.Crops]
    damaged: dict[int, str]


class Draws(Dataset[Loaded]):
    """The crops of micro-batches, cut inside the worker; an index is an epoch and the images that it takes."""

    def __init__(self, images: Images, config: PretrainConfig):
        self.images, self.config = images, config

    def __getitem__(self, draw: tuple[int, list[int]]) -> Loaded:
        epoch, taken = draw
        samples = [self.images[index] for index in taken]
        index = np.array([sample.index for sample in samples])
        crops = views.crop([sample.image for sample in samples], index, epoch, self.config)
        tokens = self.config.tokens([sample.caption for sample in samples])
        if tokens is not None:
            crops = crops._replace(text=torch.from_numpy(tokens))
        return Loaded(crops, {position: why for sample in samples for position, why in sample.damaged.items()})


def steps_per_epoch(images: int, config: PretrainConfig) -> int:
    """Optimiser steps an epoch; the last, incomplete batch is left out, as the paper does."""
    if images < config.batch_size:
        raise DataError(
            f"{images} images do not fill one batch of {config.batch_size}; lower batch_size with --set batch_size=N"
        )
    return images // config.batch_size


def images_at_once(micro_batch: int | None, config: PretrainConfig) -> int:
    """Images that each process takes at once: its whole share of a step, or ``micro_batch``. Raises ValueError if it
    does not split."""
    share, remainder = divmod(config.batch_size, distributed.world_size())
    taken = min(micro_batch or share, share)
    if remainder or share % taken:
        processes = distributed.world_size()
        raise ValueError(
            f"batch_size {config.batch_size} does not split into {processes} processes x micro-batches of {taken}"
        )
    return taken


def order(images: int, epoch: int, config: PretrainConfig) -> np.ndarray:
    """(steps, batch_size) indices of an epoch's images, step by step."""
    permutation = np.random.default_rng([config.seed, epoch]).permutation(images)
    return permutation[: steps_per_epoch(images, config) * config.batch_size].reshape(-1, config.batch_size)


def steps_from(
    images: Images, first: int, micro_batch: int, config: PretrainConfig, workers: int
) -> Generator[Step, None, None]:
    """This process's part of each optimizer step from the ``first`` of the run on, to the end of the last epoch.

    Close it (``contextlib.closing``) where it is left before its end: the loading processes end with it.

    The images of a step are split into micro-batches first and over the processes then: what is normalized together is
    the same for one process with a micro-batch of 2N and for two with N.
    """
    steps = steps_per_epoch(len(images), config)

    def epochs() -> Iterator[tuple[int, np.ndarray]]:
        """Each epoch that is not over, with the (steps, micro-batches, micro_batch) images of this process."""
        for epoch in range(first // steps, config.epochs):
            rows = order(len(images), epoch, config)[max(first - epoch * steps, 0) :]
            yield epoch, rows.reshape(len(rows), -1, distributed.world_size(), micro_batch)[:, :, distributed.rank()]

    if workers:
        shared_memory.check(micro_batch * _bytes_an_image(images, config), workers)
    # one for the whole run: its workers go on from an epoch to the next without a pause
    reading: Any = iter(
        DataLoader(
            Draws(images, config),
            batch_size=None,
            sampler=((epoch, part) for epoch, mine in epochs() for part in mine.reshape(-1, micro_batch).tolist()),
            num_workers=workers,
            pin_memory=torch.cuda.is_available(),  # copied to the GPU while it still computes
            worker_init_fn=_leave_signals_to_the_run,
        )
    )
    # beside GPUs another thread would pin memory for the first one
    loader: Iterator[Loaded] = reading if workers or torch.cuda.is_available() else ahead(reading)
    try:
        for epoch, mine in epochs():
            for _ in mine:
                parts = [_next(loader) for _ in range(mine.shape[1])]
                damaged = {i: why for part in parts for i, why in part.damaged.items()}
                yield Step(epoch, [part.crops for part in parts], damaged)
    finally:
        if workers:  # at its exit Python would wait for them for ever: they do not hear its SIGTERM
            reading._shutdown_workers()


def ahead(batches: Iterator[Loaded]) -> Iterator[Loaded]:
    """The same in their order, each read by a thread while the one before is trained on: decoding and resizing leave
    Python free. What is raised comes in the place of its batch."""
    asked: queue.SimpleQueue[bool] = queue.SimpleQueue()
    read: queue.SimpleQueue[Loaded | BaseException | None] = queue.SimpleQueue()

    def work() -> None:
        while asked.get():
            try:
                read.put(next(batches, None))
            except BaseException as error:
                read.put(error)

    # not an executor, at whose end Python waits for what it reads: a second Ctrl-C stops at once
    threading.Thread(target=work, daemon=True).start()
    asked.put(True)
    try:
        while (batch := read.get()) is not None:
            if isinstance(batch, BaseException):
                raise batch
            asked.put(True)
            yield batch
    finally:
        asked.put(False)


def _bytes_an_image(images: Images, config: PretrainConfig) -> int:
    """Of its crops, as a worker hands them over."""
    crops = Draws(images, config)[0, [0]].crops
    return sum(tensor.nbytes for tensor in crops if tensor is not None)


def _next(loader: Iterator[Loaded]) -> Loaded:
    try:
        return next(loader)
    except DataError as error:  # from a worker it comes with that process's traceback before its sentence
        raise DataError(str(error).strip().splitlines()[-1].removeprefix("pretrain.data.images.DataError: ")) from error


def _leave_signals_to_the_run(worker: int) -> None:
    """A signal to the whole process group must not end a worker before the run has saved."""
    for heard in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2):
        signal.signal(heard, signal.SIG_IGN)
