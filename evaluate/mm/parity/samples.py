"""Weights and inputs by formula, and the comparison with recorded samples."""

import zlib
from typing import Any

import numpy as np
import torch
from torch import Tensor

from evaluate.runtime.errors import UserError

FLOAT32, EXACT, SAME = 5e-5, 1e-9, 0.0  # bounds
Result = dict[str, tuple[float, float]]  # name: (largest difference, bound)


def recorded_weight(entry: dict[str, Any]) -> Tensor:
    """A weight from its recipe: seed key, offset, scale.

    Raises:
        UserError: the generator does not give the recorded values.
    """
    generator = torch.Generator().manual_seed(zlib.crc32(entry["seed_key"].encode()))
    value = entry["offset"] + entry["scale"] * torch.randn(entry["shape"], generator=generator)
    if "first3" in entry and not np.allclose(value.flatten()[:3].tolist(), entry["first3"][: value.numel()], atol=1e-6):
        raise UserError(
            f"torch's generator does not give the recorded values of {entry['seed_key']}; compare with torch 2.13"
        )
    return value


def image(entry: dict[str, Any], device: str) -> Tensor:
    """The input picture by its formula, on a device."""
    b, c, i, j = np.ogrid[: entry["batch"], : entry["channels"], : entry["height"], : entry["width"]]
    value = np.sin(0.11 * i + 0.07 * (c + 1) * j + 0.5 * b) + 0.5 * np.cos(0.0013 * i * j + c + b)
    return torch.from_numpy(value.astype(np.float32)).to(device)


def difference_at_samples(tensor: Tensor, entry: dict[str, Any]) -> float:
    """Largest difference at the recorded positions and of the mean absolute value; infinite if the shape differs."""
    if list(tensor.shape) != entry["shape"]:
        return float("inf")
    flat = tensor.detach().cpu().double().flatten()
    largest = (flat[entry["sample_index"]] - torch.tensor(entry["sample_value"], dtype=torch.float64)).abs().max()
    return max(float(largest), abs(float(flat.abs().sum()) - entry["abs_sum"]) / flat.numel())
