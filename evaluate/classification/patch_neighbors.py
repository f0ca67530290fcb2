"""Segmentation by the nearest patches: CAPI's (arXiv 2502.08769), after its description and released evaluation.

A patch of a test picture takes, pixel by pixel, the most frequent label of its k nearest training patches. Axes: n
patches, D width, k neighbors, l pixels of a patch.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image

from evaluate.classification.finite import require_finite
from evaluate.data.dense_sets import DenseSet
from evaluate.data.pictures import THREADS
from evaluate.data.pixels import READ_ERRORS, read_rgb
from evaluate.data.transforms import normalize
from evaluate.encoder import Encoder
from evaluate.runtime.errors import UserError
from evaluate.runtime.progress import track

Distance = Literal["cosine", "l2"]
BATCH = 64  # pictures in a forward pass
QUERIES, KEYS = 1024, 262_144  # patches that are compared at once: a gigabyte of distances
LABELS = 256  # a label is a byte


@dataclass(frozen=True)
class Patches:
    """Patches of pictures, each a row of tensors that may have more: a part of a set shares the set's memory."""

    tokens: torch.Tensor
    """(m, D) float32."""
    labels: torch.Tensor
    """(m, l) uint8, of each pixel."""
    count: int
    """Of a picture."""
    rows: torch.Tensor
    """(n,) int64, those that are meant."""
    other: int = 0
    """The label of what is no class."""

    def __len__(self) -> int:
        return len(self.rows)

    def of(self, pictures: np.ndarray) -> "Patches":
        """Those of some pictures of a whole set, by their indices."""
        rows = (torch.from_numpy(pictures)[:, None] * self.count + torch.arange(self.count)).flatten()
        return replace(self, rows=rows)

    def of_a_class(self) -> "Patches":
        """Those whose most frequent label is a class."""
        kept = [part[self.labels[part].mode(dim=1).values != self.other] for part in self.rows.split(KEYS)]
        return replace(self, rows=torch.cat(kept))


def extract(
    encoder: Encoder, images: DenseSet, split: str, limit: int | None, side: int, device: str
) -> tuple[Patches, int]:
    """The patch tokens of the last block after the encoder's last norm, of at most ``limit`` pictures of a split that
    are squeezed to ``side`` pixels a side (bicubic; labels: nearest), and how many pictures the whole split has.

    Raises UserError for a picture or a label map that cannot be read.
    """
    pictures, maps = images.pairs(split)
    pairs = [(pictures[name], maps[name]) for name in sorted(pictures)[:limit]]
    patch = encoder.spec.patch_size
    grid = side // patch
    tokens = torch.empty(len(pairs) * grid**2, encoder.spec.embed_dim)
    labels = torch.empty(len(tokens), patch**2, dtype=torch.uint8)
    done = 0
    for part in _batches(pairs, side, images):
        pixels = normalize(torch.stack([own for own, _ in part]), encoder.spec.mean, encoder.spec.std, device)
        with torch.inference_mode():
            found = encoder.model.norm(encoder.forward_blocks(pixels, 1)[-1].patches)
        rows = slice(done, done := done + len(part) * grid**2)
        tokens[rows] = require_finite(found).flatten(0, 1).float().cpu()
        own = torch.stack([own for _, own in part]).unflatten(2, (grid, patch)).unflatten(1, (grid, patch))
        labels[rows] = own.transpose(2, 3).reshape(-1, patch**2)
    return Patches(tokens, labels, grid**2, torch.arange(len(tokens)), images.form.none), len(pictures)


def standardize(chosen: Patches, *sets: Patches) -> None:
    """Shifts and scales each channel of whole sets so that it has mean 0 and deviation 1 over the chosen patches."""
    total, squares = (torch.zeros(chosen.tokens.shape[1], dtype=torch.float64) for _ in range(2))
    for part in chosen.rows.split(KEYS):
        total += chosen.tokens[part].double().sum(dim=0)
    mean = total / len(chosen)
    for part in chosen.rows.split(KEYS):
        squares += (chosen.tokens[part].double() - mean).square().sum(dim=0)
    deviation = (squares / len(chosen)).sqrt()
    deviation[deviation == 0] = 1
    for whole in sets:
        whole.tokens.sub_(mean.float()).div_(deviation.float())


