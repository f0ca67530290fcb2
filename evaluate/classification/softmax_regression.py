"""Softmax regression without intercept, solved to a proven optimum.

float32 goes all the way where it can: its gradient is exact to some 1e-10 here, and only a line search that compares
values needs more. The optimum is then proved in float64, and where float32 did not reach it scikit-learn goes on from
there in float64.
"""

import contextlib
import warnings
from collections.abc import Callable

import numpy as np
import torch

from evaluate.runtime.errors import UserError

# largest entry of the objective's gradient at which the solver stops; leads to a gap of some 1e-8 on 1 % of ImageNet
TOLERANCE = 1e-8
GAP = 1e-6  # the objective is at most so far above its optimum; proved at each fit
MEMORY = 10  # pairs of steps and changes of the gradient that L-BFGS keeps
FLAT = 0.1  # a step is long enough where the slope along it is at most this share of the slope at its start
TRIES = 20  # step lengths that are tried along a direction

Pair = tuple[torch.Tensor, torch.Tensor]


def centre_rows(values: np.ndarray) -> np.ndarray:
    """Each row (n, D) minus its own mean over the D features, then over its own L2 norm; no statistics of the set."""
    centred = values - values.mean(axis=1, keepdims=True)
    return centred / np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), np.finfo(values.dtype).tiny)


def fit(rows: np.ndarray, labels: np.ndarray, l2: float, max_iterations: int = 1000) -> tuple[np.ndarray, float]:
    """Weights (C, D) of the classes present, in order, and the objective (1/n) sum CE + (l2/n)/2 |W|^2 there; three
    classes or more.

    scikit-learn minimises C sum CE + |W|^2 / 2, which has the same optimum at C = 1 / l2. The objective is strongly
    convex with modulus l2/n, so it lies at most |gradient|^2 / (2 l2/n) above its optimum.

    Raises:
        UserError: that bound is above GAP.
    """
    classes, targets = np.unique(labels, return_inverse=True)
    precise, right = torch.from_numpy(rows), torch.from_numpy(targets)
    weights = torch.zeros(len(classes), rows.shape[1], dtype=torch.float64)
    with contextlib.suppress(RuntimeError):  # so torch refuses a setting that is beyond the range of float32
        found = descend(precise.float(), right, len(classes), l2, max_iterations).double()
        weights = found if bool(found.isfinite().all()) else weights
    objective, gradient = _objective(weights, precise, right, l2)
    if not (gradient.abs().max() <= TOLERANCE and _gap(gradient, l2, len(rows)) <= GAP):
        weights = _go_on(weights, rows, labels, l2, max_iterations)
        objective, gradient = _objective(weights, precise, right, l2)
    gap = _gap(gradient, l2, len(rows))
    if not gap <= GAP:
        raise UserError(
            f"after {max_iterations} iterations the objective may be {gap:.1e} above its optimum; choose --set "
            f"max_iterations=N above {max_iterations}"
        )
    return weights.numpy(), objective


def descend(rows: torch.Tensor, targets: torch.Tensor, classes: int, l2: float, max_iterations: int) -> torch.Tensor:
    """Weights (C, D) by L-BFGS from zero, in the dtype of ``rows`` (n, D); ``targets`` (n,) are below ``classes``.

    It ends at TOLERANCE, after ``max_iterations``, or where the dtype lets it get no lower, which may be far from the
    optimum. Along a direction the logits are linear: a step costs two products of matrices, whichever number of lengths
    is tried. Memory: four arrays (n, C) and twenty (C, D).
    """
    count, index = len(rows), torch.arange(len(rows))
    weights = rows.new_zeros(classes, rows.shape[1])
    logits, moved = rows.new_zeros(count, classes), rows.new_zeros(count, classes)
    changed, residuals = torch.empty_like(logits), torch.empty_like(logits)

    def look(length: float) -> None:
        """The derivatives of the losses by the logits, at so much of the direction."""
        torch.add(logits, moved, alpha=length, out=changed)
        torch.softmax(changed, 1, out=residuals)
        residuals[index, targets] -= 1

    def gradient_here() -> torch.Tensor:
        return torch.addmm(weights, residuals.T, rows, beta=l2 / count, alpha=1 / count)

    look(0)
    gradient, pairs = gradient_here(), list[Pair]()
    for _ in range(max_iterations):
        if gradient.abs().max() <= TOLERANCE and _gap(gradient, l2, count) <= GAP / 10:
            break
        direction = _direction(gradient, pairs)
        torch.mm(rows, direction.T, out=moved)
        across, along = _dot(weights, direction), _dot(direction, direction)

        def slope(length: float, across: float = across, along: float = along) -> float:
            look(length)
            return (_dot(residuals, moved) + l2 * (across + length * along)) / count

        length = _length(slope, _dot(gradient, direction))
        if length is None:
            break
        step, before = direction.mul_(length), gradient
        weights = weights + step
        logits.add_(moved, alpha=length)
        gradient = gradient_here()
        pairs = [*pairs, (step, gradient - before)][-MEMORY:]
    return weights


