"""Images as a person keeps them: folders of classes, lists (CSV, TSV) or webdataset's shards.

The tasks and pretraining read through this one reader.

A folder names each image's class by the folder right below it. A list has the image's path, from the list's folder on,
and its labels; its first line may name the columns. A shard is a tar in which the files of one name are one sample
(``0001.jpg`` with ``0001.cls``, ``0001.json`` or ``0001.txt``); it is read in place. The order of what is read goes by
the images' paths alone, so a folder, a list of it and its shards give the same images in the same order.
"""

import csv
import json
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Literal, NamedTuple

from evaluate.data import archives, listing
from evaluate.data.archives import File
from evaluate.runtime.errors import UserError

EXTENSIONS = {".jpeg", ".jpg", ".png", ".bmp", ".webp"}
TABLES = (".csv", ".tsv")
SEPARATORS = "\t,;"  # a table has the first of them that its first line holds
BETWEEN_LABELS = ";"  # where an image has several
IMAGE_COLUMNS = ("filepath", "path", "image", "image_path", "file", "file_name", "filename")
LABEL_COLUMNS = ("label", "labels", "class", "classes", "class_name", "category", "cls", "target")
LABEL_FILES = (".cls", ".json", ".txt")  # of a sample in a shard: the first that is there
Kind = Literal["folder", "list", "shards"]


class Item(NamedTuple):
    """One image: its file, its path below the source, and its labels in words (none: it has no label)."""

    file: File
    name: str
    labels: tuple[str, ...]


class Table(NamedTuple):
    """The cells of a table by line."""

    path: Path
    header: tuple[str, ...]
    """The first line in lower case, whether it names columns or not."""
    first: tuple[str, ...]
    """The first line as it is written."""
    rows: list[tuple[int, list[str]]]
    """Line number and cells, the first line among them."""


def kind_of(source: Path) -> Kind:
    """What a path is. Raises UserError for one that is not there, or that is none of the three."""
    if source.suffix.lower() in TABLES:
        return "list"
    if source.suffix == ".tar" or "*" in source.name:
        return "shards"
    if not source.is_dir():
        raise UserError(
            f"{source} is not there, or is none of these: a folder of class folders, a list ({', '.join(TABLES)}), a "
            "webdataset shard (.tar), a folder or a pattern (*) of shards"
        )
    entries = listing.entries(source)
    shards = any(entry.name.endswith(".tar") for entry in entries) and not any(map(listing.is_folder, entries))
    return "shards" if shards else "folder"


def require(source: Path) -> None:
    """Raises UserError for a source that is not there."""
    kind = kind_of(source)
    if kind == "shards":
        find_shards(source)
    elif not source.exists():
        raise UserError(f"the {kind} {source} is not there; correct its path")


def read(source: Path, labelled: bool = True) -> list[Item]:
    """The images of a source, by path.

    Args:
        labelled: whether each image must have a label.

    Raises:
        UserError: naming a path, line, file or sample that is not as it should be, or a source without an image.
    """
    readers = {"folder": _read_folder, "list": _read_list, "shards": _read_shards}
    items = readers[kind_of(source)](source, labelled)
    if not items:
        raise UserError(f"{source} holds no image; expected files ending in {', '.join(sorted(EXTENSIONS))}")
    return sorted(items, key=lambda item: item.name.split("/"))


def files_behind(source: Path) -> tuple[Path, list[str]]:
    """The folder and the paths below it of what is read of a list or of shards; no paths for a folder, of which all is
    read.
    """
    match kind_of(source):
        case "list":
            return source.parent, [source.name, *(item.name for item in _read_list(source, labelled=False))]
        case "shards":
            return find_shards(source)[0].parent, [shard.name for shard in find_shards(source)]
    return source, []


def count(source: Path) -> int:
    """How many images a source has, without looking at their labels."""
    match kind_of(source):
        case "list":
            return len(_read_list(source, labelled=False))
        case "shards":
            return sum(1 for shard in find_shards(source) for _ in samples(shard))
    return sum(is_image(name) for name, _ in listing.walk(source, lambda entry: None))


def is_image(name: str) -> bool:
    """Whether a file is an image by its name."""
    return PurePosixPath(name).suffix.lower() in EXTENSIONS


# folders


def _read_folder(folder: Path, labelled: bool) -> list[Item]:
    names = [name for name, _ in listing.walk(folder, lambda entry: None)]
    strange = next((name for name in sorted(names) if not is_image(name)), None)
    if strange and labelled:
        raise UserError(
            f"{folder / strange} is no image by its name, which ends in none of {', '.join(sorted(EXTENSIONS))}; move "
            "it away"
        )
    outside = next((name for name in sorted(names) if "/" not in name), None)
    if outside and labelled:
        raise UserError(f"{folder / outside} lies in no class folder; {folder} should hold one folder for each class")
    found = {name.partition("/")[0] for name in names}
    empty = [entry.name for entry in listing.entries(folder) if listing.is_folder(entry) and entry.name not in found]
    if empty and labelled:
        raise UserError(f"the class folder {folder / empty[0]} is empty; fill it or remove it")
    return [Item(folder / name, name, (name.partition("/")[0],)) for name in names if is_image(name)]


# lists


