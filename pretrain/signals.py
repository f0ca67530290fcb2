"""What stops a run from outside: signals, and a GPU without room for a step."""

import contextlib
import re
import signal
from collections.abc import Iterator

import torch

from pretrain.config import PretrainConfig
from pretrain.data.loader import images_at_once
from pretrain.methods import module_of


@contextlib.contextmanager
def listening() -> Iterator[list[str]]:
    """A list that SIGTERM, SIGUSR2 and the first Ctrl-C (SIGINT) put their name into; a second Ctrl-C stops at once."""
    heard: list[str] = []

    def hear(number: int, frame: object) -> None:
        heard.append(signal.Signals(number).name)
        if number == signal.SIGINT:
            signal.signal(number, signal.default_int_handler)

    before = {number: signal.signal(number, hear) for number in (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT)}
    try:
        yield heard
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def out_of_memory(error: torch.OutOfMemoryError, config: PretrainConfig, micro_batch: int | None) -> str:
    """What a run says that a GPU does not hold: the setting, the paper's value, and what a smaller one changes.

    Nothing is halved here: the images that are taken at once are part of what a run computes.
    """
    found = re.search(r"total capacity of [\d.]+ \w+", str(error))
    of = f" (a {found[0]})" if found else ""
    taken, paper = images_at_once(micro_batch, config), module_of(config.method).PRESETS["paper"].batch_size
    return (
        f"the GPU's memory{of} does not hold a step with micro_batch {taken}, and the paper's value is {paper} over "
        f"all processes: take more or larger GPUs, or --grad-checkpointing, which changes no number; a smaller "
        f"--micro-batch is never chosen for you, since BatchNorm and the loss's correlation then see fewer images "
        f"together, which is another training"
    )
