"""The pictures that tasks left in their folders (``pictures/``), as parts of the page, within a bound on its size.

Images and truth that several rows share stand once, with what each row's encoder makes of them below.
"""

import base64
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from markupsafe import Markup

from results import artifacts

KINDS = {  # as the tasks call them, in the page's order: a title, and what a reader must know
    "detections": (
        "what is found",
        "Boxes and masks with a score above 0.3, at most ten, below what is annotated. Evenly spaced in the listing.",
    ),
    "segmentations": ("the class of each pixel", "Below the image its labels. Evenly spaced in the listing."),
    "neighbors": (
        "nearest training images",
        "Of each test image the four nearest, line by line; green: of its class, red: of another. "
        "Evenly spaced in the listing.",
    ),
    "patches": (
        "features of patches",
        "Red, green and blue are the first three principal components over the patches of all these images. "
        "What is alike in one row has like colors; those of two rows do not compare.",
    ),
    "mistakes": (
        "surest mistakes",
        "The test images on which an encoder is wrong and surest of it; each pair of classes once.",
    ),
}
PARTS = {"image": "image", "truth": "annotated"}  # what all encoders are given, and what the page calls it
RESULT = "result"
SUFFIXES = {".jpg": ("jpeg", b"\xff\xd8\xff"), ".png": ("png", b"\x89PNG\r\n")}
NAME = re.compile(r"[a-z]{1,20}-\d{2}\.(jpg|png)")
COLOR = re.compile(r"#[0-9a-f]{6}")
LARGEST_FILE = 64 * 1024  # a thumbnail has a fifth of it
LONGEST = 300  # characters of a caption
BYTES_OF_ROW, BYTES = 1_400_000, 16_000_000  # of the page, for each row and for all


@dataclass(frozen=True)
class Picture:
    """One picture and what is said of it."""

    subject: str
    part: str
    caption: str
    source: Markup
    """As a data URI."""


@dataclass
class Strip:
    """What the page shows of one kind and task."""

    task: str
    title: str
    told: str
    lines: list[tuple[str, list[Picture]]] = field(default_factory=list)
    """What a line shows, or whose it is, and its pictures; those of one subject stand below one another."""
    legend: dict[str, str] = field(default_factory=dict)
    """Names of colors."""
    absent: list[str] = field(default_factory=list)
    """Rows that were measured and have no pictures."""


def strips(rows: Sequence[tuple[str, Mapping[str, Mapping[str, Any]]]], out: Path) -> tuple[list[Strip], str]:
    """The strips of the page, and a sentence where the bound on its size leaves some pictures out.

    Args: rows: the name of a row and its records by task.
    """
    tasks = dict.fromkeys(task for _, entries in rows for task in entries)
    found = [strip for kind in KINDS for task in tasks if (strip := _strip(kind, task, rows, out))]
    limit = min(BYTES, BYTES_OF_ROW * len(rows))
    most = max((len(pictures) for strip in found for _, pictures in strip.lines), default=0)
    kept = next((count for count in range(most, 0, -1) if _bytes(found, count) <= limit), 0)
    if kept == most:
        return found, ""
    for strip in found:
        strip.lines = [(label, pictures[:kept]) for label, pictures in strip.lines if kept]
    told = f"the first {kept} pictures of each line are shown" if kept else "no picture is shown"
    return found, f"So that the page stays small, {told}; all lie in the tasks' folders, in {artifacts.PICTURES}/."


def _bytes(found: Sequence[Strip], count: int) -> int:
    return sum(len(one.source) for strip in found for _, pictures in strip.lines for one in pictures[:count])


def _strip(
    kind: str, task: str, rows: Sequence[tuple[str, Mapping[str, Mapping[str, Any]]]], out: Path
) -> Strip | None:
    """The strip of one kind and task; None where no row has such pictures."""
    strip = Strip(task, *KINDS[kind])
    blocks: dict[tuple[Picture, ...], list[tuple[str, list[Picture]]]] = {}  # rows by what they were all given
    for label, entries in rows:
        pictures, legend = _read(entries[task], kind, out) if task in entries else ([], {})
        if pictures:
            given = tuple(one for one in pictures if one.part in PARTS)
            blocks.setdefault(given, []).append((label, [one for one in pictures if one.part == RESULT]))
            strip.legend |= legend
        elif task in entries and entries[task].get("status") == "ok":
            strip.absent.append(label)
    for given, results in blocks.items():
        lines = [(told, [one for one in given if one.part == part]) for part, told in PARTS.items()]
        strip.lines += [(told, pictures) for told, pictures in lines if pictures] + results
    return strip if blocks else None


def _read(entry: Mapping[str, Any], kind: str, out: Path) -> tuple[list[Picture], dict[str, str]]:
    """The pictures of a kind in a record's folder, and their legend; what is absent or damaged is left out."""
    folder = Path(entry.get("out", out)) / str(entry.get("work", "")) / artifacts.PICTURES
    try:
        index = json.loads(_content(folder / f"{kind}.json")) if entry.get("work") else {}
        listed = [one for one in index["pictures"] if isinstance(one, dict)][: artifacts.MOST_PICTURES]
        legend = [pair for pair in index.get("legend", []) if isinstance(pair, list) and len(pair) == 2]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return [], {}
    colors = {str(name)[:LONGEST]: str(color) for name, color in legend if COLOR.fullmatch(str(color))}
    return [picture for one in listed if (picture := _picture(folder, one))], colors


def _picture(folder: Path, entry: Mapping[str, Any]) -> Picture | None:
    """One picture of an index; None where there is no such file, or it is no picture by its first bytes."""
    file = str(entry.get("file"))
    if not NAME.fullmatch(file):
        return None
    kind, magic = SUFFIXES[Path(file).suffix]
    try:
        content = _content(folder / file)
    except (OSError, ValueError):
        return None
    if not content.startswith(magic):
        return None
    subject, part, caption = (str(entry.get(name, ""))[:LONGEST] for name in ("subject", "part", "caption"))
    return Picture(subject, part, caption, Markup(f"data:image/{kind};base64,{base64.b64encode(content).decode()}"))


def _content(path: Path) -> bytes:
    """Raises OSError or ValueError for a file that is absent, or larger than one of ours."""
    if not path.is_file() or path.stat().st_size > LARGEST_FILE:
        raise ValueError(f"{path} is absent or too large")
    return path.read_bytes()
