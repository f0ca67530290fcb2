"""How fast this machine is, by half a minute of the work that the tasks do (``run_all.py --probe``)."""

import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import date
from pathlib import Path

import torch
from torch import nn

from evaluate.data import layouts
from evaluate.data.imagenet import val_set
from evaluate.data.loader import Images, batches
from evaluate.data.transforms import CenterCrop
from evaluate.encoder.flops import forward_gflop
from evaluate.encoder.model import build
from evaluate.encoder.spec import EncoderSpec
from evaluate.harness.estimate import CORE, H100, Speed
from evaluate.runtime.precision import autocast, resolve

AT_ONCE = {"cpu": 4, "cuda": 64}  # images of a step
SECONDS = 5.0  # that each part is repeated for
MOST_IMAGES = 2048


def measure(spec: EncoderSpec, side: int, device: str, workers: int, data_root: Path) -> Speed:
    """The speed of one GPU, or of the CPU as a task has it.

    Args:
        spec: of an encoder whose training is timed.
        side: of its images in pixels.
        workers: processes that read images.
    """
    kind = torch.device(device).type
    return Speed(
        3 * forward_gflop(spec, side) * _images_trained(spec, side, device, AT_ONCE[kind]),
        _images_read(data_root, side, workers) or (H100 if kind == "cuda" else CORE).images,
        _startup(),
        kind == "cuda",
        f"measured on {socket.gethostname()}, {kind}, {date.today()}",
    )


def _images_trained(spec: EncoderSpec, side: int, device: str, at_once: int) -> float:
    """Images a second, forwards and backwards."""
    model = build(replace(spec, img_size=side)).to_empty(device=device).train()
    for value in (*model.parameters(), *model.buffers()):
        nn.init.normal_(value, std=0.02) if value.is_floating_point() else value.zero_()
    images = torch.randn(at_once, 3, side, side, device=device)
    forward: Callable[[torch.Tensor], torch.Tensor] = model.forward_features  # type: ignore[assignment]
    precision = resolve("auto", device)

    def step() -> int:
        with autocast(precision, device):
            features = forward(images)
        features.float().sum().backward()
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        return at_once

    step()  # warms up
    return _rate(step)


def _images_read(data_root: Path, side: int, workers: int) -> float | None:
    """Images of val a second that are read, decoded and cut; None where there is no val."""
    if layouts.absent(data_root, ["imagenet"]):
        return None
    images = val_set(data_root, MOST_IMAGES)
    dataset = Images(images, CenterCrop(side, round(side / 0.875), "bicubic"))
    order = [[(0, index)] for index in range(len(images))]
    begun, read = time.monotonic(), 0
    for pixels, _ in batches(dataset, order, workers):
        read += len(pixels)
        if time.monotonic() - begun > SECONDS:
            break
    return read / (time.monotonic() - begun)


def _startup() -> float:
    """Seconds until a task's packages are loaded."""
    begun = time.monotonic()
    subprocess.run([sys.executable, "-c", "import timm, evaluate.encoder, evaluate.classification.setup"], check=True)
    return time.monotonic() - begun


def _rate(step: Callable[[], int]) -> float:
    begun, done = time.monotonic(), 0
    while time.monotonic() - begun < SECONDS:
        done += step()
    return done / (time.monotonic() - begun)
