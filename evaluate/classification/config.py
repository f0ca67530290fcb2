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
    """Side of the crop, in pixels."""
    resize: PositiveInt = 256
    """Short side of the image before the test crop, in pixels."""
    interpolation: Interpolation = "bicubic"
    precision: Precision = "fp32"
    """Precision of the encoder's forward passes; auto is fp16 on CUDA and fp32 on a CPU."""
    max_unreadable_images: NonNegativeInt = 0
    """How many unreadable images of each set may be left out; the record names them."""


@dataclass(frozen=True)
class TrainingConfig(ImageConfig):
    """What is trained besides, and in which batches."""

    epochs: PositiveInt = 100
    batch_size: PositiveInt = 1024
    """Images in an optimizer step, over all processes and micro-batches."""
    micro_batch: Annotated[int, Ge(2)] = 128
    """Images that a process takes in one forward pass."""
    precision: Precision = "auto"
    """Precision of the forward passes; auto is fp16 on CUDA and fp32 on a CPU."""
