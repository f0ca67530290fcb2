"""The order in which a training sees its images, shared out over processes and micro-batches."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from evaluate.data.loader import Draw
from evaluate.runtime.seeding import seed_of


@dataclass(frozen=True)
class Draws:
    """Which images each optimiser step sees, for one of ``world`` processes, in micro-batches.

    The batch is the paper's whatever the number of processes: it is shared out in pairs (mixup pairs images) over as many micro-batches
    of each process as it needs, all of one size but for a pair. The last images of an epoch that do not fill a batch are left for
    another epoch, as in the official code (``drop_last``). Raises ValueError if there are too few images for one step.
    """

    images: int
    batch_size: int  # over all processes, an optimiser step
    micro_batch: int  # at most so many images a process in one forward pass
    epochs: int
    seed: int
    rank: int = 0
    world: int = 1
    first_step: int = 0  # where a resumed run goes on

    def __post_init__(self) -> None:
        if self.micro_batch < 2:
            raise ValueError(f"micro_batch must be at least 2 images, not {self.micro_batch}")
        if self.batch < 2 * self.world * self.chunks_per_step or self.batch == 0:
            raise ValueError(f"{min(self.images, self.batch_size)} images a step are too few for {self.world} processes to train on")

    @property
    def batch(self) -> int:
        """Images a step: ``batch_size``, or what the set has, without an odd one."""
        return min(self.batch_size, self.images) // 2 * 2

    @property
    def steps_per_epoch(self) -> int:
        return self.images // self.batch

    @property
    def steps(self) -> int:
        return self.epochs * self.steps_per_epoch

    @property
    def chunks_per_step(self) -> int:
        """Micro-batches a step, the same on every process."""
        return -(-(self.batch // 2) // (self.world * (self.micro_batch // 2)))

    def __len__(self) -> int:
        return (self.steps - self.first_step) * self.chunks_per_step

    def __iter__(self) -> Iterator[list[Draw]]:
        order, order_epoch = torch.empty(0), -1
        for step in range(self.first_step, self.steps):
            epoch, position = divmod(step, self.steps_per_epoch)
            if epoch != order_epoch:
                generator = torch.Generator().manual_seed(seed_of(self.seed, "order", epoch))
                order, order_epoch = torch.randperm(self.images, generator=generator), epoch
            pairs = order[position * self.batch : (position + 1) * self.batch].view(-1, 2)
            for chunk in range(self.chunks_per_step):
                share = pairs[chunk * self.world + self.rank :: self.chunks_per_step * self.world]
                yield [(epoch, index) for index in share.flatten().tolist()]
