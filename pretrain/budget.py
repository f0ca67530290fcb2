"""How many epochs fit into the minutes that a user has, by a few timed steps on this machine."""

import contextlib
import time
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from pretrain import checkpoint, distributed
from pretrain.config import PretrainConfig
from pretrain.cpu import keep_freed_memory
from pretrain.data import kept_pixels
from pretrain.data.images import Images
from pretrain.data.loader import steps_from, steps_per_epoch
from pretrain.data.pairs import open_images
from pretrain.methods import read_config
from pretrain.optimizer import make_optimizer
from pretrain.step import accumulate, start_model

UNTIMED_STEPS, TIMED_STEPS = 5, 15


def fit(
    config: PretrainConfig, minutes: float, data: Path, out: Path, device: str, workers: int, micro_batch: int
) -> PretrainConfig:
    """The config with as many epochs as ``minutes`` allow, at least one; the warm-up keeps its share of the run.

    A run that stands in ``out`` keeps its epochs: how long it takes to its end was decided at its start.
    """
    written = out / "config.json"
    if checkpoint.newest(out) and written.is_file():
        before = read_config(written)
        return replace(config, epochs=before.epochs, warmup_epochs=before.warmup_epochs)
    images = open_images(data, out, config)
    if config.cache_pixels:
        kept_pixels.keep(images, out, config)
    seconds = distributed.gather_objects(seconds_per_step(config, images, device, workers, micro_batch))[0]
    epochs = max(1, int(60 * minutes / (seconds * steps_per_epoch(len(images), config))))
    if distributed.rank() == 0:
        print(f"pretrain: {epochs} epochs fit into {minutes:g} minutes, at {seconds:.2f} s a step of this machine")
    return replace(config, epochs=epochs, warmup_epochs=config.warmup_epochs * epochs / config.epochs)


def seconds_per_step(config: PretrainConfig, images: Images, device: str, workers: int, micro_batch: int) -> float:
    """Seconds of an optimizer step with the loading of its images: the mean of TIMED_STEPS, on a model of its own."""
    model = start_model(config, device)
    optimizer = make_optimizer(model, config, model.constant_rate())
    scaler = torch.amp.GradScaler(torch.device(device).type, enabled=config.precision == "fp16")
    steps = UNTIMED_STEPS + TIMED_STEPS
    epochs = replace(config, epochs=-(-steps // steps_per_epoch(len(images), config)))
    begun = 0.0
    with contextlib.closing(steps_from(images, 0, micro_batch, epochs, workers)) as batches:
        for number, batch in zip(range(steps), batches, strict=False):
            if number == UNTIMED_STEPS:
                if device == "cpu":
                    keep_freed_memory(True)
                begun = _now(device)
            accumulate(model, scaler, batch, config, device)
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
    seconds = (_now(device) - begun) / TIMED_STEPS
    if device == "cpu":  # the run begins as this one did
        keep_freed_memory(False)
    return seconds


def _now(device: str) -> float:
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.monotonic()
