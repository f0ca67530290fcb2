"""Where the points of a training's curves go besides ``curves.jsonl``, if ``--log`` says so: TensorBoard or wandb.

A task trains once in a process, so there is one place at a time; only the first process writes.
"""

import argparse
import contextlib
import hashlib
import importlib.util
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from evaluate.runtime.errors import UserError
from results import artifacts

PLACES = ("tensorboard", "wandb")
PROJECT = "siamese-eval"
Write = Callable[[int, Mapping[str, float]], None]

_asked: tuple[str, str] | None = None  # the place, and what the training is called there
_opened: tuple[Write, Callable[[], Any]] | None = None  # what writes a point, and what ends it


def add_option(parser: argparse._ActionsContainer) -> None:
    """Adds ``--log``, which every task and ``run_all.py`` take."""
    parser.add_argument(
        "--log",
        choices=PLACES,
        help="also log the curves of each training there: tensorboard writes events beside the record, wandb to the "
        f"project {PROJECT} of whoever is logged in (the package wandb must be installed)",
    )


def require(place: str | None) -> None:
    """Raises UserError where the package of a place is not installed."""
    spec = importlib.util.find_spec(place) if place else None
    if place and (spec is None or spec.origin is None):  # a mere folder of that name, as wandb leaves them, has none
        raise UserError(f"--log {place} needs the package {place}, which is not installed; uv pip install {place}")


def choose(place: str | None, name: str) -> None:
    """Says where the training that begins next is logged, and under which name; None: nowhere."""
    global _asked
    _asked = (place, name) if place else None


def begin(folder: Path, step: int) -> None:
    """Opens the place, if one was chosen, for a training that goes on after ``step``."""
    global _opened
    end()
    if _asked is not None:
        place, name = _asked
        with _giving_up():
            _opened = _tensorboard(folder, step) if place == "tensorboard" else _wandb(folder, name)


def write(step: int, values: Mapping[str, float]) -> None:
    """Adds the numbers of one step."""
    if _opened is not None:
        with _giving_up():
            _opened[0](step, values)


def end() -> None:
    """Closes the place: what was written is there."""
    global _opened
    ending, _opened = _opened, None
    if ending is not None:
        with _giving_up():
            ending[1]()


@contextlib.contextmanager
def _giving_up() -> Iterator[None]:
    """A place that fails costs no number: a line says so, and nothing more goes there."""
    global _asked, _opened
    try:
        yield
    except Exception as error:
        place = _asked[0] if _asked else "its place"
        print(f"--log: {place} fails ({_in_one_line(error)}); curves.jsonl has all", file=sys.stderr)
        _asked = _opened = None


def _in_one_line(error: Exception) -> str:
    """The kind of an error and its first line."""
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"


def _tensorboard(folder: Path, step: int) -> tuple[Write, Callable[[], Any]]:
    from torch.utils.tensorboard import SummaryWriter  # seconds of imports

    events = SummaryWriter(str(folder / artifacts.EVENTS), purge_step=step + 1)

    def add(step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            events.add_scalar(name, value, step)
        events.flush()  # a task may be killed; there are at most a thousand points

    return add, events.close


def _wandb(folder: Path, name: str) -> tuple[Write, Callable[[], Any]]:
    import wandb

    number = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]  # a task that goes on adds to its run
    run = wandb.init(project=PROJECT, name=name, id=number, resume="allow", dir=str(folder))
    return lambda step, values: run.log(dict(values), step=step), run.finish
