"""Self-attention, by the kernel that shape, type and device name.

Axes: B images, N tokens, H heads, d channels of a head.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

EXPLICIT_TOKENS = 1024  # up to so many a CPU computes attention of 16 bits by its formula; measured up to 1,025
SCORES_AT_ONCE = 2**20  # of the formula, in elements: what is computed from them stays in a processor's cache


def attend(parts: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(d)) v of queries, keys and values (B, N, 3, H, d), to (B, N, H d) in the same type, by the
    kernel that ``is_explicit`` names."""
    if is_explicit(parts):
        return _Formula.apply(parts, _products(parts))
    query, key, value = parts.permute(2, 0, 3, 1, 4).unbind(0)
    return F.scaled_dot_product_attention(query, key, value).to(parts.dtype).transpose(1, 2).flatten(2)


def is_explicit(parts: Tensor) -> bool:
    """Whether attention of (B, N, 3, H, d) follows its formula, not torch's fused kernel: in 16 bits on a CPU.

    There the fused kernel takes 1.1 to 1.7 times as long forward and 2 to 8 times backward (docs/performance.md). In
    float32 it is the faster one at every size that was measured; on GPUs torch chooses.
    """
    if parts.device.type != "cpu" or parts.shape[1] > EXPLICIT_TOKENS:
        return False
    return _products(parts).itemsize == 2


def _products(parts: Tensor) -> torch.dtype:
    """The type of the factors of products; with bf16_products the queries are float32."""
    return torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else parts.dtype


class _Formula(torch.autograd.Function):
    """The formula, a few images at once. Of all it computes it keeps nothing: the backward pass has it again from the
    queries, keys and values."""

    @staticmethod
    def forward(ctx: Any, parts: Tensor, products: torch.dtype) -> Tensor:
        ctx.save_for_backward(parts)
        ctx.products = products
        output = torch.empty_like(parts[:, :, 0])
        for some, result in zip(parts.split(_images(parts)), output.split(_images(parts)), strict=True):
            _, _, value, weights = _weights(some, products)
            result.copy_((weights.to(products) @ value).transpose(1, 2))
        return output.flatten(2)

    @staticmethod
    @once_differentiable  # it writes into what it computes again
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (parts,), products = ctx.saved_tensors, ctx.products
        gradient, found, count = gradient.reshape(parts[:, :, 0].shape), torch.empty_like(parts), _images(parts)
        for some, outer, result in zip(parts.split(count), gradient.split(count), found.split(count), strict=True):
            query, key, value, weights = _weights(some, products)
            outer = outer.transpose(1, 2).to(products).contiguous()
            inner = (outer @ value.mT).to(weights.dtype)
            scores = torch._softmax_backward_data(inner, weights, -1, weights.dtype).to(products)
            result[:, :, 0].copy_((scores @ key).mul_(parts.shape[-1] ** -0.5).transpose(1, 2))
            result[:, :, 1].copy_((scores.mT @ query).transpose(1, 2))
            result[:, :, 2].copy_((weights.to(products).mT @ outer).transpose(1, 2))
        return found, None


def _images(parts: Tensor) -> int:
    _, tokens, _, heads, _ = parts.shape
    return max(1, SCORES_AT_ONCE // (heads * tokens**2))


def _weights(parts: Tensor, products: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Queries (divided by sqrt(d)), keys, values (all (B, H, N, d), in the type of products), and the weights of values
    (B, H, N, N), in the type of the parts."""
    query, key, value = parts.permute(2, 0, 3, 1, 4).unbind(0)
    query = (query * parts.shape[-1] ** -0.5).to(products).contiguous()
    key, value = key.to(products).contiguous(), value.to(products).contiguous()
    return query, key, value, (query @ key.mT).to(parts.dtype).softmax(dim=-1)
