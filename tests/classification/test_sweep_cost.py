"""What the sweep's 52 heads cost beside a single one, on the same frozen pass of a randomly initialized ViT. Prints the
seconds (`pytest -s`).

    uv run pytest -s -m slow tests/classification/test_sweep_cost.py                 ViT-B, 32 images a step, fp32
    SWEEP_COST_DEVICE=cuda uv run pytest -s -m slow tests/classification/test_sweep_cost.py

One run times, step by step in turn, the frozen pass over a batch, the training of all heads on it and that of one head;
it prints the medians and the ratio (pass + all heads) / (pass + one head).
"""

import json
import os
import statistics
import time
from collections.abc import Callable

import pytest
import timm
import torch

from evaluate.checkpoints.architecture import vit
from evaluate.classification.head_sweep import HeadInputs
from evaluate.classification.stacked_heads import StackedHeads, make_optimizer
from evaluate.encoder import Encoder
from evaluate.sweep import PRESETS

CLASSES, IMAGES, STEPS = 1000, 32, 2
PAPER = PRESETS["paper"]


def seconds_of(model: str, images: int, device: str) -> dict[str, float]:
    """Median seconds of a step of each part, and the ratio."""
    state = timm.create_model(model, num_classes=0).state_dict()
    given = {"mean": (0.5,) * 3, "std": (0.5,) * 3}
    encoder = Encoder(vit(state, given, None, False, model), state).eval().to(device)
    inputs = HeadInputs(encoder, PAPER.blocks, PAPER.poolings)
    pixels = torch.randint(256, (images, 3, PAPER.img_size, PAPER.img_size), dtype=torch.uint8)
    labels = torch.randint(CLASSES, (images,), device=device)
    values = inputs.of_pixels(pixels, "fp32", device)
    first = next(iter(values))
    everything = StackedHeads({name: value.shape[1] for name, value in values.items()}, PAPER.base_lrs, CLASSES).to(
        device
    )
    single = StackedHeads({first: values[first].shape[1]}, PAPER.base_lrs[-1:], CLASSES).to(device)

    def training(heads: StackedHeads) -> Callable[[], None]:
        update = make_optimizer(heads, PAPER.momentum)
        update.param_groups[0]["lr"] = 1e-3

        def step() -> None:
            update.zero_grad(set_to_none=False)
            heads.accumulate({name: values[name] for name in heads.weights}, labels, images)
            update.step()

        return step

    parts = {
        "pass": lambda: inputs.of_pixels(pixels, "fp32", device),
        "all_heads": training(everything),
        "one_head": training(single),
    }
    seconds: dict[str, list[float]] = {name: [] for name in parts}
    for step in range(STEPS + 1):
        for name, part in parts.items():
            begun = time.perf_counter()
            part()
            if device.startswith("cuda"):
                torch.cuda.synchronize()
            if step:  # the first warms up
                seconds[name].append(time.perf_counter() - begun)
    median = {name: statistics.median(values) for name, values in seconds.items()}
    return {**median, "ratio": (median["pass"] + median["all_heads"]) / (median["pass"] + median["one_head"])}


@pytest.mark.parametrize(
    ("model", "images"),
    [("vit_tiny_patch16_224", 2), pytest.param("vit_base_patch16_224", IMAGES, marks=pytest.mark.slow)],
)
def test_all_heads_beside_one(model: str, images: int) -> None:
    measured = seconds_of(model, images, os.environ.get("SWEEP_COST_DEVICE", "cpu"))
    print(json.dumps({"model": model, "images": images, **{name: round(value, 4) for name, value in measured.items()}}))
    assert measured["all_heads"] > measured["one_head"] > 0
    if images == IMAGES:  # the small model's pass is no longer than its heads'
        assert measured["ratio"] < 1.2
