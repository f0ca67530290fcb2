"""Traces one pretraining step on a pretended GPU: views, forward, backward, optimizer, and a look at the features.

    python -m tests.gpu.pretended.pretraining [--preset paper] [--model vit_large] [--batch 64] [--set precision=bf16]

Start it with the variables that ``build`` prints. It takes what the loop takes: a preset, the loader's own crops,
``accumulate``.
"""

import argparse
import math
import sys

import numpy as np
import torch
from torch import nn

from pretrain import train
from pretrain.data import views
from pretrain.data.images import Sample
from pretrain.monitor import Monitor
from tests.gpu.pretended.audit import on_gpu, pretended_gpu
from tests.gpu.pretended.trace import Trace, add_options, finish

LOOKED_AT = 200  # images, of the look at the features


class Photographs:
    """So many images of noise, where the loader expects those of a folder."""

    def __init__(self, count: int, side: int) -> None:
        self.count = count
        self.image = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, side, side), dtype=np.uint8))

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Sample:
        return Sample(self.image, index, {})


def trace_step(options: argparse.Namespace) -> Trace:
    """One step of a preset's run. A tensor of another device that must not be there raises."""
    config = train.configure(options.preset, [f"batch_size={options.batch}", *options.set], options.model)
    micro_batch = options.micro_batch or options.batch
    batch = next(iter(train.steps_from(Photographs(options.batch, config.img_size), 0, micro_batch, config, 0)))
    monitor = Monitor.__new__(Monitor)  # without its pass over a folder
    monitor.crops = torch.zeros(LOOKED_AT, 3, config.img_size, config.img_size, dtype=torch.uint8)
    monitor.labels = torch.arange(LOOKED_AT) % 10
    monitor.statistics = config.mean, config.std
    with torch.device("meta"):
        model = train.method_of(config).build(config)
    trace = Trace()
    with pretended_gpu():
        on_gpu(model).train()
        if options.grad_checkpointing:
            train.set_grad_checkpointing(model)
        optimizer = train.make_optimizer(model, config, model.constant_rate())
        scaler = torch.amp.GradScaler("cuda", enabled=config.precision == "fp16")
        trace.hold(model)
        with trace.part("views of a micro-batch", micro_batch):
            views.augment(batch.micro[0].to("cuda"), 0, config)
        with trace.part("views, forward and backward", options.batch):
            loss = train.accumulate(model, scaler, batch, config, "cuda")
        with trace.part("optimizer", options.batch):
            scaler.unscale_(optimizer)
            limit = math.inf if config.clip_norm is None else config.clip_norm
            norm = nn.utils.clip_grad_norm_(model.parameters(), limit)
            bool(torch.isfinite(torch.stack([loss, norm])).all())  # as the loop asks, once
            scaler.step(optimizer)
            model.after_step(1, 2)
            scaler.update()
            optimizer.zero_grad()
        trace.hold(optimizer)
        with trace.part(
            "views, forward and backward: a second step", options.batch
        ):  # the optimizer's memory stands by now
            train.accumulate(model, scaler, batch, config, "cuda")
        optimizer.zero_grad()
        with trace.part("a look at the features", LOOKED_AT):
            monitor.measure(model, "cuda", train.PRECISIONS.get(config.precision))
    return trace


def main() -> int:
    """0 traced."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="paper")
    parser.add_argument("--model", help="another encoder than the preset's")
    parser.add_argument("--batch", type=int, default=64, help="images a step (default: 64)")
    parser.add_argument("--micro-batch", type=int, help="images at once (default: all)")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="override one setting")
    parser.add_argument("--grad-checkpointing", action="store_true")
    add_options(parser)
    options = parser.parse_args()
    finish(trace_step(options), options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
