"""Outlines of COCO's kind: polygons, or run lengths as numbers or packed in a text."""

import math
from typing import Any

NUMBERS = {int, float}  # True is another type


def near(numbers: list[Any], height: int, width: int) -> bool:
    """Whether a list holds finite numbers only that lie at most a picture's longer side outside of it.

    Far points would make the scorer's C code allocate without end.
    """
    side = max(height, width)
    if not set(map(type, numbers)) <= NUMBERS or max(numbers) > 2 * side or min(numbers) < -side:
        return False
    return math.isfinite(sum(numbers))  # min and max do not see a NaN


def outline_fault(outline: Any, height: int, width: int) -> str | None:
    """What is wrong with an outline in a picture of that size, as the end of a sentence; None is no outline."""
    if outline is None:
        return None  # no outline: left out of the training, refused where it is scored
    if isinstance(outline, dict):
        try:
            counts = run_lengths(outline)
        except ValueError as error:
            return f"has a segmentation of run lengths that cannot be read: {error}"
        if outline.get("size") != [height, width] or sum(counts) != height * width:
            return (
                f"has run lengths of {sum(counts)} pixels and the size {outline.get('size')!r}, but its picture is "
                f"[{height}, {width}]"
            )
        return None
    if not isinstance(outline, list):
        return f"has the segmentation {outline!r}, which should be a list of polygons or run lengths"
    for part in outline:
        if not isinstance(part, list) or (part and not near(part, height, width)):
            return "has a polygon that is not a list of finite numbers near its picture"
    return None


def run_lengths(outline: dict[str, Any]) -> list[int]:
    """COCO's run lengths as numbers, beginning with the zeros; a text is unpacked as its mask API packs it.

    Raises:
        ValueError: neither a text of that form nor a list of whole numbers.
    """
    packed = outline.get("counts")
    if isinstance(packed, list):
        if not packed or not set(map(type, packed)) == {int} or min(packed) < 0:
            raise ValueError("counts should be whole numbers, none negative")
        return packed
    if not isinstance(packed, str) or not packed:
        raise ValueError("counts should be a list or a text")
    counts: list[int] = []
    value = shift = 0
    for byte in packed:
        bits = ord(byte) - 48  # five bits of the number, then whether it goes on
        if not 0 <= bits < 64 or shift > 30:
            raise ValueError("counts is not a text of packed run lengths")
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            value -= (bits & 16) // 16 << shift
            counts.append(value + (counts[-2] if len(counts) > 2 else 0))
            value = shift = 0
    if shift or min(counts) < 0:
        raise ValueError("counts is cut off, or holds a negative length")
    return counts


def usable_parts(outline: Any) -> list[list[float]]:
    """The polygons of an outline that have three points or more."""
    return [part for part in outline or [] if len(part) >= 6 and len(part) % 2 == 0]


def pixels(outline: dict[str, Any]) -> int:
    """How many pixels run lengths cover."""
    return sum(run_lengths(outline)[1::2])


def has_area(polygon: list[float], height: int, width: int) -> bool:
    """Whether a polygon has area and its extent meets the picture."""
    xs, ys = polygon[::2], polygon[1::2]
    if max(xs) <= 0 or min(xs) >= width or max(ys) <= 0 or min(ys) >= height:
        return False
    following = zip(xs[1:] + xs[:1], ys[1:] + ys[:1], strict=True)
    return sum(x * v - u * y for x, y, (u, v) in zip(xs, ys, following, strict=True)) != 0
