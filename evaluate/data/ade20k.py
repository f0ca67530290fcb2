"""ADE20k in its own layout (ADEChallengeData2016): pairs of picture and label map, and the names of the classes."""

from pathlib import Path

from evaluate.data import listing
from evaluate.runtime.errors import UserError

CLASSES = 150
MOST_CLASSES = 254  # a label takes a byte, of which 0 and 255 are no classes


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
