"""The arithmetic of a forward pass: float32, or autocast to a shorter type.

bf16 is fast on GPUs and on CPUs with AMX, and four times slower than float32 on others; docs/imagenet.md has what it
changes.
"""

import contextlib
from typing import Literal, get_args

Precision = Literal["auto", "fp32", "fp16", "bf16"]
CHOICES: tuple[str, ...] = get_args(Precision)
DTYPES = {"fp16": "float16", "bf16": "bfloat16"}  # by torch's names


def resolve(precision: str, device: str) -> str:
    """``auto`` is fp16 on CUDA, as in the official code, and fp32 on a CPU. Raises ValueError for an unknown name."""
    if precision not in CHOICES:
        raise ValueError(f"precision is one of {', '.join(CHOICES)}, not {precision!r}")
    if precision == "auto":
        return "fp16" if device.startswith("cuda") else "fp32"
    return precision


def is_allowed(resolved: str, published: str) -> bool:
    """Whether a published protocol allows a resolved precision; ``published`` is the paper's setting of it."""
    return resolved in (("fp16", "fp32") if published == "auto" else (published,))


def autocast(precision: str, device: str) -> contextlib.AbstractContextManager:
    """The context of a forward pass in a resolved precision."""
    import torch  # here, so that a config can name its precision without torch

    return (
        torch.autocast(device.split(":")[0], getattr(torch, DTYPES[precision]))
        if precision in DTYPES
        else contextlib.nullcontext()
    )
