"""What a node costs before it runs: images, operations, and how many GPUs may share it without another protocol.

Operations of encoders are counted (``evaluate.encoder.flops``); those of detection's and segmentation's heads were
counted once, on a pretended GPU. A task's ``cost(config, spec, count)`` returns a ``Cost``; ``count`` gives the number
of images of a part of the data root.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from evaluate.encoder.memory import GIB
from evaluate.encoder.spec import EncoderSpec

CORRUPTED = "imagenet-c/gaussian_noise"  # its count is that of each severity, and stands for all corruptions
NEARLY = 1.05
GPUS = (1, 2, 4, 8)  # that a task can have: the processes of one machine
VIT_B = EncoderSpec(
    "vit", 768, 12, (0.5,) * 3, (0.25,) * 3, num_heads=12, class_token=True
)  # until a checkpoint is converted


@dataclass(frozen=True)
class Cost:
    """Of one node."""

    gflop: float
    """In all."""
    images: int
    """Read, decoded and cut: once for each pass over them."""
    gpus: tuple[int, ...] = (1,)
    """How many processes may share it: with each of these the numbers are those of one."""
    memory: float = 0.0
    """GiB that each GPU needs at least."""
    disk: float = 0.0
    """GiB below OUT, the most at once."""
    features: float = 0.0
    """GiB of frozen features below OUT, which the tasks of a row share."""


Count = Callable[[str], int]


LABELLED = {  # by set of label maps: the parts whose files are its training and its validation pictures
    "ade20k": (("ade20k/images/training",), "ade20k/images/validation"),
    "voc2012": (
        (
            "VOCdevkit/VOC2012/ImageSets/Segmentation/train.txt",
            "VOCdevkit/VOC2012/SegmentationClassAug",  # it holds train's and often val's maps too
        ),
        "VOCdevkit/VOC2012/ImageSets/Segmentation/val.txt",
    ),
}


def pictures(dataset: str, count: Count) -> tuple[int, int]:
    """Training and validation pictures of a set of label maps, the training ones at most a seventh too many."""
    train, test = LABELLED[dataset]
    return max(map(count, train)), count(test)


def of_training(
    trained: int,
    passed: int,
    gflop: float,
    head: float = 0.0,
    gpus: tuple[int, ...] = GPUS,
    *,
    memory: float = 0.0,
    disk: float = 0.0,
    features: float = 0.0,
) -> Cost:
    """The cost of training on images and of passing others: forwards, and twice that backwards.

    Args:
        gflop: of an encoder's forward pass.
        head: GFLOP of a training step of the rest, an image, forwards and backwards.
        memory, disk, features: as in ``Cost``.
    """
    operations = trained * (3 * gflop + head) + passed * (gflop + head / 3)
    return Cost(operations, trained + passed, gpus, memory, disk, features)


def disk_of_training(weights: float) -> float:
    """GiB of the states of a training: AdamW's two moments beside the weights, and twice while one replaces another."""
    return 2 * 12 * weights / GIB


def disk_of_features(spec: EncoderSpec, images: int) -> float:
    """GiB of an image set's frozen features: eight vectors of float32 an image of a ViT, one of a ResNet."""
    return (8 if spec.family == "vit" else 1) * 4 * spec.embed_dim * images / GIB


def sharing(batch: int, part: int = 1) -> tuple[int, ...]:
    """The numbers of processes that cut a batch into equal parts that hold multiples of ``part`` images."""
    return tuple(count for count in GPUS if batch % (count * part) == 0) or (1,)


def share_out(hours: Sequence[float], may: Sequence[Sequence[int]], gpus: int) -> list[int]:
    """How many GPUs each of several tasks gets, so that all end within NEARLY of the soonest end that there is; as few
    as that allows, since each further GPU costs some communication. Tasks run in their order.

    Args:
        hours: of each task on one GPU; on n GPUs it takes an n-th.
        may: the numbers of GPUs that each can have.
    """
    tried: list[tuple[float, list[int]]] = []
    for longest in sorted({cost / n for cost, allowed in zip(hours, may, strict=True) for n in allowed}):
        counts = []
        for cost, allowed in zip(hours, may, strict=True):
            there = [n for n in allowed if n <= gpus]
            counts.append(next((n for n in there if cost / n <= longest), there[-1]))
        tried.append((makespan([cost / n for cost, n in zip(hours, counts, strict=True)], counts, gpus), counts))
    soonest = min((end for end, _ in tried), default=0.0)
    return next((counts for end, counts in reversed(tried) if end <= NEARLY * soonest), [])


def makespan(hours: Sequence[float], taken: Sequence[int], gpus: int) -> float:
    """When the last of several tasks ends: each begins as soon as its GPUs are free, and none before an earlier one."""
    free, begun = [0.0] * gpus, 0.0
    ends = [0.0]
    for length, count in zip(hours, taken, strict=True):
        free.sort()
        begun = max(begun, free[count - 1])
        free[:count] = [begun + length] * count
        ends.append(begun + length)
    return max(ends)
