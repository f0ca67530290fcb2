"""Which image comes when: an endless stream of indices, by repeat factors with stochastic rounding where asked."""

from collections import Counter
from collections.abc import Iterator, Sized
from itertools import islice
from typing import Protocol

import torch
from mmengine.dist import get_dist_info
from torch import Tensor
from torch.utils.data import Sampler


def repeat_factors(images_categories: list[list[int]], threshold: float) -> Tensor:
    """How often each image should come an epoch (LVIS, arXiv 1908.03195), as detectron2 computes it.

    f(c) is the share of images holding class c, r(c) = max(1, sqrt(threshold / f(c))), and an image's factor is the
    largest of its classes', 1 without objects. Returns (number of images,) float32.
    """
    holding = Counter(category for categories in images_categories for category in set(categories))
    factor = {c: max(1.0, (threshold / (count / len(images_categories))) ** 0.5) for c, count in holding.items()}
    return torch.tensor([max((factor[c] for c in categories), default=1.0) for categories in images_categories])


def stochastic_round(factors: Tensor, generator: torch.Generator) -> Tensor:
    """Indices of one epoch, in order: image i floor(r) times, and once more with probability r - floor(r)."""
    whole = factors.floor()
    counts = whole + (torch.rand(len(factors), generator=generator) < factors - whole).float()
    return torch.repeat_interleave(torch.arange(len(factors)), counts.long())


class Categorized(Sized, Protocol):
    """A data set whose images hold objects of categories."""

    def categories_of(self, index: int) -> list[int]: ...


class TrainingSampler(Sampler[tuple[int, int]]):
    """Endless shuffled epochs of (place in the stream, index).

    The stream is the same on every process, and each takes its share. The place lets the data set seed each sample by
    itself.

    Args:
        dataset: only its length counts where there is no ``repeat_threshold``.
        repeat_threshold: oversampling threshold of the repeat factors; ``None`` shows every image once an epoch.
        seed: of the order; the same on all processes.
    """

    def __init__(self, dataset: Categorized, repeat_threshold: float | None = None, seed: int = 0) -> None:
        self.size = len(dataset)
        self.seed = seed
        self.rank, self.world_size = get_dist_info()
        self.factors = torch.ones(self.size)
        if repeat_threshold is not None:
            self.factors = repeat_factors([dataset.categories_of(i) for i in range(self.size)], repeat_threshold)
        self.start = 0

    def _stream(self) -> Iterator[int]:
        generator = torch.Generator()
        generator.manual_seed(self.seed)
        while True:
            indices = stochastic_round(self.factors, generator)
            yield from indices[torch.randperm(len(indices), generator=generator)].tolist()

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return islice(enumerate(self._stream()), self.rank + self.start * self.world_size, None, self.world_size)

    def skip(self, num_samples: int) -> None:
        """Starts after so many samples of this process, for resuming; absolute."""
        self.start = num_samples

    def set_epoch(self, epoch: int) -> None:
        """mmengine calls it; the stream has no epochs."""

    def __len__(self) -> int:
        return self.size
