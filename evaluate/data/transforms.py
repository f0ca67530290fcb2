"""From a decoded image to the pixels an encoder sees: the evaluation crop, the single-draw crop of LIN, the
augmentation of FT.

Transforms take and return PIL images; ``normalize`` finishes a batch on the device. Each random one draws from a seed
made of (seed, epoch, index), so that an image's view depends on neither the number of processes nor on where a run was
taken up again.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from PIL import Image
from torchvision.transforms import InterpolationMode, RandomResizedCrop
from torchvision.transforms import functional as F

from evaluate.data.resizing import resized_part
from evaluate.runtime.errors import UserError
from evaluate.runtime.seeding import seed_global, seed_of

INTERPOLATIONS = {"bilinear": InterpolationMode.BILINEAR, "bicubic": InterpolationMode.BICUBIC}


class Transform(Protocol):
    """A callable from a PIL image and the draw's epoch and index to a PIL image of the crop's size."""

    def __call__(self, image: Image.Image, epoch: int, index: int) -> Image.Image: ...


@dataclass(frozen=True)
class CenterCrop:
    """Resize the short side to ``resize`` (None: leave the size), then cut ``crop`` x ``crop`` from the centre."""

    crop: int
    resize: int | None
    interpolation: str

    def __post_init__(self) -> None:
        if self.resize is not None and self.resize < self.crop:
            raise UserError(
                f"a crop of {self.crop} px does not fit images resized to {self.resize} px; choose img_size and "
                f"resize that do"
            )

    def __call__(self, image: Image.Image, epoch: int = 0, index: int = 0) -> Image.Image:
        if self.resize is None and min(image.size) < self.crop:  # torchvision would pad it with black
            raise UserError(
                f"an image of {image.width} x {image.height} px cannot be cropped to {self.crop} px without resizing"
            )
        short = min(image.size)
        width, height = (side if self.resize is None else int(self.resize * side / short) for side in image.size)
        left, top = (round((side - self.crop) / 2) for side in (width, height))
        part = (self.crop, self.crop)
        if image.size == (width, height):
            return image if image.size == part else image.crop((left, top, left + self.crop, top + self.crop))
        return resized_part(image, (width, height), (left, top), part, Image.Resampling[self.interpolation.upper()])


@dataclass(frozen=True)
class SingleDrawCropFlip:
    """Random resized crop with one draw, clamped to the image, then a flip with probability 1/2.

    torchvision tries up to ten draws until one fits; the linear probe of MAE and SiameseIM takes the first and clamps
    it, as the TensorFlow code of BYOL does (recipes of their ``util/crop.py``).
    """

    size: int
    interpolation: str
    seed: int
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)

    def __call__(self, image: Image.Image, epoch: int, index: int) -> Image.Image:
        draw = random.Random(seed_of(self.seed, epoch, index))
        top, left, height, width = single_draw_box(image.width, image.height, self.scale, self.ratio, draw)
        image = F.resized_crop(
            image, top, left, height, width, [self.size, self.size], INTERPOLATIONS[self.interpolation]
        )
        return F.hflip(image) if draw.random() < 0.5 else image


def single_draw_box(
    width: int, height: int, scale: tuple[float, float], ratio: tuple[float, float], draw: random.Random
) -> tuple[int, int, int, int]:
    """Top, left, height and width in pixels: area uniform in ``scale``, aspect ratio log-uniform in ``ratio``, sides
    clamped.
    """
    area = width * height * draw.uniform(*scale)
    aspect = math.exp(draw.uniform(math.log(ratio[0]), math.log(ratio[1])))
    crop_width = min(round(math.sqrt(area * aspect)), width)
    crop_height = min(round(math.sqrt(area / aspect)), height)
    return draw.randint(0, height - crop_height), draw.randint(0, width - crop_width), crop_height, crop_width


@dataclass(frozen=True)
class RandomCropFlip:
    """torchvision's RandomResizedCrop and a flip with probability 1/2: the linear probes of MoCo, SimSiam, MoCo-v3 and
    DINOv2.
    """

    size: int
    interpolation: str
    seed: int

    def __call__(self, image: Image.Image, epoch: int, index: int) -> Image.Image:
        seed_global("cpu", self.seed, epoch, index)
        box = RandomResizedCrop.get_params(image, (0.08, 1.0), (3 / 4, 4 / 3))
        image = F.resized_crop(image, *box, [self.size, self.size], INTERPOLATIONS[self.interpolation])
        return F.hflip(image) if random.random() < 0.5 else image


class FinetuneAugmentation:
    """timm's training transform of FT: random resized crop, flip, RandAugment; erasing follows on the batch."""

    def __init__(self, size: int, interpolation: str, rand_augment: str, mean: Sequence[float], seed: int) -> None:
        from timm.data.transforms_factory import transforms_imagenet_train  # slow to import, and only FT needs it

        # mean is the colour RandAugment fills with where it moves an image's border inwards
        first, second, _ = transforms_imagenet_train(
            size,
            interpolation=interpolation,
            auto_augment=rand_augment,
            mean=tuple(mean),
            separate=True,
            color_jitter=None,  # type: ignore[arg-type]  # None is what its own default recipe passes
        )
        for operation in second.transforms[0].ops:
            if operation.name.startswith("Posterize"):
                operation.aug_fn = posterize
        self.transforms = (first, second)
        self.seed = seed

    def __call__(self, image: Image.Image, epoch: int, index: int) -> Image.Image:
        seed_global("cpu", self.seed, epoch, index)
        for transform in self.transforms:
            image = transform(image)
        return image


def posterize(image: Image.Image, bits: int, **_unused: object) -> Image.Image:
    """Keeps the highest ``bits`` of each channel; 0 gives black.

    RandAugment at magnitude 10 asks for 0 bits, which Pillow took as black until it began to refuse it: timm's own
    would end a fine-tuning with the paper's magnitude 9 and deviation 0.5 within the first few thousand images.
    """
    return image.point(lambda value: value & -(1 << (8 - bits))) if bits < 8 else image


def normalize(
    images: torch.Tensor, mean: Sequence[float], std: Sequence[float], device: str | torch.device
) -> torch.Tensor:
    """uint8 (B, 3, H, W) to float32 on the device: value / 255, minus ``mean``, over ``std`` (on the 0..1 scale).

    A GPU does it in one pass, equal to rounding; a CPU by parts, which is faster there.
    """
    pixels = images.to(device, non_blocking=True)
    shift, scale = (torch.tensor(values).view(3, 1, 1) for values in (mean, std))
    if pixels.device.type == "cpu":
        # each as a whole image: memory is gone through in its order, also where the colors of a pixel lie together
        shift, scale = (torch.empty_like(pixels[0], dtype=torch.float32).copy_(color) for color in (shift, scale))
        return pixels.div(255).sub_(shift).div_(scale)
    return scale_and_shift(pixels, 1 / (255 * scale), -shift / scale)


def scale_and_shift(pixels: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    """Pixels (B, 3, H, W) times ``scale`` plus ``shift``, each (3, 1, 1) float32, in one pass, as float32."""
    # copied without waiting for what the GPU has to do, as torch.tensor(…, device=…) would
    both = torch.stack([scale, shift]).to(pixels.device, non_blocking=True)
    return torch.addcmul(both[1], pixels, both[0])
