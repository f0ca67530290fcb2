"""Labelled sets besides ImageNet: a person's own, described in a TOML file, and published ones that are ready by name.

[animals]                       # the set's name, and that of its columns
name = "My animals"             # what the table calls it (default: animals)
train = "animals/train"         # a folder of class folders, a list or webdataset shards, from this file's folder on
val = "animals/val.csv"
task = ["knn", "linear"]        # also few_shot, finetune
classes = ["cat", "dog"]        # their order (default: sorted; they are then train's)
metric = "accuracy"             # or mean_per_class, or map: several labels an image

[cifar10]                       # ready by name (``evaluate.data.published_sets``): nothing else is needed
"""

import hashlib
import json
import sys
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from evaluate.data import imagenet, layouts, sources
from evaluate.data.identity import DataIdentities, fingerprint
from evaluate.data.imagenet import NONE, Identities, ImageSet
from evaluate.data.published_sets import READY, Ready
from evaluate.data.sources import Item
from evaluate.runtime.env import Env
from evaluate.runtime.errors import Skip, UserError
from evaluate.runtime.settings import Settings, from_json

Task = Literal["knn", "linear", "few_shot", "finetune"]
Metric = Literal["accuracy", "mean_per_class", "map"]
COLUMN_METRICS = {"accuracy": "top1", "mean_per_class": "mean_per_class", "map": "map"}  # in a record
OF_SEVERAL: tuple[Task, ...] = ("knn", "linear")  # the tasks that take several labels an image
LONGEST = 40  # letters of a name


@dataclass(frozen=True)
class Entry(Settings):
    """What a TOML file may say of a set."""

    name: str = ""
    """What the table calls it."""
    train: str = ""
    """A folder of class folders, a list or webdataset shards."""
    val: str = ""
    task: tuple[Task, ...] = ("knn", "linear")
    """What is measured, each in a column of its own."""
    classes: tuple[str, ...] = ()
    """The classes in their order; none: the sorted labels of train."""
    metric: Metric | None = None
    """What the columns show; none: the published one, or accuracy."""


@dataclass(frozen=True)
class LabelledSet:
    """One set."""

    name: str
    """Part of its columns' names in files and options."""
    title: str
    """In the table."""
    source: str
    """The words that name it on a command line."""
    tasks: tuple[Task, ...]
    metric: Metric
    classes: tuple[str, ...] = ()
    train: Path = Path()
    val: Path = Path()
    root: Path = Path()
    """The data root, below which a ready one lies."""
    ready: Ready | None = None

    def identities(self, known: DataIdentities) -> dict[str, str]:
        """The identities of what is read, by part, and of what is said of it.

        Raises UserError for a list or a shard that cannot be read.
        """
        said = hashlib.sha256(json.dumps([self.classes, self.metric]).encode()).hexdigest()[:16]
        paths = {f"sets/{self.name}/train": self.train, f"sets/{self.name}/val": self.val}
        found = {part: known[part] for part in self.ready.parts} if self.ready else known.of_sources(paths)
        return {**found, f"sets/{self.name}": said}

    def require(self) -> None:
        """Raises Skip where a ready set is absent, and UserError where the paths of a person's own lead nowhere."""
        for path in () if self.ready else (self.train, self.val):
            sources.require(path)
        missing = [part for part in (self.ready.parts if self.ready else ()) if not (self.root / part).exists()]
        if missing:
            raise Skip(f"{self.title} is not under {self.root}: {missing[0]} is missing; {READY[self.name].origin}")

    def count(self, split: str) -> int:
        """The number of images of "train" or "val": the published one, or what lies there."""
        if self.ready:
            return self.ready.train if split == "train" else self.ready.val
        return sources.count(self.train if split == "train" else self.val)

    def read(self, limit: int | None = None, identities: Identities = NONE) -> tuple[ImageSet, ImageSet]:
        """Train and val, each in the order of class and path.

        Raises UserError for a label that is no class, a split without an image, or a source that cannot be read.
        """
        self.require()
        if self.ready:
            train, val = self.ready.read(self.root)
        else:
            train, val = sources.read(self.train), sources.read(self.val)
        classes = self.classes or _sorted({label for item in train for label in item.labels})
        known = fingerprint(identities) if identities else ""
        first = _image_set(f"{self.name}_train", train, classes, self.metric == "map", limit, known)
        return first, _image_set(f"{self.name}_val", val, classes, self.metric == "map", limit, known)


