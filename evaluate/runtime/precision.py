"""The arithmetic of a forward pass: float32, or autocast to a shorter type.

bf16 is fast on GPUs and on CPUs with AMX, and four times slower than float32 on others; docs/imagenet.md has what it
changes. tf32 is float32 whose products a GPU rounds to 10 bits of mantissa; on a CPU it is fp32. No other word lets a
GPU do that.
"""

import contextlib
from collections.abc import Iterator
from typing import Literal, get_args

Precision = Literal["auto", "fp32", "tf32", "fp16", "bf16"]
CHOICES: tuple[str, ...] = get_args(Precision)
DTYPES = {"fp16": "float16", "bf16": "bfloat16"}  # by torch's names


def resolve(precision: str, device: str) -> str:
    """``auto`` is fp16 on CUDA, as in the official code, and fp32 on a CPU; ``tf32`` is fp32 there.

    Raises ValueError for an unknown name.
    """
    if precision not in CHOICES:
        raise ValueError(f"precision is one of {', '.join(CHOICES)}, not {precision!r}")
    on_gpu = device.startswith("cuda")
    if precision == "auto":
        return "fp16" if on_gpu else "fp32"
    return "fp32" if precision == "tf32" and not on_gpu else precision


def is_allowed(resolved: str, published: str) -> bool:
    """Whether a published protocol allows a resolved precision; ``published`` is the paper's setting of it."""
    return resolved in (("fp16", "fp32") if published == "auto" else (published,))


def autocast(precision: str, device: str) -> contextlib.AbstractContextManager:
    """The context of a forward pass in a resolved precision; what float32 means stays after it, for the backward."""
    import torch  # here, so that a config can name its precision without torch

    allow_tf32(precision == "tf32")
    return (
        torch.autocast(device.split(":")[0], getattr(torch, DTYPES[precision]))
        if precision in DTYPES
        else contextlib.nullcontext()
    )


def allow_tf32(allowed: bool) -> None:
    """Whether a GPU may round the inputs of float32 matrix products and convolutions to TF32; torch allows it in
    convolutions unless told otherwise.
    """
    import torch

    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = allowed


@contextlib.contextmanager
def full_float32() -> Iterator[None]:
    """Where float32 products of matrices stay float32 on a GPU, whatever ``allow_tf32`` allows outside."""
    import torch

    allowed = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = allowed
