"""Draws what a model says of images: boxes and masks, label maps, borders. Only PIL and numpy."""

import colorsys
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from evaluate.data.thumbnails import SIDE, Color

NAMED = 10  # shapes of a picture that have their names beside them
COVER = 0.45  # of a mask's color over the picture
TEXT = 11  # pixels
RIGHT, WRONG = (22, 163, 74), (220, 38, 38)
UNLABELED = (205, 205, 205)


@dataclass(frozen=True)
class Shape:
    """One object in a picture."""

    name: str
    number: int
    """Of its class; it chooses the color."""
    box: tuple[float, float, float, float]
    """Left, top, right, bottom in the picture's pixels."""
    mask: np.ndarray | None = None
    """(H, W) bool, of the picture's size."""
    score: float | None = None


def color(number: int) -> Color:
    """Of a class: neighbors in number are far apart in hue, and differ in brightness."""
    hue = number * 0.618034 % 1
    strength, light = ((0.75, 0.95), (0.95, 0.7), (0.5, 0.85))[number // 3 % 3]
    red, green, blue = colorsys.hsv_to_rgb(hue, strength, light)
    return round(255 * red), round(255 * green), round(255 * blue)


def fitted(image: Image.Image, side: int = SIDE) -> Image.Image:
    """The image with its longer side so many pixels long."""
    scale = side / max(image.size)
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    return image if size == image.size else image.resize(size, Image.Resampling.BICUBIC)


def instances(image: Image.Image, shapes: Sequence[Shape]) -> Image.Image:
    """The image as a thumbnail with all masks and boxes, the largest below, and names beside the first ``NAMED``."""
    small = fitted(image.convert("RGB"))
    across, down = small.width / image.width, small.height / image.height
    by_size = sorted(shapes, key=lambda shape: -(shape.box[2] - shape.box[0]) * (shape.box[3] - shape.box[1]))
    for shape in by_size:
        if shape.mask is not None:
            veil = Image.fromarray((255 * COVER * shape.mask).astype(np.uint8)).resize(
                small.size, Image.Resampling.BILINEAR
            )
            small.paste(color(shape.number), mask=veil)
    draw = ImageDraw.Draw(small)
    for shape in by_size:
        left, top, right, bottom = shape.box
        box = (left * across, top * down, max(right * across - 1, left * across), max(bottom * down - 1, top * down))
        draw.rectangle(box, outline=color(shape.number), width=2)
    for shape in reversed(shapes[:NAMED]):  # the first name lies on the others
        told = shape.name if shape.score is None else f"{shape.name} {shape.score:.2f}"
        _write(draw, small, shape.box[0] * across, shape.box[1] * down, told, color(shape.number))
    return small


def _write(draw: ImageDraw.ImageDraw, image: Image.Image, left: float, top: float, text: str, ground: Color) -> None:
    """A text on a ground of a color, above a place where there is room, inside the picture."""
    font = ImageFont.load_default(TEXT)
    width, height = draw.textlength(text, font=font) + 4, TEXT + 3
    x = max(0.0, min(left, image.width - width))
    y = top - height if top >= height else max(0.0, min(top, image.height - height))
    draw.rectangle((x, y, x + width - 1, y + height - 1), fill=ground)
    bright = 0.299 * ground[0] + 0.587 * ground[1] + 0.114 * ground[2] > 140
    draw.text((x + 2, y), text, fill=(0, 0, 0) if bright else (255, 255, 255), font=font)


def label_map(labels: np.ndarray) -> Image.Image:
    """Classes (H, W) as a thumbnail in their colors; ``UNLABELED`` where the number is 255 or none of uint8."""
    classes = Image.fromarray(np.where((labels < 0) | (labels > 255), 255, labels).astype(np.uint8), "L")
    scale = SIDE / max(classes.size)
    size = max(1, round(classes.width * scale)), max(1, round(classes.height * scale))
    small = classes.resize(size, Image.Resampling.NEAREST)
    small.putpalette([value for number in range(255) for value in color(number)] + list(UNLABELED))
    return small


def framed(images: Sequence[Image.Image], right: Sequence[bool], across: int = 2, width: int = 4) -> Image.Image:
    """Images in lines of ``across`` squares, each with a border that says whether it is right."""
    side = SIDE // across
    sheet = Image.new("RGB", (side * across, side * -(-len(images) // across)), (255, 255, 255))
    for place, (image, good) in enumerate(zip(images, right, strict=True)):
        tile = Image.new("RGB", (side, side), RIGHT if good else WRONG)
        inner = side - 2 * width
        tile.paste(square(image, inner), (width, width))
        sheet.paste(tile, (side * (place % across), side * (place // across)))
    return sheet


def square(image: Image.Image, side: int = SIDE) -> Image.Image:
    """The middle of an image as a square of so many pixels."""
    edge = min(image.size)
    left, top = (image.width - edge) // 2, (image.height - edge) // 2
    return image.convert("RGB").resize((side, side), Image.Resampling.BICUBIC, (left, top, left + edge, top + edge))


def cells(colors: np.ndarray) -> Image.Image:
    """A grid of colors (h, w, 3) uint8 as a thumbnail of plain cells."""
    scale = max(1, SIDE // max(colors.shape[:2]))
    return Image.fromarray(colors).resize((colors.shape[1] * scale, colors.shape[0] * scale), Image.Resampling.NEAREST)
