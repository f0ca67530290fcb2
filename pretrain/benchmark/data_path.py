"""Images a second of the data path alone: reading, cropping, augmenting, and the loader."""

import dataclasses
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pretrain.benchmark import baseline
from pretrain.data import views
from pretrain.data.images import ImageFolder, decode
from pretrain.data.loader import steps_from
from pretrain.methods.siameseim import Config

LOADER_BATCH, LOADER_BATCHES = 64, 8  # images at once, and batches a process


def time_views(config: Config, folder: Path) -> dict[str, Any]:
    """Seconds an image on one core (two views and mask): decoding, decoding and cropping, all of it; and the per-image
    pipeline."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    paths = sorted(folder.iterdir())
    index = np.arange(len(paths))
    per_image = baseline.PerImageViews(config)

    def crop() -> views.Crops:
        return views.crop([decode(path) for path in paths], index, 0, config)

    calls: dict[str, Callable[[], Any]] = {
        "per image, PIL": lambda: per_image.batch(paths),
        "decode": lambda: [decode(path) for path in paths],
        "decode, crop (augmentation on the device)": crop,
        "decode, crop, augment (all on the CPU)": lambda: views.augment(crop(), 0, config),
    }
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(6):  # taking turns, so that a slow moment of the machine meets all of them
        for name, call in calls.items():
            start = time.process_time()
            call()
            times[name].append((time.process_time() - start) / len(paths))
    torch.set_num_threads(threads)
    return {name: statistics.median(seconds[1:]) for name, seconds in times.items()}


def time_loader(config: Config, folder: Path, workers: int) -> dict[str, float]:
    """Seconds (wall) between two images of the run's own loader: decoded and cropped by its processes, and handed
    over."""
    with tempfile.TemporaryDirectory() as made:
        for number, path in enumerate(
            itertools.islice(itertools.cycle(sorted(folder.iterdir())), LOADER_BATCHES * workers * LOADER_BATCH)
        ):
            (Path(made) / f"{number:06d}{path.suffix}").symlink_to(path.resolve())
        images = ImageFolder(Path(made))
        images.cache = None  # few files, many names: each is to be decoded
        one_epoch = dataclasses.replace(config, batch_size=LOADER_BATCH, epochs=1, warmup_epochs=0.0)
        steps = steps_from(images, 0, LOADER_BATCH, one_epoch, workers)
        times = [time.perf_counter() for _ in steps]
    warm = times[2 * workers :]  # by then every process has started
    return {f"loader, {workers} workers (decode, crop)": (warm[-1] - warm[0]) / (len(warm) - 1) / LOADER_BATCH}