def _direction(gradient: torch.Tensor, pairs: list[Pair]) -> torch.Tensor:
    """Minus the gradient times the inverse of the Hessian that the pairs tell of: L-BFGS's two loops."""
    direction, shares = -gradient, list[float]()
    for step, change in reversed(pairs):
        shares.append(_dot(step, direction) / _dot(step, change))
        direction.add_(change, alpha=-shares[-1])
    if pairs:
        step, change = pairs[-1]
        direction.mul_(_dot(step, change) / _dot(change, change))
    for (step, change), share in zip(pairs, reversed(shares), strict=True):
        direction.add_(step, alpha=share - _dot(change, direction) / _dot(step, change))
    return direction


def _length(slope: Callable[[float], float], first: float) -> float | None:
    """A length at which the slope is nearly 0, which ``first`` is at length 0; None where none is found.

    The objective is convex, so its slope along a line only rises, and where it is 0 the objective is lowest: no values
    are compared, whose last digits float32 does not know.
    """
    if not first < 0:
        return None
    low, low_slope, high, high_slope, length = 0.0, first, float("inf"), float("inf"), 1.0
    for _ in range(TRIES):
        here = slope(length)
        if abs(here) <= FLAT * -first:
            return length
        if here > 0:
            high, high_slope = length, here
        elif here < 0:
            low, low_slope = length, here
        else:  # not a number
            return None
        if high < float("inf"):
            length = low + (high - low) * min(max(low_slope / (low_slope - high_slope), 0.05), 0.95)
        else:
            length *= min(max(first / (first - here), 1.5), 10) if here > first else 10
    return None


def _go_on(weights: torch.Tensor, rows: np.ndarray, labels: np.ndarray, l2: float, max_iterations: int) -> torch.Tensor:
    """Weights that scikit-learn finds from these on, in float64, which may be short of the optimum."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression  # slow to import, and only this needs it

    solver = LogisticRegression(C=1 / l2, fit_intercept=False, tol=TOLERANCE, max_iter=max_iterations, warm_start=True)
    solver.coef_ = weights.numpy()
    with warnings.catch_warnings(action="ignore", category=ConvergenceWarning):
        return torch.from_numpy(solver.fit(rows, labels).coef_)


def _objective(
    weights: torch.Tensor, rows: torch.Tensor, targets: torch.Tensor, l2: float
) -> tuple[float, torch.Tensor]:
    """The objective and its gradient (C, D)."""
    weights = weights.requires_grad_()
    loss = torch.nn.functional.cross_entropy(rows @ weights.T, targets)
    objective = loss + l2 / len(rows) / 2 * weights.square().sum()
    (gradient,) = torch.autograd.grad(objective, weights)
    weights.requires_grad_(False)
    return objective.item(), gradient


def _gap(gradient: torch.Tensor, l2: float, count: int) -> float:
    """The most that the objective is above its optimum."""
    return float(gradient.double().square().sum()) / (2 * l2 / count)


def _dot(one: torch.Tensor, other: torch.Tensor) -> float:
    return float(torch.dot(one.flatten(), other.flatten()))
