"""The frozen columns' arithmetic beside its peers: kNN beside faiss, the 1 % regression beside scikit-learn."""

import importlib
import importlib.util
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from evaluate.classification import search, softmax_regression

HEAD = ("| what | ours | peer | ratio | limit |", "|---|---|---|---|---|")
LEVEL, FASTER = 1.0, 1.4


def neighbors(test: int, train: int, width: int, count: int, rounds: int) -> list[str]:
    """A row: exact search of the nearest, beside faiss' flat index; CPU seconds on one thread."""
    generator = torch.Generator().manual_seed(0)
    near, far = (
        torch.nn.functional.normalize(torch.randn(many, width, generator=generator), dim=1) for many in (train, test)
    )
    bank = search.Bank(near, halves=False)
    what = f"kNN, {test:,} of {train:,} x {width}, the nearest {count}"

    def ours() -> torch.Tensor:
        return torch.cat([bank.nearest(part, count)[1] for part in far.split(search.ROWS)])

    if importlib.util.find_spec("faiss") is None:
        return [f"| {what} | {seconds(ours)[0]:.2f} s | faiss is not installed | | at least {LEVEL} |"]
    faiss: Any = importlib.import_module("faiss")
    faiss.omp_set_num_threads(1)
    index = faiss.IndexFlatIP(width)
    index.add(near.numpy())
    pairs, same = [], 1.0
    for _ in range(rounds):
        (own, found), (theirs, expected) = seconds(ours), seconds(lambda: index.search(far.numpy(), count)[1])
        pairs.append((own, theirs))
        same = float((found.numpy() == expected).mean())
    return [row(what, "faiss", pairs, LEVEL), f"| neighbors that are the same | {same:.4f} | | | |"]


def regression(images: int, classes: int, width: int, l2: float, rounds: int) -> list[str]:
    """A row: the 1 % task's softmax regression to its proven gap, beside scikit-learn to the same."""
    from sklearn.linear_model import LogisticRegression

    random = np.random.default_rng(0)
    labels = np.sort(np.arange(images) % classes)
    features = random.normal(size=(images, width)) + random.normal(size=(classes, width))[labels]
    rows = softmax_regression.centre_rows(features)

    def theirs() -> np.ndarray:
        """In float32 and then in float64, as this project did before it had a solver of its own."""
        solver = LogisticRegression(C=1 / l2, fit_intercept=False, tol=1e-7, max_iter=1000, warm_start=True)
        solver.fit(rows.astype(np.float32), labels)
        return solver.set_params(tol=softmax_regression.TOLERANCE).fit(rows, labels).coef_

    pairs, same = [], 1.0
    for _ in range(rounds):
        own, (weights, _) = seconds(lambda: softmax_regression.fit(rows, labels, l2))
        peer, other = seconds(theirs)
        pairs.append((own, peer))
        same = float(((rows @ weights.T).argmax(1) == (rows @ other.T).argmax(1)).mean())
    what = f"1 %, {images:,} images x {width}, {classes} classes"
    return [row(what, "scikit-learn", pairs, FASTER), f"| images that both put into one class | {same:.4f} | | | |"]


def row(what: str, peer: str, pairs: list[tuple[float, float]], limit: float) -> str:
    """A row of medians of ``pairs``: our seconds and the peer's."""
    own, theirs = (statistics.median(pair[which] for pair in pairs) for which in (0, 1))
    ratio = statistics.median(theirs / own for own, theirs in pairs)
    return f"| {what} | {own:.2f} s | {peer} {theirs:.2f} s | {ratio:.2f} | at least {limit} |"


def seconds(call: Callable[[], Any]) -> tuple[float, Any]:
    """CPU seconds of a call, and what it gives."""
    begun = time.process_time()
    value = call()
    return time.process_time() - begun, value
