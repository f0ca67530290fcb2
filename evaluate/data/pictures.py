"""Sizes of pictures by their headers: what a file says of a picture holds before hours are spent on both."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from PIL import Image

from evaluate.data.pixels import ORIENTATION, READ_ERRORS
from evaluate.runtime.errors import UserError
from evaluate.runtime.progress import track

THREADS = 16  # file systems of a network answer many at once
TURNED = (5, 6, 7, 8)  # orientations that exchange width and height


def picture_size(path: Path, upright: bool) -> tuple[int, int]:
    """(width, height) in pixels as ``read_rgb`` gives the picture: as it is stored, or turned as its orientation says.

    Raises UserError for a file that is no picture.
    """
    try:
        with Image.open(path) as picture:
            turned = upright and picture.getexif().get(ORIENTATION) in TURNED
            return picture.size[::-1] if turned else picture.size
    except READ_ERRORS as error:
        raise UserError(f"the image {path} cannot be read ({error}); restore it") from error


def picture_sizes(paths: Sequence[Path], upright: bool) -> list[tuple[int, int]]:
    """``picture_size`` of each."""
    with ThreadPoolExecutor(THREADS) as pool:
        return list(track(pool.map(partial(picture_size, upright=upright), paths), "sizes of the pictures", len(paths)))
