"""What the configs of the ImageNet tasks have in common (no torch: a plan and ``--help`` need only this)."""

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge
from pydantic import NonNegativeInt, PositiveInt

from evaluate.runtime.precision import Precision
from evaluate.runtime.settings import Settings

Interpolation = Literal["bicubic", "bilinear"]
Pooling = Literal["cls", "mean"]


@dataclass(frozen=True)
class ImageConfig(Settings):
    """How an image becomes what the encoder sees when it is tested."""

    img_size: PositiveInt = 224
    """Pixels, side of the crop."""
    resize: PositiveInt = 256
    """Pixels, short side before the test crop."""
    interpolation: Interpolation = "bicubic"
    precision: Precision = "fp32"
    """Of the encoder's forward passes; auto is fp16 on CUDA and fp32 on a CPU."""
    max_unreadable_images: NonNegativeInt = 0
    """So many images of a set may be unreadable and are left out; the record names them."""


@dataclass(frozen=True)
class TrainingConfig(ImageConfig):
    """What is trained besides, and in which batches."""

    epochs: PositiveInt = 100
    batch_size: PositiveInt = 1024
    """Images an optimizer step, over all processes and micro-batches."""
    micro_batch: Annotated[int, Ge(2)] = 128
    """Images a process in one forward pass."""
    precision: Precision = "auto"
    """Of the forward passes; auto is fp16 on CUDA and fp32 on a CPU."""
