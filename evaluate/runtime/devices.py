"""Which device a command computes on."""

import re

from evaluate.runtime.errors import UserError


def resolve_device(text: str) -> str:
    """``auto`` (a GPU where there is one), ``cpu``, ``cuda`` or ``cuda:N`` to the device's name for torch.

    Raises:
        UserError: any other word, or a GPU that is not there.
    """
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", text):
        raise UserError(f"--device is auto, cpu, cuda or cuda:N, not {text!r}")
    if text == "cpu":
        return text
    import torch  # here, so that a command refuses a wrong word without torch

    if text == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    count = torch.cuda.device_count()
    number = int(text.partition(":")[2] or 0)
    if number >= count:
        there = f"the machine has {count} usable GPUs" if count else "torch finds no usable GPU on this machine"
        raise UserError(f"--device {text} cannot be used: {there}; choose another, or --device cpu")
    return text
