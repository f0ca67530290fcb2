"""What the sweep's 52 heads cost beside a single one, on the same frozen pass of a randomly initialized ViT.

    python -m evaluate.sweep_cost [--model vit_base_patch16_224] [--batch 1024] [--micro-batch 128] [--precision fp32] [--device cpu]

One run times, step by step in turn, the frozen pass over a batch, the training of all heads on it and that of one head; it prints the
medians and the ratio (pass + all heads) / (pass + one head).
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable

import torch

from evaluate.classification.stacked_heads import StackedHeads, optimizer
from evaluate.runtime import precision
from evaluate.sweep import PRESETS, inputs

CLASSES = 1000


def measure(model: str, batch: int, micro_batch: int, arithmetic: str, device: str, steps: int) -> dict[str, float]:
    """Median seconds of a step of each part, and the ratio."""
    import timm

    from evaluate.checkpoints.architecture import vit
    from evaluate.encoder.model import Encoder

    config = PRESETS["paper"]
    state = timm.create_model(model, num_classes=0).state_dict()
    given = {"mean": (0.5,) * 3, "std": (0.5,) * 3}
    encoder = Encoder(vit(state, given, None, False, model), state).eval().to(device)
    images = torch.randn(micro_batch, 3, config.img_size, config.img_size, device=device)
    labels = torch.randint(CLASSES, (micro_batch,), device=device)
    chunks = max(1, batch // micro_batch)

    def frozen() -> dict[str, torch.Tensor]:
        with torch.no_grad(), precision.autocast(arithmetic, device):
            return inputs(encoder, images, config)

    values = frozen()
    first = next(iter(values))
    everything = StackedHeads({name: value.shape[1] for name, value in values.items()}, config.rates, CLASSES).to(device)
    single = StackedHeads({first: values[first].shape[1]}, config.rates[-1:], CLASSES).to(device)

    def training(heads: StackedHeads) -> Callable[[], None]:
        update = optimizer(heads, config.momentum)
        update.param_groups[0]["lr"] = 1e-3

        def step() -> None:
            update.zero_grad(set_to_none=False)
            for _ in range(chunks):
                heads.accumulate({name: values[name] for name in heads.weights}, labels, batch)
            update.step()

        return step

    parts = {"pass": lambda: [frozen() for _ in range(chunks)], "all_heads": training(everything), "one_head": training(single)}
    seconds: dict[str, list[float]] = {name: [] for name in parts}
    for step in range(steps + 1):
        for name, part in parts.items():
            begun = time.perf_counter()
            part()
            if device.startswith("cuda"):
                torch.cuda.synchronize()
            if step:  # the first warms up
                seconds[name].append(time.perf_counter() - begun)
    median = {name: statistics.median(values) for name, values in seconds.items()}
    return {**median, "ratio": (median["pass"] + median["all_heads"]) / (median["pass"] + median["one_head"])}


def main(argv: list[str] | None = None) -> int:
    """Prints the medians as JSON."""
    parser = argparse.ArgumentParser(
        prog="python -m evaluate.sweep_cost", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="vit_base_patch16_224", help="a timm VisionTransformer (default: vit_base_patch16_224)")
    parser.add_argument("--batch", type=int, default=PRESETS["paper"].batch_size, help="images an optimizer step (default: 1024)")
    parser.add_argument("--micro-batch", type=int, default=PRESETS["paper"].micro_batch, help="images a forward pass (default: 128)")
    parser.add_argument("--precision", choices=precision.CHOICES, default="auto", help="of the frozen pass (default: auto)")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--steps", type=int, default=3, help="timed steps, after one that warms up (default: 3)")
    arguments = parser.parse_args(argv)
    arithmetic = precision.resolve(arguments.precision, arguments.device)
    measured = measure(arguments.model, arguments.batch, arguments.micro_batch, arithmetic, arguments.device, arguments.steps)
    print(json.dumps({**vars(arguments), "precision": arithmetic, **{name: round(value, 4) for name, value in measured.items()}}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
