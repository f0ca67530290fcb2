"""The order in which a training sees its images, shared out over processes and micro-batches."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from evaluate.data.loader import Sample
from evaluate.runtime.seeding import seed_of


@dataclass(frozen=True)
class BatchSampler:
    """Which images each optimizer step sees, for one of ``world_size`` processes, in micro-batches.

    The batch is the paper's whatever the number of processes: it is shared out in pairs (mixup pairs images) over as
    many micro-batches of each process as it needs, all of one size but for a pair. The last images of an epoch that do
    not fill a batch are left for another epoch, as in the official code (``drop_last``). Raises ValueError if there are
    too few images for one step.
    """

    images: int
    batch_size: int
    """Images an optimizer step, over all processes."""
    micro_batch: int
    """At most so many images a process in one forward pass."""
    epochs: int
    seed: int
    rank: int = 0
    world_size: int = 1
    first_step: int = 0
    """Where a resumed run goes on."""

    def __post_init__(self) -> None:
        if self.micro_batch < 2:
            raise ValueError(f"micro_batch must be at least 2 images, not {self.micro_batch}")
        if self.batch < 2 * self.world_size * self.micro_batches or self.batch == 0:
            raise ValueError(
                f"{min(self.images, self.batch_size)} images a step are too few for {self.world_size} processes to "
                f"train on"
            )

    @property
    def batch(self) -> int:
        """Images a step: ``batch_size``, or what the set has, without an odd one."""
        return min(self.batch_size, self.images) // 2 * 2

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps an epoch."""
        return self.images // self.batch

    @property
    def steps(self) -> int:
        """Optimizer steps of the whole training."""
        return self.epochs * self.steps_per_epoch

    @property
    def micro_batches(self) -> int:
        """Micro-batches a step, the same on every process."""
        return -(-(self.batch // 2) // (self.world_size * (self.micro_batch // 2)))

    def __len__(self) -> int:
        return (self.steps - self.first_step) * self.micro_batches

    def __iter__(self) -> Iterator[list[Sample]]:
        order, order_epoch = torch.empty(0), -1
        for step in range(self.first_step, self.steps):
            epoch, position = divmod(step, self.steps_per_epoch)
            if epoch != order_epoch:
                generator = torch.Generator().manual_seed(seed_of(self.seed, "order", epoch))
                order, order_epoch = torch.randperm(self.images, generator=generator), epoch
            pairs = order[position * self.batch : (position + 1) * self.batch].view(-1, 2)
            for number in range(self.micro_batches):
                share = pairs[number * self.world_size + self.rank :: self.micro_batches * self.world_size]
                yield [(epoch, index) for index in share.flatten().tolist()]
