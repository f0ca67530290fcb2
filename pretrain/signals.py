"""Signals that ask a run to stop, and the faults of libraries as sentences."""

import contextlib
import signal
from collections.abc import Iterator

import torch

from evaluate.runtime.errors import from_outside


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


def sentence(error: RuntimeError) -> str | None:
    """What an error that comes from outside this process means to a person; None for any other."""
    if isinstance(error, torch.OutOfMemoryError):
        return (
            "the GPU has too little memory; --grad-checkpointing takes less and changes nothing else; a lower "
            "--micro-batch takes less too, but then BatchNorm and SiameseIM's loss see fewer images together"
        )
    return from_outside(error) or None
