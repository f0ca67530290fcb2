"""Accuracy, its standard error, and the per-image outcome from which paired comparisons are made."""

import math
from pathlib import Path

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


def standard_error(percentage: float, count: int) -> float:
    """Standard error of an accuracy over ``count`` independent images, in percent points (binomial)."""
    share = percentage / 100
    return 100 * math.sqrt(share * (1 - share) / count)


def save_predictions(out_dir: Path, correct: torch.Tensor | np.ndarray) -> None:
    """Writes ``predictions.npz`` with ``correct``, bool in the order of val, for paired comparisons of two encoders."""
    with atomic_write(out_dir / "predictions.npz") as written:  # every process of torchrun may write
        np.savez_compressed(written, correct=np.asarray(correct, dtype=bool))