def predict(
    train: Patches, test: Patches, neighbors: Sequence[int], distance: Distance, device: str
) -> dict[int, torch.Tensor]:
    """By number of neighbors the labels (n, l) of the test patches; of equally frequent ones the smallest."""
    nearest = _nearest(train, test, max(neighbors), distance, device)
    found: dict[int, list[torch.Tensor]] = {k: [] for k in neighbors}
    for rows in nearest.split(QUERIES):
        labels = train.labels[rows]
        for k in neighbors:
            found[k].append(labels[:, :k].mode(dim=1).values)
    return {k: torch.cat(parts) for k, parts in found.items()}


def pixels_met(predicted: torch.Tensor, patches: Patches) -> np.ndarray:
    """(pictures, LABELS, 3): pixels of each label that are right, that are predicted and that there are, where there is
    a class.
    """
    counted = np.zeros((len(predicted) // patches.count, LABELS, 3), dtype=np.int64)
    for number, (own, rows) in enumerate(
        zip(predicted.split(patches.count), patches.rows.split(patches.count), strict=True)
    ):
        labels = patches.labels[rows]
        scored = labels != patches.other
        said, right = own[scored].long(), labels[scored].long()
        for place, values in enumerate((said[said == right], said, right)):
            counted[number, :, place] = torch.bincount(values, minlength=LABELS).numpy()
    return counted


def scores(counts: np.ndarray) -> dict[str, float]:
    """``miou`` and ``aacc`` in percent from (LABELS, 3) counts.

    As CAPI's, the mean goes over the labels that are there or predicted, and so over "other" where it is predicted.
    """
    right, said, there = counts.T
    union = said + there - right
    known = union > 0
    return {"miou": 100 * float((right[known] / union[known]).mean()), "aacc": 100 * float(right.sum() / there.sum())}


def _nearest(train: Patches, test: Patches, count: int, distance: Distance, device: str) -> torch.Tensor:
    """(test, k) the rows of the nearest training patches, the nearest first; k is ``count``, or how many there are."""
    count = min(count, len(train))
    best = torch.full((len(test), count), -torch.inf)
    rows = torch.zeros(len(test), count, dtype=torch.long)
    for known in track(train.rows.split(KEYS), "neighbors"):  # each training patch goes to the device once
        key = _prepared(train.tokens[known].to(device), distance)
        squares = key.square().sum(dim=1) if distance == "l2" else None
        for begin in range(0, len(test), QUERIES):
            part = slice(begin, begin + QUERIES)
            near = _prepared(test.tokens[test.rows[part]].to(device), distance) @ key.T
            if squares is not None:  # |q - k|^2 without |q|^2, which orders nothing
                near = 2 * near - squares
            top = near.topk(min(count, near.shape[1]), dim=1)
            merged = torch.cat([best[part], top.values.cpu()], dim=1).topk(count, dim=1)
            best[part] = merged.values
            rows[part] = torch.cat([rows[part], known[top.indices.cpu()]], dim=1).gather(1, merged.indices)
    return rows


def _prepared(tokens: torch.Tensor, distance: Distance) -> torch.Tensor:
    return torch.nn.functional.normalize(tokens, dim=1) if distance == "cosine" else tokens


def _batches(
    pairs: Sequence[tuple[Path, Path]], side: int, images: DenseSet
) -> Iterator[list[tuple[torch.Tensor, torch.Tensor]]]:
    """Pictures uint8 (3, side, side) and their labels (side, side), some at a time."""

    def read(pair: tuple[Path, Path]) -> tuple[torch.Tensor, torch.Tensor]:
        try:
            picture = read_rgb(pair[0]).resize((side, side), Image.Resampling.BICUBIC)
        except READ_ERRORS as error:
            raise UserError(f"the picture {pair[0]} cannot be read ({error}); restore it") from error
        labels = Image.fromarray(images.read(pair[1])).resize((side, side), Image.Resampling.NEAREST)
        return torch.from_numpy(np.array(picture)).permute(2, 0, 1), torch.from_numpy(np.array(labels))

    with ThreadPoolExecutor(THREADS) as pool:
        for begin in track(range(0, len(pairs), BATCH), "patches"):
            yield list(pool.map(read, pairs[begin : begin + BATCH]))
