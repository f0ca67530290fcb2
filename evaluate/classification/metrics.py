"""Accuracy, and the per-image outcome from which paired comparisons are made."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from results.atomic import atomic_write


def topk_correct(logits: torch.Tensor, labels: torch.Tensor, k: int) -> torch.Tensor:
    """Whether the label is among the k highest logits: bool (B,) from (B, C) and (B,); k is cut to the number of
    classes.
    """
    best = logits.topk(min(k, logits.shape[1]), dim=1).indices
    return (best == labels[:, None]).any(dim=1)


def percent(correct: torch.Tensor | np.ndarray) -> float:
    """Share of true entries, in percent, from exact counts."""
    return 100.0 * int(correct.sum()) / len(correct)


def save_predictions(out_dir: Path, outcomes: Mapping[str, torch.Tensor | np.ndarray]) -> None:
    """Writes ``predictions.npz`` with what became of each image, in the order of the set, by metric: paired comparisons
    of two encoders are made from it, and the metric can be computed again.

    An outcome is bool, or a share whose mean is the metric; that of ``top1`` is called ``correct``.
    """
    arrays: dict[str, Any] = {name: np.asarray(outcome) for name, outcome in outcomes.items()}
    with atomic_write(out_dir / "predictions.npz") as written:  # every process of torchrun may write
        np.savez_compressed(written, **arrays)
