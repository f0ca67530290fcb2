"""Draws of images, on which a metric over all images has its error: one place for all tasks that need them.

The draws depend on the number of images alone: two encoders that were tested on the same images have the same draws,
and are compared draw by draw.
"""

from collections.abc import Mapping, Sequence

import numpy as np

RESAMPLES = 200
DECIMALS = 5  # of a resampled metric in percent: a record keeps 200 of each


def draws(images: int) -> np.ndarray:
    """(RESAMPLES, N) how often each of N images is drawn."""
    return np.random.default_rng(0).multinomial(images, np.full(images, 1 / images), size=RESAMPLES)


def kept(values: Mapping[str, Sequence[float] | np.ndarray]) -> dict[str, list[float]]:
    """Resampled metrics as a record keeps them; one that no draw gives, or not every draw, is left out."""
    finite = {name: np.asarray(drawn, dtype=float) for name, drawn in values.items()}
    return {name: drawn.round(DECIMALS).tolist() for name, drawn in finite.items() if np.isfinite(drawn).all()}


def errors(values: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """The standard error of each metric, in percent points: the deviation of its resampled values."""
    return {name: float(np.std(drawn, ddof=1)) for name, drawn in values.items()}
