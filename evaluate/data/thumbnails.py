"""Pictures that a task leaves for the report: a few small files, and an index of each kind, in its ``pictures/``.

``<kind>.json`` has ``pictures``, a list of ``file``, ``subject``, ``part`` and ``caption``, and ``legend``, a list of
names with their colors ("#rrggbb"). Pictures of one subject are parts of one column; every row of a table has the same
subjects where the kind draws given images.
"""

import contextlib
import json
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from results import artifacts
from results.atomic import atomic_write

SIDE = 240  # of a picture's longer side, in pixels
QUALITY = 80  # of a JPEG
Color = tuple[int, int, int]


@dataclass(frozen=True)
class Thumbnail:
    """One picture."""

    image: Image.Image
    subject: str
    """What it is of, such as a file's name."""
    part: str
    """What it shows of it: ``image``, ``truth``, or what the encoder makes of it (``result``)."""
    caption: str
    flat: bool = False
    """Of few plain colors: stored as it is (PNG), not as a photograph (JPEG)."""


def spaced(count: int, most: int) -> list[int]:
    """At most so many of ``count`` indices, evenly spaced: the same ones whoever asks."""
    chosen = min(count, most)
    return [(2 * place + 1) * count // (2 * chosen) for place in range(chosen)]


def write(folder: Path, kind: str, pictures: Sequence[Thumbnail], legend: Mapping[str, Color] | None = None) -> None:
    """Writes the pictures of one kind below a task's folder, in the place of older ones.

    Args: legend: what the colors of flat pictures mean.

    Raises ValueError for more or larger pictures than a report takes.
    """
    if len(pictures) > artifacts.MOST_PICTURES or any(max(picture.image.size) > SIDE for picture in pictures):
        raise ValueError(f"at most {artifacts.MOST_PICTURES} pictures of at most {SIDE} px, not {len(pictures)}")
    place = folder / artifacts.PICTURES
    place.mkdir(parents=True, exist_ok=True)
    index = place / f"{kind}.json"
    for old in (index, *place.glob(f"{kind}-*")):
        old.unlink(missing_ok=True)
    entries = []
    for number, picture in enumerate(pictures):
        file = f"{kind}-{number:02}.{'png' if picture.flat else 'jpg'}"
        options = {"optimize": True} if picture.flat else {"quality": QUALITY}
        picture.image.save(place / file, **options)
        entries.append({"file": file, "subject": picture.subject, "part": picture.part, "caption": picture.caption})
    colors = [[name, "#{:02x}{:02x}{:02x}".format(*color)] for name, color in (legend or {}).items()]
    with atomic_write(index) as written:
        written.write_text(json.dumps({"pictures": entries, "legend": colors}, indent=1))


@contextlib.contextmanager
def attempt(what: str) -> Iterator[None]:
    """A failure to draw costs no measurement: the log has its traceback and a sentence, and the task goes on."""
    try:
        yield
    except Exception as error:
        traceback.print_exc()
        print(f"warning: no pictures of {what} ({type(error).__name__}: {error}); the numbers stand", file=sys.stderr)
