"""Numbers that are numbers: what overflows in a short precision is computed again in float32, and nothing else that is
not finite passes.
"""

from collections.abc import Callable

import torch

from evaluate.runtime.errors import UserError

IN_FP32 = "in_fp32"  # bool (B,): whether an image was computed again
TOO_LARGE = (
    "the encoder's features are not finite, or too large for float32; the checkpoint diverged, or its mean "
    "and std are wrong"
)


def finite(forward: Callable[[str], dict[str, torch.Tensor]], precision: str) -> dict[str, torch.Tensor]:
    """What ``forward`` gives in a precision, or in fp32 where that is not finite; IN_FP32 says which.

    Args:
        forward: from a resolved precision to tensors (B, …).

    Raises:
        UserError: not finite in fp32 either.
    """
    values = forward(precision)
    good = _are_finite(values)
    again = not good and precision != "fp32"
    if again:
        values = forward("fp32")
        good = _are_finite(values)
    if not good:
        raise UserError(TOO_LARGE)
    count = len(next(iter(values.values())))
    return {**values, IN_FP32: torch.full((count,), again)}


def require_finite(rows: torch.Tensor) -> torch.Tensor:
    """The rows (n, D) themselves.

    Raises UserError where one is not finite, or all of it 0, as an overflowing norm leaves it.
    """
    if not bool(torch.isfinite(rows).all() and rows.abs().amax(dim=1).gt(0).all()):
        raise UserError(TOO_LARGE)
    return rows


def _are_finite(values: dict[str, torch.Tensor]) -> bool:
    """Read once, since a GPU is waited for."""
    return bool(torch.stack([torch.isfinite(value).all() for value in values.values()]).all())
