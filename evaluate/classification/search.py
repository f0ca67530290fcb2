"""Exact search of the nearest by cosine, in memory that does not grow with the set that is searched.

    bank = search.Bank(train)                          unit vectors float32 (n, D), on any device
    cosines, indices = bank.nearest(test, 200)         (m, 200) each, the nearest first

On a CPU a block of cosines stays in the cache while it is compared with the least of each row's best so far: all but a
few are seen once and never sorted. Of equal ones the first in the set comes first.

On a GPU products in fp16 find candidates, and float32 ranks them. What fp16 can be wrong by has a bound (``error_of``),
so it is known of each row whether its candidates hold the nearest; where they may not, float32 searches alone.

A block of ROWS test vectors takes less than MEMORY beside the vectors themselves, and on a GPU beside their copy in
fp16, which is half as large.
"""

import numpy as np
import torch

ROWS = 1024  # of test at once
COLUMNS = 2048  # of train at once on a CPU: 8 MiB of cosines
COLUMNS_ON_GPU = 65536
MEMORY = 2**29  # bytes, for the nearest 200; measured by tests
MARGIN = 256  # candidates beyond those that are asked for
AT_ONCE = 64  # rows whose candidates are ranked at once: 90 MiB of vectors
LAST = np.int64(2**63 - 1)  # a key behind all others


class Bank:
    """The vectors that are searched."""

    def __init__(self, train: torch.Tensor, halves: bool | None = None) -> None:
        """``halves``: whether fp16 finds candidates; None: where the vectors lie on a GPU."""
        self.train = train
        self.halves = train.half() if (train.device.type == "cuda" if halves is None else halves) else None

    def nearest(self, test: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines and indices (m, count) of the nearest to unit vectors (m, D), at most ROWS of them."""
        if self.halves is None:
            found, where = in_blocks(self.train.numpy(), test.numpy(), count)
            return torch.from_numpy(found), torch.from_numpy(where)
        cosines, indices, proven = by_halves(self.train, self.halves, test, count)
        if not bool(proven.all()):
            rows = (~proven).nonzero()[:, 0]
            cosines[rows], indices[rows] = _largest(self.train, test[rows], count)
        return cosines, indices


def in_blocks(train: np.ndarray, test: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Cosines float32 and indices int64 (m, count) of the nearest, on the CPU.

    A row gathers what is above its ``floor``; when it holds twice ``count``, the lesser half is dropped and the floor
    rises. Each further vector is therefore the less likely to be looked at twice, the more have been seen.
    """
    # numpy's product, for its OpenBLAS is faster here than torch's library
    rows = len(test)
    space, above = np.empty((rows, COLUMNS), np.float32), np.empty((rows, COLUMNS), np.bool_)  # pages are touched once
    keys, held = np.full((rows, 2 * count + COLUMNS), LAST), np.zeros(rows, np.int64)
    floor = np.full((rows, 1), -np.inf, np.float32)
    for begin in range(0, len(train), COLUMNS):
        part = train[begin : begin + COLUMNS]
        width = len(part)
        cosines = np.matmul(test, part.T, out=_part(space, width))
        if begin == 0 and width > count:  # otherwise all of the first block would be gathered
            least = np.partition(cosines, -count, axis=1)[:, -count, None]
            floor = np.nextafter(least, np.float32(-np.inf))
        chosen = np.flatnonzero(np.greater(cosines, floor, out=_part(above, width)))
        row = chosen // width
        column = chosen - row * width
        added = np.bincount(row, minlength=rows)
        place = np.arange(len(row)) + (held - np.cumsum(added) + added)[row]
        keys[row, place] = _key(cosines.reshape(-1)[chosen], column + begin)
        held += added
        full = np.flatnonzero(held >= 2 * count)
        if len(full):
            found = keys[full, : held.max()]
            found.partition(count - 1, axis=1)
            keys[full, :count], keys[full, count : held.max()] = found[:, :count], LAST
            held[full], floor[full, 0] = count, _cosine(found[:, count - 1])
    keys.sort(axis=1)
    return _cosine(keys[:, :count]), keys[:, :count] & 0xFFFFFFFF


def _part(space: np.ndarray, width: int) -> np.ndarray:
    """The beginning of an array's memory as (rows, width), without gaps."""
    return space.reshape(-1)[: len(space) * width].reshape(-1, width)


def _key(cosines: np.ndarray, indices: np.ndarray) -> np.ndarray:
    """int64 in the order of falling cosine and, where these are equal, of rising index."""
    bits = (cosines + np.float32(0)).view(np.int32)  # -0 becomes 0
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return (~ordered.astype(np.int64) << 32) | indices


def _cosine(keys: np.ndarray) -> np.ndarray:
    ordered = (~(keys >> 32)).astype(np.int32)
    return (ordered ^ ((ordered >> 31) & 0x7FFFFFFF)).view(np.float32)


def error_of(width: int) -> float:
    """The most by which a product of unit vectors (width,) in fp16 differs from their cosine.

    Rounding either vector to 11 bits, and then the product, is wrong by at most 2^-11 each; a sum in float32, by adders
    that may cut instead of round, by 2^-23 a term. Another 2^-23 a term covers numbers below fp16's normal range, the
    squares of these errors and float32's own.
    """
    return 3 * 2.0**-11 + width * 2.0**-22


def by_halves(
    train: torch.Tensor, halves: torch.Tensor, test: torch.Tensor, count: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Cosines and indices (m, count) of the nearest as fp16 finds and float32 ranks them, and of each row whether they
    are proven.

    The cosine of any of the true nearest is at least the ``count``-th best of fp16 less the error, so fp16 gives it at
    least that less the error again: all are candidates where the last candidate lies below.
    """
    reduced = torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction
    torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False  # the bound takes sums in float32
    try:
        close, indices = _largest(halves, test.half(), min(count + MARGIN, len(train)))
    finally:
        torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = reduced
    needed = close[:, count - 1].float() - 2 * error_of(train.shape[1])
    proven = (close[:, -1].float() < needed) | (close.shape[1] == len(train))
    parts = [
        (train[some] @ rows[:, :, None])[:, :, 0]
        for rows, some in zip(test.split(AT_ONCE), indices.split(AT_ONCE), strict=True)
    ]
    best = torch.cat(parts).topk(count, dim=1)
    return best.values, indices.gather(1, best.indices), proven


def _largest(train: torch.Tensor, test: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The largest products (m, count) and their indices, in the precision of the vectors."""
    best, indices = test.new_empty(len(test), 0), torch.empty(len(test), 0, dtype=torch.int64, device=test.device)
    for begin in range(0, len(train), COLUMNS_ON_GPU):
        found = test @ train[begin : begin + COLUMNS_ON_GPU].T
        here = found.topk(min(count, found.shape[1]), dim=1)
        best = torch.cat([best, here.values], dim=1)
        indices = torch.cat([indices, here.indices + begin], dim=1)
        kept = best.topk(min(count, best.shape[1]), dim=1)
        best, indices = kept.values, indices.gather(1, kept.indices)
    return best, indices
