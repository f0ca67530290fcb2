"""ADE20k in its own layout (ADEChallengeData2016): pairs of picture and label map, the names of the classes, and the
gate that looks at them before a training.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from evaluate.data import listing
from evaluate.data.pictures import THREADS, picture_sizes
from evaluate.runtime.errors import UserError
from evaluate.runtime.progress import track

CLASSES = 150
MOST_CLASSES = 254  # a label takes a byte, of which 0 and 255 are no classes
TRAIN_SAMPLES = 100  # training label maps that the gate reads in full; of the others it reads the headers
SPLITS = ("training", "validation")
COLOURS = {2: "red, green and blue", 3: "a palette", 4: "grey and transparency", 6: "colours and transparency"}


def class_names(root: Path) -> tuple[str, ...]:
    """The names in ``objectInfo150.txt``, which the publisher's archive has beside its folders; 150 numbers where it is
    missing.

    Raises:
        UserError: a file of another form.
    """
    path = root / "objectInfo150.txt"
    if not path.is_file():
        return tuple(str(number) for number in range(1, CLASSES + 1))
    try:
        rows = [line.split("\t") for line in path.read_text().splitlines()[1:] if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read ({error}); download it again") from error
    if not rows or [row[0].strip() for row in rows] != [str(number) for number in range(1, len(rows) + 1)]:
        raise UserError(f"{path} should have a heading and then a numbered line for each class; download it again")
    if len(rows) > MOST_CLASSES:
        raise UserError(f"{path} lists {len(rows)} classes, but a label map has room for {MOST_CLASSES}")
    return tuple(row[-1].strip() for row in rows)


def paired_files(root: Path, split: str) -> tuple[dict[str, Path], dict[str, Path]]:
    """The pictures and the label maps of one split by name.

    Raises UserError for a folder that cannot be read, and where one is without the other, or there are none.
    """
    pictures, labels = (
        {
            Path(entry.name).stem: Path(entry.path)
            for entry in listing.entries(root / kind / split)
            if entry.name.endswith(end)
        }
        for kind, end in (("images", ".jpg"), ("annotations", ".png"))
    )
    odd = sorted(set(pictures) ^ set(labels))
    if odd or not pictures:
        raise UserError(
            f"{root}: images/{split} and annotations/{split} must hold the same names; "
            f"{odd[0] if odd else 'any picture'} is not in both"
        )
    return pictures, labels


def check_pairs(root: Path, limit: int | None = None) -> dict[str, list[Path]]:
    """The gate: the pictures of each split, sorted by name, after their label maps were looked at.

    All validation label maps are read, and a sample of the training ones; of all others the headers are: size, one
    channel, depth.

    Args:
        root: the folder ``ade20k``.
        limit: at most so many pictures of a split, as the task reads them.

    Raises:
        UserError: naming the file.
    """
    classes, found = len(class_names(root)), {}
    for split in SPLITS:
        pictures, labels = paired_files(root, split)
        maps = [labels[name] for name in sorted(pictures)][:limit]
        found[split] = [pictures[name] for name in sorted(pictures)]
        with ThreadPoolExecutor(THREADS) as pool:
            sizes = list(pool.map(label_size, maps))
        for path, own, expected in zip(maps, sizes, picture_sizes(found[split][:limit], upright=False), strict=True):
            if own != expected:
                raise UserError(f"the label map {path} is {own} pixels, but its image is {expected}; restore it")
        step = 1 if split == "validation" else max(1, len(maps) // TRAIN_SAMPLES)
        if not _any_label(maps[::step], classes) and split == "validation":
            raise UserError(
                f"the {len(maps)} label maps read from {root / 'annotations' / split} have no labeled pixel; "
                f"restore them"
            )
    return found


def _any_label(maps: Sequence[Path], classes: int) -> bool:
    with ThreadPoolExecutor(THREADS) as pool:
        read = pool.map(lambda path: bool(read_labels(path, classes).any()), maps)
        return any(list(track(read, "label maps", len(maps))))


def label_size(path: Path) -> tuple[int, int]:
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
    if colour:
        remedy = (
            "save its indices as a grey PNG if they are the labels"
            if colour == 3
            else "the full ADE20K's _seg files have such colours; take ADEChallengeData2016's maps of 150 classes"
        )
        raise UserError(
            f"the label map {path} cannot be read as one channel of labels: it holds {COLOURS.get(colour, 'colours')}; "
            f"{remedy}"
        )
    if depth not in (8, 16):
        raise UserError(
            f"the label map {path} has {depth} bits a pixel instead of 8; save it as a grey PNG of bytes, labels as "
            f"they are"
        )
    return int.from_bytes(header[16:20], "big"), int.from_bytes(header[20:24], "big")


def read_labels(path: Path, classes: int) -> np.ndarray:
    """(height, width) uint8: 0 is "other", then the classes from 1 on.

    Raises:
        UserError: an unreadable file, more than one channel, or a label beyond the classes.
    """
    label_size(path)
    try:
        with Image.open(path) as file:
            labels = np.asarray(file)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"the label map {path} cannot be read ({error}); restore it") from error
    if labels.max() > classes:
        guess = (
            "the labels seem to be moved already (classes from 0, 255 for none), while 0 should be none and the "
            "classes from 1; "
            if labels.max() == 255
            else ""
        )
        raise UserError(
            f"the label map {path} holds label {labels.max()}, but there are {classes} classes; {guess}restore it"
        )
    return labels.astype(np.uint8)
