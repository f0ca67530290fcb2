"""The loader of a whole run: which images each step takes, and which processes read them."""

import itertools
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

from pretrain.data import loader
from pretrain.data.images import DataError, Sample
from pretrain.methods.siameseim import DEMO

CONFIG = replace(DEMO, batch_size=4, epochs=3)


class Signed:
    """Ten images; what reads one signs it in the place where damaged images are named."""

    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> Sample:
        return Sample(torch.full((3, 40, 48), index, dtype=torch.uint8), index, {os.getpid(): "read here"})


def steps(first: int, micro_batch: int, workers: int) -> list[loader.Step]:
    images: Any = Signed()
    return list(loader.steps_from(images, first, micro_batch, CONFIG, workers))


def taken(step: loader.Step) -> list[list[int]]:
    return [part.index.tolist() for part in step.micro]


def test_one_process_reads_from_the_first_epoch_to_the_last() -> None:
    made = steps(0, 4, workers=1)
    readers = {reader for step in made for reader in step.damaged}
    assert len(made) == 6 and len(readers) == 1 and os.getpid() not in readers


def test_a_run_that_goes_on_takes_the_images_of_an_unbroken_one() -> None:
    whole = steps(0, 2, workers=0)
    assert [step.epoch for step in whole] == [0, 0, 1, 1, 2, 2]
    for first, workers in itertools.product((1, 2, 5, 6), (0, 2)):
        rest = steps(first, 2, workers)
        assert [(step.epoch, taken(step)) for step in rest] == [(step.epoch, taken(step)) for step in whole[first:]]
    order = [row for epoch in range(3) for row in loader.order(10, epoch, CONFIG)]
    assert [taken(step) for step in whole] == [row.reshape(2, 2).tolist() for row in order]


def test_the_next_batch_is_read_while_one_is_trained_on() -> None:
    begun = [threading.Event() for _ in range(3)]

    def batches() -> Iterator[Any]:
        for event in begun:
            event.set()
            yield event

    read = loader.ahead(batches())
    assert next(read) is begun[0] and begun[1].wait(10) and not begun[2].is_set()
    assert list(read) == begun[1:]


def test_the_end_does_not_wait_for_what_is_being_read() -> None:
    hold = threading.Event()

    def batches() -> Iterator[Any]:
        yield 1
        hold.wait(60)

    read = loader.ahead(batches())
    assert next(read) == 1
    begun = time.monotonic()
    read.close()
    assert time.monotonic() - begun < 30
    hold.set()


def test_an_error_comes_in_the_place_of_its_batch() -> None:
    def batches() -> Iterator[Any]:
        yield 1
        yield 2
        raise DataError("the third cannot be read")

    read = loader.ahead(batches())
    assert [next(read), next(read)] == [1, 2]
    with pytest.raises(DataError, match="the third"):
        next(read)
