"""A part of a resized image, to the last bit as PIL resizes the whole and cuts the part, without computing the rest.

Two facts of ``Image.resize`` make that possible. It resizes along the rows first and then along the columns, each time
to 8 bits; only where an image shrinks by more than twice as many pixels in height as in width, it begins with the
columns. And it takes a ``box`` in float32, which is exact where the resized length is a power of two, as 256 is.
"""

import math

from PIL import Image

REACH = {Image.Resampling.BILINEAR: 1, Image.Resampling.BICUBIC: 2}  # of a filter, in pixels of the smaller image
FLOAT32 = 2**24  # whole numbers up to it are exact
Pair = tuple[int, int]


def resized_part(image: Image.Image, size: Pair, corner: Pair, part: Pair, method: Image.Resampling) -> Image.Image:
    """``image.resize(size, method)`` from ``corner`` (left, top) on, ``part`` (width, height) pixels of it."""
    (width, height), (left, top) = image.size, corner
    if image.height - size[1] > max(0, 2 * (image.width - size[0])):
        return image.resize(size, method).crop((left, top, left + part[0], top + part[1]))
    reach = REACH[method] * max(height / size[1], 1) + 1  # rows beside those below the part that it is made of
    first = max(0, math.floor(top * height / size[1] - reach))
    last = min(height, math.ceil((top + part[1]) * height / size[1] + reach))
    rows = image if last - first == height else image.crop((0, first, width, last))
    return _down(_across(rows, size[0], left, part[0], method), height, first, size[1], top, part[1], method)


def _across(image: Image.Image, length: int, left: int, count: int, method: Image.Resampling) -> Image.Image:
    """Resized to a width of ``length``, of which ``count`` columns from ``left`` on."""
    width, height = image.size
    if _is_exact(width, length):
        return image.resize(
            (count, height), method, (left * width / length, 0, (left + count) * width / length, height)
        )
    return image.resize((length, height), method).crop((left, 0, left + count, height))


def _down(
    rows: Image.Image, height: int, first: int, length: int, top: int, count: int, method: Image.Resampling
) -> Image.Image:
    """An image of ``height``, of which there are the ``rows`` from ``first`` on, resized to a height of ``length``, of
    which ``count`` rows from ``top`` on."""
    width = rows.width
    if _is_exact(height, length):
        box = (0, top * height / length - first, width, (top + count) * height / length - first)
        return rows.resize((width, count), method, box)
    whole = rows
    if rows.height != height:
        whole = Image.new(rows.mode, (width, height))
        whole.paste(rows, (0, first))
    return whole.resize((width, length), method).crop((0, top, width, top + count))


def _is_exact(before: int, after: int) -> bool:
    """Whether float32 holds every multiple of ``before / after`` that lies within the image."""
    return after.bit_count() == 1 and before * after <= FLOAT32
