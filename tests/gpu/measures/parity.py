"""The golden pretraining steps on a device.

    python -m tests.gpu.measures.parity DEVICE ieee|defaults FILE …

``ieee`` switches TF32 off; ``defaults`` leaves torch's own, under which convolutions take it. ``pretrain.parity``
knows the CPU alone, so its model is moved, and what goes in and comes out.
"""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import torch

from pretrain import parity


def moved(value: Any, device: str) -> Any:
    """A tensor, or a dataclass of such, on a device; anything else as it is."""
    if isinstance(value, torch.Tensor):
        return value.to(device)
    if dataclasses.is_dataclass(value):
        return type(value)(*(moved(getattr(value, field.name), device) for field in dataclasses.fields(value)))
    return value


def main(device: str, arithmetic: str, files: list[str]) -> None:
    """Prints the largest relative difference by file and kind, and of all."""
    if arithmetic == "ieee":
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    difference, build = parity.difference, parity._build

    def built(*arguments: Any) -> Any:
        model, buffers = build(*arguments)
        model.to(device)
        for name in ("forward", "reconstruct"):
            if hasattr(model, name):
                call = getattr(model, name)
                setattr(model, name, lambda *given, call=call: moved(call(*(moved(v, device) for v in given)), "cpu"))
        return model, buffers

    parity._build = built
    parity.difference = lambda ours, expected: difference(moved(ours, "cpu"), expected)
    worst = 0.0
    for file in files:
        found = parity.compare(json.loads(Path(file).read_text()))
        print(Path(file).name, {name: f"{value:.1e}" for name, value in found.items()})
        worst = max(worst, *found.values())
    print("WORST", worst)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3:])