def train_and_val(env: Env) -> tuple[ImageSet, ImageSet]:
    """What a task trains on and is tested on, as far as ``env.limit`` lets it be read: of the set in ``env``, else
    ImageNet's.
    """
    if env.images is not None:
        train, val = env.images.read(env.limit, env.identities)
        said = "" if env.images.ready else in_both(train, val)
        if said:
            print(f"{env.images.name}: {said}", file=sys.stderr)
            env.report(protocol={"in_both": said})
        return train, val
    return (
        imagenet.train_set(env.data_root, env.limit, env.identities),
        imagenet.val_set(env.data_root, env.limit, env.identities),
    )


def root(given: Path | None, texts: Sequence[str]) -> Path:
    """The data root: the one given, or the folder of the first TOML file, below which its ready sets then lie.

    Raises UserError where there is neither, or no data set in what is given.
    """
    if given:
        return layouts.root(given)
    files = [Path(file) for file, _ in map(_in_parts, texts) if file.endswith(".toml")]
    if not files:
        raise UserError(f"{texts[0] if texts else 'it'} lies below the data root; give --data-root")
    return files[0].absolute().parent


def choose(texts: Sequence[str], data_root: Path | None) -> tuple[LabelledSet, ...]:
    """The sets that a command line names: a TOML file (all that it has), FILE.toml:NAME, or the name of a ready one.

    Raises UserError for what names nothing, and for two sets of one name.
    """
    found: list[LabelledSet] = []
    for text in texts:
        file, only = _in_parts(text)
        if file.endswith(".toml"):
            found += [one for one in _in_file(Path(file), data_root) if only in ("", one.name)]
            if only and only not in [one.name for one in found]:
                raise UserError(f"{file} has no set [{only}]")
        else:
            found.append(_made(text, Entry(), Path(), text, data_root))
    for what in ("name", "title"):
        names = [getattr(one, what) for one in found]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice:
            raise UserError(f"two sets are called {twice!r}; give each its own name")
    return tuple(found)


def in_both(train: ImageSet, val: ImageSet) -> str:
    """A sentence on the images of val that are in train too, byte for byte under the same name; "" for none."""

    def about(images: ImageSet) -> dict[tuple[str, int], imagenet.File]:
        sizes = (file.stat().st_size if isinstance(file, Path) else file.size for file in images.files)
        return {(file.name, size): file for file, size in zip(images.files, sizes, strict=True)}

    def content(file: imagenet.File) -> bytes:
        return file.read_bytes() if isinstance(file, Path) else file.read()

    own, others = about(val), about(train)
    found = sorted(str(own[key]) for key in own.keys() & others.keys() if content(own[key]) == content(others[key]))
    return f"{len(found)} images of val are in train too, for example {found[0]}" if found else ""


def _in_parts(text: str) -> tuple[str, str]:
    """The file, or the name of a ready set, and the set that is meant of a file; "" for all of it."""
    file, _, only = text.rpartition(":") if ".toml:" in text else (text, "", "")
    return file, only


def _in_file(path: Path, data_root: Path | None) -> list[LabelledSet]:
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"the sets of {path} cannot be read ({error}); expected a TOML file") from error
    strange = next((name for name, values in content.items() if not isinstance(values, dict)), None)
    if strange or not content:
        raise UserError(
            f"{path} has {strange or 'nothing'} outside a set; write [NAME], and below it train = …, val = …"
        )
    found = []
    for name, values in content.items():
        if isinstance(values.get("task"), str):
            values = {**values, "task": [values["task"]]}
        try:
            entry = from_json(Entry, values)
            found.append(_made(name, entry, path.absolute().parent, f"{path.absolute()}:{name}", data_root))
        except UserError as error:
            raise UserError(f"{path}, [{name}]: {error}") from error
    return found


