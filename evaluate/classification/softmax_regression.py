"""Softmax regression without intercept, solved to a proven optimum."""

import warnings

import numpy as np
import torch

from evaluate.runtime.errors import UserError

# largest entry of the objective's gradient at which the solver stops; leads to a gap of some 1e-8 on 1 % of ImageNet
TOLERANCE = 1e-8
GAP = 1e-6  # the objective is at most so far above its optimum; proved at each fit


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
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression  # slow to import, and only this needs it

    solver = LogisticRegression(C=1 / l2, fit_intercept=False, tol=TOLERANCE, max_iter=max_iterations, warm_start=True)
    with warnings.catch_warnings(action="ignore", category=ConvergenceWarning):  # what it reached is judged below
        for dtype, tolerance in (
            (np.float32, 10 * TOLERANCE),
            (np.float64, TOLERANCE),
        ):  # most of the way at half the cost
            solver.set_params(tol=tolerance).fit(rows.astype(dtype), labels)
    weights = torch.from_numpy(solver.coef_).requires_grad_()
    targets = torch.from_numpy(np.searchsorted(solver.classes_, labels))
    objective = (
        torch.nn.functional.cross_entropy(torch.from_numpy(rows) @ weights.T, targets)
        + l2 / len(rows) / 2 * weights.square().sum()
    )
    (gradient,) = torch.autograd.grad(objective, weights)
    gap = float(gradient.square().sum()) / (2 * l2 / len(rows))
    if gap > GAP:
        raise UserError(
            f"after {max_iterations} iterations the objective may be {gap:.1e} above its optimum; choose --set "
            f"max_iterations=N above {max_iterations}"
        )
    return solver.coef_, objective.item()
