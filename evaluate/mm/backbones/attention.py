"""Attention with decomposed relative positions, without a bias of all queries and keys.

ViTDet adds rows[q, row of k] + columns[q, column of k] to the score of a query q and a key k. As one tensor that is 403
MB in half precision for a global block of ViT-B at 1024 pixels. A GPU gets longer queries and keys instead, whose
product has the sum in it; elsewhere the scores are made in blocks that stay in the cache. Which way is taken follows
from the device alone.

Axes: B batch, H heads, N queries, K keys, C channels of a head, h w grid, G = B H. The last h w keys are the patches
of the grid, row by row; keys before them are prefix tokens, to whose scores nothing is added.
"""

import math
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

SCORES_AT_ONCE = 2**20  # 4 MB in fp32: with its keys and values in the cache
FLASH_CHANNELS = 256  # the flash kernel's most, of queries, keys and values alike
ALIGNED = 8  # channels that the GPU's kernels take are a multiple of it


def with_positions(query: Tensor, key: Tensor, value: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(C) + rows + columns) v, (B, H, N, C).

    Args:
        query: (B, H, N, C).
        key, value: (B, H, K, C).
        rows: (B, H, N, h), added to the scores of a query with the keys of each row of the grid.
        columns: (B, H, N, w), likewise of each column.
    """
    if query.is_cuda:
        return _extended(query, key, value, rows, columns)
    return _InBlocks.apply(query, key, value, rows, columns)


def _extended(query: Tensor, key: Tensor, value: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """By one product of (q, rows, columns) with (k, one-hot row, one-hot column): no kernel needs a mask.

    In half precision the values are padded to the same length, since the flash kernel knows one length only.
    """
    channels, (h, w) = query.shape[3], (rows.shape[3], columns.shape[3])
    places = torch.cat(
        [torch.eye(h, device=key.device).repeat_interleave(w, 0), torch.eye(w, device=key.device).repeat(h, 1)], 1
    )
    places = F.pad(places, (0, 0, key.shape[2] - h * w, 0)).to(key.dtype).expand(*key.shape[:2], -1, -1)
    spare = -(channels + h + w) % ALIGNED
    root = channels**0.5  # the scale is of the queries' own channels; 8 in a ViT-B and a ViT-L, which rounds nothing
    query = F.pad(torch.cat([query, rows * root, columns * root], 3), (0, spare))
    key = F.pad(torch.cat([key, places], 3), (0, spare))
    if value.dtype != torch.float32 and key.shape[3] <= FLASH_CHANNELS:
        value = F.pad(value, (0, key.shape[3] - channels))
    return F.scaled_dot_product_attention(query, key, value, scale=1 / root)[..., :channels]


class _InBlocks(torch.autograd.Function):
    """Blocks of scores in fp32, made again in the backward pass: neither pass holds more than one or two of them.

    Every product is in place or has ``out``: such operations stay in fp32 under autocast.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        q, k, v, of_row, of_column = _grouped(query, key, value, rows, columns)
        out = torch.empty_like(q)
        for group, part, scores in _blocks(q, k):
            _weights(q[group, part], k[group], of_row[group, part], of_column[group, part], scores)
            torch.bmm(scores, v[group], out=out[group, part])
        ctx.save_for_backward(query, key, value, rows, columns, out)
        return out.view_as(query).to(query.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        *inputs, out = ctx.saved_tensors
        q, k, v, of_row, of_column, grad = _grouped(*inputs, grad)
        scale = q.shape[2] ** -0.5
        shared = (grad * out).sum(2, keepdim=True)
        grid = of_row.shape[2], of_column.shape[2]
        grad_q, grad_k, grad_v = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        grad_row, grad_column = torch.empty_like(of_row), torch.empty_like(of_column)
        for group, part, weights in _blocks(q, k):
            _weights(q[group, part], k[group], of_row[group, part], of_column[group, part], weights)
            grad_v[group].baddbmm_(weights.mT, grad[group, part])
            of_scores = torch.bmm(grad[group, part], v[group].mT, out=torch.empty_like(weights))
            of_scores.sub_(shared[group, part]).mul_(weights)
            on_grid = of_scores[..., -grid[0] * grid[1] :].unflatten(2, grid)
            torch.sum(on_grid, 3, out=grad_row[group, part])
            torch.sum(on_grid, 2, out=grad_column[group, part])
            grad_q[group, part].baddbmm_(of_scores, k[group], beta=0, alpha=scale)
            grad_k[group].baddbmm_(of_scores.mT, q[group, part], alpha=scale)
        found = grad_q, grad_k, grad_v, grad_row, grad_column
        return tuple(own.view_as(given).to(given.dtype) for own, given in zip(found, inputs, strict=True))


def _grouped(*tensors: Tensor) -> list[Tensor]:
    """(B, H, …) to (G, …), contiguous and at least in fp32."""
    dtype = torch.promote_types(tensors[0].dtype, torch.float32)
    return [tensor.to(dtype).flatten(0, 1).contiguous() for tensor in tensors]


def _blocks(query: Tensor, key: Tensor) -> Iterator[tuple[slice, slice, Tensor]]:
    """Slices of the groups and of the queries, several small groups at once or a part of a large one, and a tensor for
    their scores, which is the same memory in each block.
    """
    groups, queries, keys = len(query), query.shape[1], key.shape[1]
    together = min(groups, max(1, SCORES_AT_ONCE // (queries * keys)))
    at_once = min(queries, max(1, SCORES_AT_ONCE // keys))
    memory = query.new_empty(together * at_once * keys)
    for first in range(0, groups, together):
        for begin in range(0, queries, at_once):
            group, part = slice(first, min(first + together, groups)), slice(begin, min(begin + at_once, queries))
            shape = (group.stop - first, part.stop - begin, keys)
            yield group, part, memory[: math.prod(shape)].view(shape)


def _weights(query: Tensor, key: Tensor, rows: Tensor, columns: Tensor, out: Tensor) -> None:
    """Writes the softmax of the scores, (G, N, K); the bias comes first, so that the product is added in place."""
    grid = rows.shape[2], columns.shape[2]
    prefix = key.shape[1] - grid[0] * grid[1]
    out[..., :prefix] = 0
    torch.add(rows[..., None], columns[:, :, None], out=out[..., prefix:].unflatten(2, grid))
    out.baddbmm_(query, key.mT, alpha=query.shape[2] ** -0.5)
    torch.softmax(out, 2, out=out)
