"""``head.safetensors``: a linear head on frozen features, as its task has trained it.

Its logits are ``weight`` (C, D) times the input (D,) plus ``bias`` (C,). ``about`` in the file's metadata says what the
input is, of which encoder, and which classes the logits are of.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from evaluate.runtime import distributed
from results import artifacts
from results.atomic import atomic_write

KIND = "siamese-eval head 1"


def save(folder: Path, weight: torch.Tensor, bias: torch.Tensor | None, about: Mapping[str, Any]) -> None:
    """Writes the file atomically, on the first process.

    Args: about: ``encoder`` (its fingerprint), ``input`` (in words) and ``classes``.
    """
    if distributed.rank() != 0:
        return
    rows = weight.detach().float().cpu().contiguous()
    given = torch.zeros(len(rows)) if bias is None else bias.detach().float().cpu().contiguous()
    with atomic_write(folder / artifacts.HEAD) as written:
        save_file({"weight": rows, "bias": given}, written, {"about": json.dumps({"kind": KIND, **about})})


def folded(head: nn.Sequential) -> tuple[torch.Tensor, torch.Tensor]:
    """Weight (C, D) and bias (C,) of a linear layer behind a BatchNorm without affine, or behind nothing."""
    norm, linear = head
    assert isinstance(linear, nn.Linear)
    if not isinstance(norm, nn.BatchNorm1d):
        return linear.weight, linear.bias
    mean, variance = norm.get_buffer("running_mean"), norm.get_buffer("running_var")
    weight = linear.weight * (variance + norm.eps).rsqrt()
    return weight, linear.bias - weight @ mean
