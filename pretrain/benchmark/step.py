"""Seconds of one optimizer step by part, and what the machine could do at most."""

import argparse
import dataclasses
import functools
import itertools
import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from evaluate.runtime.precision import allow_tf32
from pretrain.benchmark import baseline
from pretrain.cpu import keep_freed_memory
from pretrain.data import views
from pretrain.data.images import decode
from pretrain.methods import siameseim
from pretrain.optimizer import make_optimizer
from pretrain.step import PRECISIONS, start_model
from pretrain.vit import set_grad_checkpointing

PARTS = ("augment", "target", "online", "loss", "backward", "optimizer", "EMA")
DTYPES = {"fp32": torch.float32, "tf32": torch.float32, **PRECISIONS}


class Clock:
    """Seconds between marks, of the device's own time where it has one."""

    def __init__(self, device: str):
        self.cuda = device.startswith("cuda")
        self.marks: list[tuple[str, Any]] = []

    def mark(self, name: str) -> None:
        """Ends the part ``name``, which began at the mark before."""
        if self.cuda:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self.marks.append((name, event))
        else:
            self.marks.append((name, time.perf_counter()))

    def seconds(self) -> dict[str, float]:
        """Seconds of each part, and of "step": from the first mark to the last."""
        if self.cuda:
            torch.cuda.synchronize()

        def between(first: Any, last: Any) -> float:
            return first.elapsed_time(last) / 1000 if self.cuda else last - first

        parts = {name: between(before, after) for (_, before), (name, after) in itertools.pairwise(self.marks)}
        return {**parts, "step": between(self.marks[0][1], self.marks[-1][1])}


def median_seconds(call: Callable[[], Any], device: str, repeats: int = 5) -> float:
    """The median time of a call, after one to warm up."""
    times = []
    for _ in range(repeats + 1):
        clock = Clock(device)
        clock.mark("")
        call()
        clock.mark("call")
        times.append(clock.seconds()["call"])
    return statistics.median(times[1:])


def matmul_ceiling(precision: str, device: str) -> float:
    """FLOP/s of a plain square matrix product."""
    allow_tf32(precision == "tf32")
    size = 8192 if device.startswith("cuda") else 2048
    a, b = (torch.randn(size, size, device=device, dtype=DTYPES[precision]) for _ in range(2))
    return 2 * size**3 / median_seconds(lambda: a @ b, device)


def step_flops(config: siameseim.Config) -> float:
    """Floating point operations of the model's matrix products, an image and optimizer step; the backward pass counts
    twice.

    The target has a forward pass only, and so has a frozen patch embedding. The loss's products are left out (under 1
    %).
    """
    width, narrow, cells, seen = (
        config.embed_dim,
        config.decoder_embed_dim,
        config.num_patches,
        config.num_patches - config.num_masked,
    )

    def blocks(depth: int, tokens: int, channels: int) -> float:
        return depth * (2 * tokens * channels**2 * (4 + 2 * config.mlp_ratio) + 4 * tokens**2 * channels)

    def branch(tokens: int) -> float:
        return (
            blocks(config.depth, tokens, width)
            + 2 * tokens * width * narrow
            + blocks(config.projector_depth, tokens, narrow)
        )

    embed = 2 * cells * 3 * config.patch_size**2 * width
    predictor = (
        blocks(config.predictor_depth, 1 + seen + cells, narrow)
        + 2 * cells * (2 * narrow) * narrow
        + 2 * cells * narrow**2
    )
    online = 3 * (branch(1 + seen) + predictor) + embed * (3 if config.train_patch_embed else 1)
    return online + branch(1 + cells) + embed


def time_step(config: siameseim.Config, plain: bool, options: argparse.Namespace) -> dict[str, Any]:
    """Medians of the seconds of each part over the steps asked for, after one to warm up, and the process's peak memory
    in bytes."""
    device = options.device
    keeps = device == "cpu" and not plain
    if keeps:
        keep_freed_memory(False)
    torch.manual_seed(0)
    allow_tf32(config.precision == "tf32")
    model: Any = baseline.PlainSiameseIM(config).to(device).train() if plain else start_model(config, device)
    if options.grad_checkpointing:
        set_grad_checkpointing(model)
    if options.compile:
        for name in ("target_side", "online_side", "loss"):
            setattr(model, name, torch.compile(getattr(model, name)))
    optimizer = baseline.plain_optimizer(model, config) if plain else make_optimizer(model, config)
    scaler = torch.amp.GradScaler(torch.device(device).type, enabled=config.precision == "fp16")
    source = batch_source(config, plain, sorted(options.images.iterdir()))
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
    step = functools.partial(time_parts, model, optimizer, scaler, source, config, device, looped=plain)
    step()
    if keeps:
        keep_freed_memory(True)
    timings = [step() for _ in range(options.steps)]
    seconds = {name: statistics.median(timing[name] for timing in timings) for name in timings[0]}
    peak = (
        torch.cuda.max_memory_allocated()
        if device.startswith("cuda")
        else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    )
    return {"seconds": seconds, "peak_bytes": peak}


def batch_source(config: siameseim.Config, plain: bool, paths: list[Path]) -> Callable[[str], views.Batch]:
    """A function that gives the batch of a step on a device, from crops that lie in memory."""
    index = np.arange(config.batch_size)
    chosen = [paths[i % len(paths)] for i in index]
    if plain:
        batch = baseline.PerImageViews(config).batch(chosen)
        tensors = {field.name: getattr(batch, field.name) for field in dataclasses.fields(batch)}
        return lambda device: views.Batch(
            **{name: tensor.to(device) for name, tensor in tensors.items() if tensor is not None}
        )
    crops = views.crop([decode(path) for path in chosen], index, 0, config)
    return lambda device: views.augment(crops.to(device), 0, config)


def time_parts(
    model: Any,
    optimizer: Any,
    scaler: Any,
    source: Callable[[str], views.Batch],
    config: siameseim.Config,
    device: str,
    looped: bool,
) -> dict[str, float]:
    """Seconds of each part of one optimizer step; ``looped`` parameters are clipped one after the other."""
    clock = Clock(device)
    clock.mark("")
    batch = source(device)
    clock.mark("augment")
    dtype = DTYPES[config.precision]
    with torch.autocast(torch.device(device).type, dtype=dtype, enabled=dtype != torch.float32):
        target = model.target_side(batch)
        clock.mark("target")
        prediction = model.online_side(batch)
        clock.mark("online")
        loss = model.loss(prediction, target)
    clock.mark("loss")
    del batch, target, prediction
    scaler.scale(loss).backward()
    clock.mark("backward")
    scaler.unscale_(optimizer)
    nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm or float("inf"), foreach=not looped)
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad()
    clock.mark("optimizer")
    model.after_step(1, 2)
    clock.mark("EMA")
    return clock.seconds()
