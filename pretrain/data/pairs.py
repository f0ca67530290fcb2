"""Images with captions: a table of paths and texts, or webdataset's shards.

A table (``.csv``, ``.tsv``) has the image's path, from the table's folder on, and the caption in the columns that its
first line names (``filepath`` and ``title`` as open_clip has them, or other usual names), else in the first two. A
shard is a tar in which the files of one name are a pair (``0001.jpg`` and ``0001.txt``); it is read in place.
"""

import csv
from collections import defaultdict
from pathlib import Path, PurePosixPath

from evaluate.data import archives
from pretrain.config import PretrainConfig
from pretrain.data.images import EXTENSIONS, DataError, ImageFolder, Images

TABLES = (".csv", ".tsv")
SEPARATORS = "\t,;"  # a table has the first of them that its first line holds
IMAGE_COLUMNS = ("filepath", "path", "image", "image_path", "file", "file_name", "filename")
CAPTION_COLUMNS = ("title", "caption", "text")


def open_images(data: Path, out: Path, config: PretrainConfig) -> Images:
    """What a method trains on: the images of a folder, or pairs with captions. Raises DataError, UserError or
    OSError."""
    return Pairs(data) if config.needs_captions else ImageFolder(data, leave_out=out)


class Pairs(Images):
    """The images of a table or of shards, each with its caption. A class is the folder that an image lies in."""

    def __init__(self, source: Path):
        if source.suffix.lower() in TABLES:
            rows = read_table(source)
            self.texts: list[str | archives.Member] = [caption for _, caption in rows]
            paths: list[archives.File] = [source.parent / name for name, _ in rows]
            names = [f"{name}\0{caption}" for name, caption in rows]
            classes = [name.rpartition("/")[0] for name, _ in rows]
        else:
            members = [pair for shard in find_shards(source) for pair in read_shard(shard)]
            self.texts, paths = [text for _, text in members], [image for image, _ in members]
            names = [f"{image.archive.name}/{image.path}" for image, _ in members]
            classes = [image.path.rpartition("/")[0] for image, _ in members]
        if not paths:
            raise DataError(f"{source} holds no pair of an image and a caption")
        super().__init__(paths, names, classes)

    def caption(self, index: int) -> str:
        text = self.texts[index]
        if isinstance(text, str):
            return text
        try:
            return text.read().decode().strip()
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"the caption {text} cannot be read ({error}); replace or remove it") from error


def read_table(path: Path) -> list[tuple[str, str]]:
    """The path and the caption of each row. Raises DataError naming the line that is no row of the table."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            first = file.readline()
            file.seek(0)
            separator = next((mark for mark in SEPARATORS if mark in first), ",")
            # captions of a .tsv hold quotes as they are; in the others a quoted one may hold a separator
            quoting = csv.QUOTE_NONE if separator == "\t" else csv.QUOTE_MINIMAL
            reader = csv.reader(file, delimiter=separator, quoting=quoting)  # type: ignore[arg-type]  # it is one of them
            rows = [(reader.line_num, row) for row in reader if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"the table {path} cannot be read ({error}); expected images and captions as UTF-8") from error
    columns = len(rows[0][1]) if rows else 0
    for line, row in rows:
        if len(row) != columns or columns < 2:
            raise DataError(
                f"{path}, line {line}, has {len(row)} cells where {max(columns, 2)} are expected, separated as the "
                f"first line is ({separator!r}); a caption that holds the separator needs quotes"
            )
    image, caption = _columns([cell.strip().lower() for cell in rows[0][1]] if rows else [])
    named = image is not None and caption is not None
    return [(row[image or 0], row[1 if caption is None else caption]) for _, row in rows[named:]]


def _columns(header: list[str]) -> tuple[int | None, int | None]:
    """Where the image and the caption stand, if this is a line of names."""
    places = [
        next((header.index(name) for name in known if name in header), None)
        for known in (IMAGE_COLUMNS, CAPTION_COLUMNS)
    ]
    return (places[0], places[1]) if None not in places else (None, None)


def find_shards(source: Path) -> list[Path]:
    """The shards of a folder by name, or the one that is given. Raises DataError where there is none."""
    shards = sorted(source.glob("*.tar")) if source.is_dir() else [source] * (source.suffix == ".tar")
    if not shards or not shards[0].is_file():
        raise DataError(
            f"{source} holds no captions; expected a table ({', '.join(TABLES)}) of images and captions, or a folder "
            "of webdataset shards (.tar)"
        )
    return shards


def read_shard(shard: Path) -> list[tuple[archives.Member, archives.Member]]:
    """The image and the caption of each pair, in the order of their names.

    Raises:
        DataError: an image without caption. UserError: a damaged archive.
    """
    pairs = []
    for files in archives.folders(shard).values():
        by_name: dict[str, dict[str, archives.Member]] = defaultdict(dict)
        for member in files:
            name, _, extension = member.name.partition(".")  # webdataset's key ends at the first dot
            by_name[name]["." + extension.lower()] = member
        for parts in by_name.values():
            image = next((parts[extension] for extension in sorted(EXTENSIONS & parts.keys())), None)
            if image is None:
                continue
            if ".txt" not in parts:
                raise DataError(f"{image} has no caption; expected {PurePosixPath(image.path).stem}.txt beside it")
            pairs.append((image, parts[".txt"]))
    return pairs
