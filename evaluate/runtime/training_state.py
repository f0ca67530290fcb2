"""Training state on disk, so that a task killed in the middle goes on where it was.

It stays until the record is written (``evaluate.harness.task``): a task killed between its last step and its record
only evaluates again.
"""

import pickle
import shutil
import sys
from pathlib import Path
from typing import Any

import torch

from evaluate.runtime.errors import UserError
from results.atomic import atomic_write, remove_partial

FILE = "training_state.pt"
# the folder of a detector's or segmenter's states, which evaluate.mm.resume writes
DENSE_STATE = "dense_training_state"


def save(out_dir: Path, identity: str, state: dict[str, Any]) -> None:
    """Writes tensors and numbers atomically; ``identity`` says what is being trained, on what."""
    remove_partial(out_dir, FILE)
    with atomic_write(out_dir / FILE) as written:
        torch.save({"identity": identity, **state}, written)


def load(out_dir: Path, identity: str) -> dict[str, Any] | None:
    """The state saved for the same identity, else None: another config or encoder never goes on from it.

    Raises UserError for a damaged file.
    """
    path = out_dir / FILE
    if not path.is_file():
        return None
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        if state["identity"] == identity:
            return state
        print(
            f"{path} is the state of another training (settings or data); starting from the beginning", file=sys.stderr
        )
        return None
    except (RuntimeError, EOFError, pickle.UnpicklingError, KeyError, TypeError) as error:
        raise UserError(
            f"the training state {path} is damaged ({type(error).__name__}); remove it, and training starts again"
        ) from error


def clear(out_dir: Path) -> None:
    """Removes the state of a training whose record stands."""
    (out_dir / FILE).unlink(missing_ok=True)
    shutil.rmtree(out_dir / DENSE_STATE, ignore_errors=True)
