"""One pretraining step under torch's profiler.

    python -m tests.gpu.measures.waits DEVICE PRESET BATCH

Prints, as JSON, how often the CPU waited for the GPU, the kernels, their share of the time, and the seconds.
"""

import json
import math
import sys
import time

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from pretrain import train
from tests.gpu.pretended.pretraining import Photographs

WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize")
IMAGE_SIDE = 384  # pixels of the pictures that the crops are cut from


def main(device: str, preset: str, size: int) -> None:
    """Three steps to warm up, then one that is looked at."""
    config = train.configure(preset, [f"batch_size={size}", "precision=bf16"])
    batch = next(iter(train.steps_from(Photographs(size, IMAGE_SIDE), 0, size, config, 0)))
    model = train.method_of(config).build(config).to(device).train()
    optimizer = train.make_optimizer(model, config)
    scaler = torch.amp.GradScaler(device, enabled=False)
    cuda = device == "cuda"

    def step() -> None:
        loss = train.accumulate(model, scaler, batch, config, device)
        limit = math.inf if config.clip_norm is None else config.clip_norm
        norm = nn.utils.clip_grad_norm_(model.parameters(), limit)
        bool(torch.isfinite(torch.stack([loss, norm])).all())  # as the loop asks, once
        optimizer.step()
        model.after_step(1, 2)
        optimizer.zero_grad()

    def timed() -> float:
        begun = time.perf_counter()
        step()
        if cuda:
            torch.cuda.synchronize()
        return time.perf_counter() - begun

    for _ in range(3):
        timed()
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]) as seen:
        seconds = timed()
    events = seen.events()
    kernels = [e for e in events if str(e.device_type).endswith("CUDA") and not e.name.startswith("Memcpy")]
    busy = sum(kernel.device_time for kernel in kernels) / 1e6 / seconds
    waits = sum(event.name in WAITS for event in events) - cuda  # the last is this script's own
    print(json.dumps({"waits": waits, "kernels": len(kernels), "busy": busy, "seconds": seconds}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
