"""Training state on disk, so that a task killed in the middle goes on where it was."""

import os
from pathlib import Path
from typing import Any

import torch

FILE = "training_state.pt"


def save(out_dir: Path, identity: str, state: dict[str, Any]) -> None:
    """Writes tensors and numbers atomically; ``identity`` says what is being trained, on what."""
    temporary = out_dir / f"{FILE}.{os.getpid()}.tmp"
    torch.save({"identity": identity, **state}, temporary)
    os.replace(temporary, out_dir / FILE)


def load(out_dir: Path, identity: str) -> dict[str, Any] | None:
    """The state saved for the same identity, else None: another config or encoder never goes on from it."""
    path = out_dir / FILE
    if not path.is_file():
        return None
    state = torch.load(path, map_location="cpu", weights_only=True)
    return state if state["identity"] == identity else None


def clear(out_dir: Path) -> None:
    """Removes the state of a finished training."""
    (out_dir / FILE).unlink(missing_ok=True)