def _made(name: str, entry: Entry, folder: Path, source: str, data_root: Path | None) -> LabelledSet:
    """The set that an entry describes. Raises UserError where it describes none."""
    ready = READY.get(name)
    own = bool(entry.train or entry.val)
    if name in layouts.LAYOUTS or not name.replace("_", "").replace("-", "").isalnum() or not name.isascii():
        raise UserError(f"a set cannot be called {name!r}; take letters, digits, - and _, and none of the paper's sets")
    if not ready and not (entry.train and entry.val):
        names = ", ".join(READY)
        raise UserError(f"{name} is no set that is ready by name ({names}), so it needs train and val in a TOML file")
    if own and not (entry.train and entry.val):
        raise UserError("train and val go together")
    if not own and data_root is None:
        raise UserError(f"{name} lies below the data root; give --data-root")
    metric = entry.metric or (ready.metric if ready else "accuracy")
    if metric == "map" and set(entry.task) - set(OF_SEVERAL):
        raise UserError(f"metric map, several labels an image, goes with the tasks {', '.join(OF_SEVERAL)}")
    if len(set(entry.classes)) < len(entry.classes) or len(set(entry.task)) < len(entry.task) or not entry.task:
        raise UserError("task and classes name nothing twice, and there is a task")
    title = entry.name or (ready.title if ready else name)
    if not title.isprintable() or len(title) > LONGEST or title.strip() != title:
        raise UserError(f"name {title!r} is no name of a column: at most {LONGEST} letters that can be printed")
    if not own:
        assert data_root is not None
        return LabelledSet(name, title, source, entry.task, metric, entry.classes, root=data_root, ready=ready)
    train, val = (folder / given for given in (entry.train, entry.val))
    _require_apart(train, val)
    return LabelledSet(name, title, source, entry.task, metric, entry.classes, train, val)


def _require_apart(train: Path, val: Path) -> None:
    """Raises UserError where one path holds the other."""
    first, second = train.resolve(), val.resolve()
    if first == second or first in second.parents or second in first.parents:
        if first == second or sources.kind_of(min(train, val, key=lambda path: len(path.resolve().parts))) == "folder":
            raise UserError(f"train {train} and val {val} overlap; give folders of which none holds the other")


def _sorted(labels: set[str]) -> tuple[str, ...]:
    """By number where all are whole numbers, else by letters."""
    numbers = all(label.isascii() and label.isdigit() for label in labels)
    return tuple(sorted(labels, key=lambda label: (int(label), label) if numbers else (0, label)))


def _image_set(
    name: str, items: Sequence[Item], classes: tuple[str, ...], several: bool, limit: int | None, known: str
) -> ImageSet:
    index = {label: number for number, label in enumerate(classes)}
    numbers = index
    if not all(label.isascii() and label.isdigit() for label in classes):  # where names are numbers, a number is a name
        numbers = {str(number): number for number in range(len(classes))} | index

    def indices(item: Item) -> list[int]:
        strange = next((label for label in item.labels if label not in numbers), None)
        if strange is not None:
            shown = ", ".join(classes[:5]) + (", …" if len(classes) > 5 else "")
            raise UserError(f"{item.file} has the label {strange!r}, which is no class; the classes are {shown}")
        if len(item.labels) != 1 and not several:
            raise UserError(
                f"{item.file} has {len(item.labels)} labels ({', '.join(item.labels)}), but the metric is of one; say "
                "metric = 'map' for several"
            )
        return [numbers[label] for label in item.labels]

    entries = [(indices(item), item) for item in items]
    if not several:
        entries.sort(key=lambda entry: (entry[0], entry[1].name.split("/")))
    asked, scored = len(entries), tuple(sorted({label for own, _ in entries for label in own}))
    if limit is not None and limit < asked:  # evenly spaced, so that every class keeps its share
        entries = [entries[position * asked // limit] for position in range(limit)]
    digest = hashlib.sha256(known.encode())
    for own, item in entries:
        facts = "" if known else imagenet.facts_of(item.file)
        digest.update(f"{item.name}\0{own}{facts}\n".encode(errors="surrogateescape"))
    marked = np.zeros((len(entries), len(classes)), dtype=bool)
    for row, (own, _) in enumerate(entries) if several else ():
        marked[row, own] = True
    return ImageSet(
        name,
        tuple(item.file for _, item in entries),
        np.array([own[0] if own else 0 for own, _ in entries], dtype=np.int64),
        classes,
        digest.hexdigest()[:16],
        asked,
        scored,
        marked if several else None,
    )
