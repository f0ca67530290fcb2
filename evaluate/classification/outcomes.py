"""What a classifier gets right, image by image, the same to the last digit on any number of processes."""

from collections.abc import Callable

import torch

from evaluate.data.imagenet import ImageSet
from evaluate.data.loader import UNREADABLE, Images, InOrder, batches, read_image
from evaluate.data.transforms import Transform
from evaluate.runtime import distributed
from evaluate.runtime.env import Env
from evaluate.runtime.progress import track

BATCH = 128


def table(
    images: ImageSet, transform: Transform, columns: int, measure: Callable[..., torch.Tensor], env: Env, allowed_bad: int = 0
) -> torch.Tensor:
    """Bool (m, columns) in the order of the set, on every process: ``measure`` gives (B, columns) of pixels uint8 (B, 3, H, W) and labels.

    Processes take whole batches of the set in order: no image is seen twice, and even rounding does not depend on how many they are.
    ``allowed_bad`` images may be unreadable; they are left out, and the record names them. One more raises its UserError.
    """
    rank, world = distributed.world()
    draws = list(InOrder(len(images), BATCH))
    mine = draws[rank::world]
    rows = torch.zeros(len(mine), BATCH, columns + 1, dtype=torch.uint8, device=env.device)
    loader = batches(Images(images, transform, keep_unreadable=True), mine, env.workers)
    for row, (pixels, labels) in zip(rows, track(loader, images.name, len(mine)), strict=True):
        labels = labels.to(env.device)
        with torch.inference_mode():
            row[: len(labels), :-1] = measure(pixels, labels)
            row[: len(labels), -1] = labels == UNREADABLE
    found = distributed.assemble(rows, len(draws)).flatten(0, 1)[: len(images)].bool().cpu()
    bad = found[:, -1].nonzero().flatten().tolist()
    if len(bad) > allowed_bad:
        read_image(images.files[bad[allowed_bad]])  # raises, and says what is wrong with it
    env.report(images_evaluated={images.name: len(images) - len(bad)}, unreadable_images={images.name: [str(images.files[i]) for i in bad]})
    return found[~found[:, -1], :-1]
