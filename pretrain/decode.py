"""Reads an image file as a uint8 tensor: JPEGs by torchvision's decoder, which copies less than PIL, everything else by PIL."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg

JPEG = b"\xff\xd8\xff"


def decode(path: Path) -> Tensor:
    """(3, H, W) RGB, colours next to each other in memory; the pixels that PIL's ``convert("RGB")`` gives, EXIF rotation not applied.

    Raises:
        OSError, SyntaxError, ValueError: of PIL, for a file that is not a whole image.
    """
    content = bytearray(path.read_bytes())
    if content.startswith(JPEG):
        try:
            image = decode_jpeg(torch.frombuffer(content, dtype=torch.uint8), ImageReadMode.UNCHANGED)
        except RuntimeError:
            return _by_pil(path)  # which says what is wrong
        if len(image) == 3:
            return image
        if len(image) == 1:
            return image.permute(1, 2, 0).repeat(1, 1, 3).permute(2, 0, 1)
    return _by_pil(path)  # CMYK, whose conversion is PIL's own, and other formats


def _by_pil(path: Path) -> Tensor:
    with Image.open(path) as file:
        return torch.from_numpy(np.array(file.convert("RGB"))).permute(2, 0, 1)
