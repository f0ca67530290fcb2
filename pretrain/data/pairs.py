"""What a method trains on: images of a folder, of a list or of shards (``evaluate.data.sources``), with captions where
it reads such.

A table of captions (``.csv``, ``.tsv``) has the image's path, from the table's folder on, and the caption in the
columns that its first line names (``filepath`` and ``title`` as open_clip has them, or other usual names), else in the
first two. A shard is a tar in which the files of one name are a pair (``0001.jpg`` and ``0001.txt``); it is read in
place.
"""

from pathlib import Path, PurePosixPath

from evaluate.data import archives, sources
from evaluate.runtime.errors import UserError
from pretrain.config import PretrainConfig
from pretrain.data.images import DataError, ImageFolder, Images

CAPTION_COLUMNS = ("title", "caption", "text")


def open_images(data: Path, out: Path, config: PretrainConfig) -> Images:
    """What a method trains on. Raises DataError, UserError or OSError."""
    if config.needs_captions:
        return Pairs(data)
    if "*" in data.name or data.exists() and sources.kind_of(data) != "folder":
        return ListedImages(data)
    return ImageFolder(data, leave_out=out)


class ListedImages(Images):
    """The images of a list or of shards, by path: those of a folder in the folder's order. A class is an image's label,
    or the folder that it lies in where there are none.
    """

    def __init__(self, source: Path):
        items = sources.read(source, labelled=False)
        classes = [sources.BETWEEN_LABELS.join(item.labels) or item.name.rpartition("/")[0] for item in items]
        super().__init__([item.file for item in items], [item.name for item in items], classes)


class Pairs(Images):
    """The images of a table or of shards, each with its caption. A class is the folder that an image lies in."""

    def __init__(self, source: Path):
        if source.suffix.lower() in sources.TABLES:
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
    """The path and the caption of each row. Raises UserError naming the line that is no row of the table."""
    table = sources.read_table(path)
    if len(table.header) < 2 and table.rows:
        raise DataError(f"{path}, line {table.rows[0][0]}, has 1 cells where 2 are expected: a path and a caption")
    image, caption = (sources.column(table, known) for known in (sources.IMAGE_COLUMNS, CAPTION_COLUMNS))
    if image is None or caption is None:
        return [(row[0], row[1]) for _, row in table.rows]
    return [(row[image], row[caption]) for _, row in table.rows[1:]]


def find_shards(source: Path) -> list[Path]:
    """The shards of a folder by name, or the one that is given. Raises DataError where there is none."""
    try:
        return sources.find_shards(source)
    except UserError:
        raise DataError(
            f"{source} holds no captions; expected a table ({', '.join(sources.TABLES)}) of images and captions, or a "
            "folder of webdataset shards (.tar)"
        ) from None


def read_shard(shard: Path) -> list[tuple[archives.Member, archives.Member]]:
    """The image and the caption of each pair, in the order of their names.

    Raises:
        DataError: an image without caption. UserError: a damaged archive.
    """
    pairs = []
    for image, parts in sources.samples(shard):
        if ".txt" not in parts:
            raise DataError(f"{image} has no caption; expected {PurePosixPath(image.path).stem}.txt beside it")
        pairs.append((image, parts[".txt"]))
    return pairs
