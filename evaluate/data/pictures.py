"""Sizes of pictures by their headers: what a file says of a picture holds before hours are spent on both."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from PIL import ExifTags, Image

from evaluate.runtime.errors import UserError
from evaluate.runtime.progress import track

THREADS = 16  # file systems of a network answer many at once
TURNED = (5, 6, 7, 8)  # orientations that exchange width and height


def picture_size(path: Path) -> tuple[int, int]:
    """(width, height) in pixels as the picture is shown, that is turned as its orientation says.

    Raises UserError for a file that is no picture.
    """
    try:
        with Image.open(path) as picture:
            turned = picture.getexif().get(ExifTags.Base.Orientation) in TURNED
            return picture.size[::-1] if turned else picture.size
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"the image {path} cannot be read ({error}); restore it") from error


def picture_sizes(paths: Sequence[Path]) -> list[tuple[int, int]]:
    """``picture_size`` of each."""
    with ThreadPoolExecutor(THREADS) as pool:
        return list(track(pool.map(picture_size, paths), "sizes of the pictures", len(paths)))
