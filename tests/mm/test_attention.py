"""Attention with decomposed relative positions equals the same with a bias of all pairs, which it never makes."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from evaluate.mm.backbones import attention

WAYS = {"in blocks": attention.with_positions, "extended": attention._extended}  # on a CPU; on a GPU
GRID, CHANNELS = (6, 5), 16  # as with a ViT-B's 64, the scale is a power of two: it rounds nothing


def with_mask(query: Tensor, key: Tensor, value: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """The bias of all pairs, as a mask."""
    bias = (rows[..., :, None] + columns[..., None, :]).flatten(3)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=F.pad(bias, (key.shape[2] - bias.shape[3], 0)))


def inputs(prefix: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Queries to columns; some prefix tokens are keys besides. As views, which is what a module gives."""
    generator = torch.Generator().manual_seed(prefix)
    patches = GRID[0] * GRID[1]
    sizes = (patches, CHANNELS), (prefix + patches, CHANNELS), (prefix + patches, CHANNELS), (patches, 6), (patches, 5)
    found = [torch.randn(2, count, 3, size, generator=generator).transpose(1, 2) for count, size in sizes]
    return [tensor.to(dtype).requires_grad_() for tensor in found]


def results(way: Callable[..., Tensor], given: list[Tensor]) -> list[Tensor]:
    """The output, and the gradient of each input."""
    out = way(*given)
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    return [out, *torch.autograd.grad((out * weights.to(out.dtype)).sum(), given)]


@pytest.mark.parametrize("at_once", [64, 1000, 2**22], ids=["part of a head", "two heads", "all"])
@pytest.mark.parametrize("prefix", [0, 3])
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_outputs_and_gradients_equal_those_of_a_mask(way, prefix, at_once, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "SCORES_AT_ONCE", at_once * (prefix + 30) // 30)
    for ours, expected in zip(results(way, inputs(prefix)), results(with_mask, inputs(prefix)), strict=True):
        assert (ours - expected).abs().max() < 1e-5 * expected.abs().max()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_half_precision_is_no_further_from_float64_than_with_a_mask(way, dtype: torch.dtype) -> None:
    """Under autocast too, as in a training step, where fp32 products must not be shortened."""
    rounded = inputs(3, dtype)
    exact = results(with_mask, [tensor.detach().double().requires_grad_() for tensor in rounded])
    with torch.autocast("cpu", dtype):
        ours, masked = results(way, rounded), results(with_mask, rounded)
    for a, b, c in zip(ours, masked, exact, strict=True):
        assert a.dtype == dtype and (a.double() - c).norm() < 1.02 * (b.double() - c).norm()


class Largest(TorchDispatchMode):
    """The most numbers of a tensor that an operation makes."""

    numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in tree_iter(made):
            self.numbers = max(self.numbers, tensor.numel() if isinstance(tensor, Tensor) else 0)
        return made


def test_no_tensor_of_all_pairs_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither in the forward pass nor in the backward one."""
    monkeypatch.setattr(attention, "SCORES_AT_ONCE", 300)
    given = inputs(0)
    with Largest() as seen:
        results(attention.with_positions, given)
    assert seen.numbers <= 2 * 3 * 30 * CHANNELS < 2 * 3 * 30 * 30