def read_table(path: Path) -> Table:
    """A table with the separator of its first line. Raises UserError for one that cannot be read, and for a line with
    another number of cells than the first.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            first = file.readline()
            file.seek(0)
            separator = next((mark for mark in SEPARATORS if mark in first), ",")
            # texts of a .tsv hold quotes as they are; in the others a quoted one may hold a separator
            quoting = csv.QUOTE_NONE if separator == "\t" else csv.QUOTE_MINIMAL
            reader = csv.reader(file, delimiter=separator, quoting=quoting)  # type: ignore[arg-type]  # it is one of them
            rows = [(reader.line_num, row) for row in reader if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"the table {path} cannot be read ({error}); expected paths of images, as UTF-8") from error
    columns = len(rows[0][1]) if rows else 0
    for line, row in rows:
        if len(row) != columns:
            raise UserError(
                f"{path}, line {line}, has {len(row)} cells where {columns} are expected, separated as the first line "
                f"is ({separator!r}); a text that holds the separator needs quotes"
            )
    first_row = tuple(rows[0][1]) if rows else ()
    return Table(path, tuple(cell.strip().lower() for cell in first_row), first_row, rows)


def column(table: Table, known: tuple[str, ...]) -> int | None:
    """Where the column of one of the known names stands, if the first line is one of names."""
    return next((table.header.index(name) for name in known if name in table.header), None)


def _read_list(path: Path, labelled: bool) -> list[Item]:
    table = read_table(path)
    place = column(table, IMAGE_COLUMNS)
    rows = table.rows if place is None else table.rows[1:]
    label = None if place is None else column(table, LABEL_COLUMNS)
    image = place or 0
    others = [index for index in range(len(table.header)) if index != image] if label is None else [label]
    if labelled and not others:
        raise UserError(f"{path} has no labels; expected a column of labels beside the images' paths")
    # columns of 0 and 1 whose names are the labels
    marked = place is not None and len(others) > 1 and all(row[at] in ("0", "1") for _, row in rows for at in others)
    items = []
    for line, row in rows:
        name = PurePosixPath(row[image].strip()).as_posix()
        if not is_image(name) or ".." in PurePosixPath(name).parts:
            raise UserError(
                f"{path}, line {line}: {row[image]!r} is no path of an image; expected one from {path.parent} on, "
                f"without .., that ends in one of {', '.join(sorted(EXTENSIONS))}"
            )
        if marked:
            labels = tuple(table.first[at].strip() for at in others if row[at] == "1")
        else:
            labels = tuple(text for at in others for text in _split(row[at]))
        if labelled and not labels and not marked:
            raise UserError(f"{path}, line {line}: {name} has no label")
        items.append(Item(path.parent / name, name, labels))
    twice = next((name for name, times in Counter(item.name for item in items).items() if times > 1), None)
    if twice and labelled:
        raise UserError(
            f"{path} lists {twice} twice; several labels of an image stand in one line, as a{BETWEEN_LABELS}b"
        )
    return items


def _split(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(BETWEEN_LABELS) if part.strip())


# shards


def find_shards(source: Path) -> list[Path]:
    """The shards of a folder or of a pattern, or the one that is given. Raises UserError where there is none."""
    if source.is_dir():
        shards = sorted(source.glob("*.tar"))
    else:
        shards = sorted(source.parent.glob(source.name)) if "*" in source.name else [source] * (source.suffix == ".tar")
    if not shards or not shards[0].is_file():
        raise UserError(f"{source} holds no webdataset shard (.tar)")
    return shards


def samples(shard: Path) -> Iterator[tuple[archives.Member, dict[str, archives.Member]]]:
    """The image of each sample of a shard and all its files by extension, in the order of their names.

    Raises UserError for a damaged archive.
    """
    for files in archives.folders(shard).values():
        by_name: dict[str, dict[str, archives.Member]] = defaultdict(dict)
        for member in files:
            name, _, extension = member.name.partition(".")  # webdataset's key ends at the first dot
            by_name[name]["." + extension.lower()] = member
        for parts in by_name.values():
            image = next((parts[extension] for extension in sorted(EXTENSIONS & parts.keys())), None)
            if image is not None:
                yield image, parts


def _read_shards(source: Path, labelled: bool) -> list[Item]:
    items = []
    for shard in find_shards(source):
        for image, parts in samples(shard):
            kinds = LABEL_FILES if labelled else LABEL_FILES[:1]  # a .txt may as well hold a caption
            known = next((parts[extension] for extension in kinds if extension in parts), None)
            labels = _labels_in(known) if known else ()
            if labelled and not labels:
                raise UserError(
                    f"{image} has no label; expected {image.name.partition('.')[0]}.cls, .json (with label) or .txt "
                    "beside it"
                )
            items.append(Item(image, image.path.removeprefix("./"), labels))
    return items


def _labels_in(member: archives.Member) -> tuple[str, ...]:
    """The labels in a sample's file. Raises UserError for one that cannot be read."""
    try:
        text = member.read().decode().strip()
        if not member.name.lower().endswith(".json"):
            return _split(text)
        content = json.loads(text)
    except (OSError, ValueError) as error:
        raise UserError(f"the label {member} cannot be read ({error}); make the shard again") from error
    found = content.get(next(filter(content.__contains__, LABEL_COLUMNS), "")) if isinstance(content, dict) else None
    return tuple(map(str, found)) if isinstance(found, list) else () if found is None else _split(str(found))
