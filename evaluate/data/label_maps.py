"""Label maps: PNGs with one label a pixel, which stands in the file as it is."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from evaluate.runtime.errors import UserError

GREY, PALETTE = 0, 3  # kinds of PNG
COLOURS = {2: "red, green and blue", 3: "a palette", 4: "grey and transparency", 6: "colours and transparency"}


@dataclass(frozen=True)
class Form:
    """How a publisher writes labels."""

    classes: int
    first: int = 1
    """The label of the first class; the others follow it."""
    palette: bool = False
    """Whether maps may have a palette, whose indices are the labels."""

    @property
    def none(self) -> int:
        """The label of what is no class, which is never scored: the byte before the first class."""
        return (self.first - 1) % 256


def label_size(path: Path, form: Form) -> tuple[int, int]:
    """(width, height) of a label map by its header.

    Raises:
        UserError: no PNG, not one channel, or a depth at which labels do not stand as they are.
    """
    try:
        with path.open("rb") as file:
            header = file.read(26)
    except OSError as error:
        raise UserError(f"the label map {path} cannot be read ({error.strerror}); restore it") from error
    if len(header) < 26 or header[:8] != b"\x89PNG\r\n\x1a\n":
        raise UserError(f"the label map {path} cannot be read as one channel of labels: it is no PNG; restore it")
    depth, colour = header[24:26]
    if colour != GREY and not (form.palette and colour == PALETTE):
        raise UserError(
            f"the label map {path} cannot be read as one channel of labels: it holds {COLOURS.get(colour, 'colours')}; "
            f"{_remedy(form, colour)}"
        )
    if depth not in (8, 16):
        raise UserError(
            f"the label map {path} has {depth} bits a pixel instead of 8; save it as a grey PNG of bytes, labels as "
            f"they are"
        )
    return int.from_bytes(header[16:20], "big"), int.from_bytes(header[20:24], "big")


def _remedy(form: Form, colour: int) -> str:
    if form.palette:
        return "the published maps have a palette, whose indices are the labels; unpack them again"
    if colour == PALETTE:
        return "save its indices as a grey PNG if they are the labels"
    return "the full ADE20K's _seg files have such colours; take ADEChallengeData2016's maps of 150 classes"


def read_labels(path: Path, form: Form) -> np.ndarray:
    """(height, width) uint8, the labels as they stand in the file.

    Raises:
        UserError: an unreadable file, more than one channel, or a label beyond the classes.
    """
    label_size(path, form)
    try:
        with Image.open(path) as file:
            labels = np.asarray(file)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"the label map {path} cannot be read ({error}); restore it") from error
    last = form.first + form.classes - 1
    if labels.max() > last:
        beyond = labels[(labels > last) & (labels != form.none)]
        if beyond.size:
            raise UserError(_beyond(path, form, int(beyond.max())))
    return labels.astype(np.uint8)


def _beyond(path: Path, form: Form, label: int) -> str:
    moved = label == 255 and form.none == 0
    guess = (
        "the labels seem to be moved already (classes from 0, 255 for none), while 0 should be none and the classes "
        "from 1; "
        if moved
        else ""
    )
    return f"the label map {path} holds label {label}, but there are {form.classes} classes; {guess}restore it"
