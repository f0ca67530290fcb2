"""The exact search: the same as sorting all cosines, whatever the blocks, the ties and the precision of candidates."""

import tracemalloc
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch

from evaluate.classification import search

WIDTH = 24


def unit(count: int, width: int = WIDTH, seed: int = 0, spread: float = 1.0) -> torch.Tensor:
    """Unit vectors; the smaller the spread, the closer to each other."""
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(1 + spread * torch.randn(count, width, generator=generator), dim=1)


def sorted_all(train: torch.Tensor, test: torch.Tensor, count: int) -> tuple[np.ndarray, np.ndarray]:
    """By a stable sort of all products in float64."""
    cosines = test.double().numpy() @ train.double().numpy().T
    order = np.argsort(-cosines, axis=1, kind="stable")[:, :count]
    return np.take_along_axis(cosines, order, axis=1), order


def agrees(bank: search.Bank, test: torch.Tensor, count: int) -> None:
    cosines, indices = bank.nearest(test, count)
    expected, _ = sorted_all(bank.train, test, count)
    chosen = (test.double()[:, None] * bank.train.double()[indices]).sum(dim=2).numpy()
    np.testing.assert_allclose(cosines.numpy(), expected, atol=1e-6)
    np.testing.assert_allclose(chosen, expected, atol=1e-6)  # they are of the images that are named
    assert all(len(set(row)) == count for row in indices.tolist())


@pytest.mark.parametrize("halves", [False, True])
@pytest.mark.parametrize(("size", "count"), [(5, 5), (60, 1), (700, 20), (700, 700), (1501, 200)])
def test_the_nearest_are_those_of_a_sort(size: int, count: int, halves: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    for columns in (7, 64, 5000):
        monkeypatch.setattr(search, "COLUMNS", columns)
        monkeypatch.setattr(search, "COLUMNS_ON_GPU", columns)
        monkeypatch.setattr(search, "MARGIN", 60)
        agrees(search.Bank(unit(size), halves), unit(33, seed=1), count)


@pytest.mark.parametrize("order", ["rising", "falling", "by class"])
def test_no_order_of_the_set_loses_one(order: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "COLUMNS", 50)
    train, test = unit(900), unit(20, seed=1)
    nearness = (train @ test[0]).argsort(descending=order == "falling")
    if order == "by class":
        nearness = (train @ unit(9, seed=2).T).argmax(dim=1).argsort(stable=True)
    agrees(search.Bank(train[nearness], False), test, 30)


def test_of_equal_ones_the_first_comes_first_across_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    axes = torch.eye(8)  # products of axes are exact: 0 or 1
    train = axes[torch.arange(400) % 8]
    for columns in (16, 1000):
        monkeypatch.setattr(search, "COLUMNS", columns)
        cosines, indices = search.Bank(train, False).nearest(-axes[:3], 120)
        _, expected = sorted_all(train, -axes[:3], 120)
        assert np.array_equal(indices.numpy(), expected) and not cosines.any()
        cosines, indices = search.Bank(train, False).nearest(axes[:3], 60)
        _, expected = sorted_all(train, axes[:3], 60)
        assert np.array_equal(indices.numpy(), expected) and set(cosines.unique().tolist()) == {0.0, 1.0}


@pytest.mark.parametrize("width", [3, 64, 768, 4096])
def test_a_product_in_fp16_is_within_its_bound(width: int) -> None:
    worst = 0.0
    for spread in (1e-4, 0.1, 1.0, 100.0):
        train, test = unit(400, width, spread=spread), unit(64, width, seed=1, spread=spread)
        exact = test.double() @ train.double().T
        worst = max(worst, float(((test.half() @ train.half().T).double() - exact).abs().max()))
    assert 0 < worst <= search.error_of(width)
    assert search.error_of(768) < 0.002, "a bound that proves no row"


def test_a_row_whose_candidates_may_not_hold_the_nearest_is_searched_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "MARGIN", 30)
    crowd, apart = unit(600, spread=0.01), unit(600, seed=3)
    test = torch.cat([unit(5, seed=1, spread=0.01), -unit(5, seed=4)])
    bank = search.Bank(torch.cat([crowd, apart]), True)
    assert bank.halves is not None
    cosines, _, proven = search.by_halves(bank.train, bank.halves, test, 10)
    assert not proven[:5].any() and proven[5:].any()
    assert np.abs(cosines[:5].numpy() - sorted_all(bank.train, test[:5], 10)[0]).max() > 1e-6, "fp16 was enough"
    agrees(bank, test, 10)


def peak_of(work: Callable[[], object]) -> int:
    """The most bytes of numpy's arrays that were held at once."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_memory_does_not_grow_with_the_set() -> None:
    test, sets = unit(search.ROWS).numpy(), [unit(size).numpy() for size in (4000, 24_000)]
    small, large = (peak_of(partial(search.in_blocks, train, test, 200)) for train in sets)
    assert large < 1.05 * small and large < search.MEMORY
