"""The one reader of pixels: whatever an image file holds, as 8-bit RGB. Pretraining and every task read through it."""

from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image, ImageOps

# what PIL raises for a file that is not a whole image
READ_ERRORS = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)
ORIENTATION = 0x0112  # EXIF's tag


def read_rgb(source: str | Path | IO[bytes], upright: bool = False) -> Image.Image:
    """An image as RGB: PIL's conversion, and grey of 16 or 32 bits scaled to 8.

    Args:
        source: a path, or an open file.
        upright: obey the EXIF orientation, as detectron2 does; otherwise the pixels stay as they are stored.

    Raises:
        READ_ERRORS: saying why the file cannot be read.
    """
    with Image.open(source) as file:
        image: Image.Image = file
        if upright:
            file.load()
            image = _upright(file)
        if image.mode.startswith("I") or image.mode == "F":
            return _scaled(image).convert("RGB")
        if image.mode == "RGB":
            image.load()
            return image  # a conversion would copy it
        return image.convert("RGB")


def _upright(image: Image.Image) -> Image.Image:
    try:
        turned = image.getexif().get(ORIENTATION, 1) != 1
    except Exception:  # metadata that cannot be read turn nothing, as in detectron2
        return image
    return ImageOps.exif_transpose(image) if turned else image


def _scaled(image: Image.Image) -> Image.Image:
    """Grey of 16 bits (modes ``I;16…``), of 32 bits (``I``) or of floats (``F``) as 8 bits, by the white of its range.

    16 bits are always divided by 257. Of the others the largest value tells the white: 1 (floats alone), 255 or 65535.
    PIL itself would cut all values at 255.
    """
    values = np.asarray(image)
    low, high = values.min(), values.max()
    if not (low >= 0 and high <= 65535):  # not a number is neither
        raise ValueError(
            f"its values run from {low:g} to {high:g}, where grey from 0 to 255 or 65535, or floats from 0 to 1, "
            "are expected"
        )
    white = 65535 if high > 255 or image.mode.startswith("I;16") else 1 if image.mode == "F" and high <= 1 else 255
    return Image.fromarray(np.rint(values * (255 / white)).astype(np.uint8))
