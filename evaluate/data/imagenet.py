"""Readers of ImageNet and of its look-alikes: train and val class folders, the 1 % list, IN-A, IN-R, IN-Sketch and IN-C.

Class indices always go by wnid: the class list is the sorted names of ``imagenet/train``, and a folder of any other set counts as
the class it is named after. Nothing is ever dropped silently: a stray file, a class too many or too few and an image that cannot
be read are errors that name what was found.
"""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from evaluate.data import layouts
from evaluate.data.transforms import Transform
from evaluate.errors import UserError

SUFFIXES = (".jpeg", ".jpg", ".png")
OFFICIAL_CLASSES = Path(__file__).with_name("imagenet_classes.json")
FULL_CLASSES = 1000
ONE_PERCENT_CLASSES = {13: 811, 12: 189}  # images a class: number of such classes; 12,811 images
KEPT_BYTES = 256 * 1024**2  # a set that decodes to less than this is decoded once and kept in memory

Draw = tuple[int, int]  # (epoch, index of the image): all that a random transform may depend on, besides the run's seed


@dataclass(frozen=True)
class ImageSet:
    """Files with their class indices; ``asked`` is how many the whole set has (``--limit`` may have left some out)."""

    name: str
    files: tuple[Path, ...]
    labels: np.ndarray  # (n,) int64
    classes: tuple[str, ...]  # wnids; a label is an index into these
    fingerprint: str  # of names and labels, and of the made world's parameters
    asked: int

    def __len__(self) -> int:
        return len(self.files)

    @property
    def present(self) -> np.ndarray:
        """The sorted class indices that occur."""
        return np.unique(self.labels)


def train_set(data_root: Path, limit: int | None = None) -> ImageSet:
    """``imagenet/train/<wnid>/*``, in the order of wnid and file name."""
    folder = data_root / "imagenet/train"
    return _folder_set("train", data_root, folder, class_names(folder), limit)


def val_set(data_root: Path, limit: int | None = None) -> ImageSet:
    """``imagenet/val/<wnid>/*``; raises UserError unless its classes are exactly those of train."""
    classes = class_names(data_root / "imagenet/train")
    found = class_names(data_root / "imagenet/val")
    if found != classes:
        raise UserError(
            f"the class folders of imagenet/val differ from those of imagenet/train: {_difference(found, classes)}; "
            "val needs one folder for each class of train (README, data layout)"
        )
    return _folder_set("val", data_root, data_root / "imagenet/val", classes, limit)


def one_percent_set(data_root: Path, limit: int | None = None) -> ImageSet:
    """The train images named by ``imagenet/1percent.txt``, one ``<wnid>_<id>.JPEG`` a line.

    Raises:
        UserError: a listed file is absent from train, or twice in the list, or ImageNet-1k's list has not its 12,811 names.
    """
    layouts.require(data_root, "imagenet_1percent")
    listing, train = data_root / "imagenet/1percent.txt", data_root / "imagenet/train"
    classes = class_names(train)
    names = sorted(line.strip() for line in listing.read_text().splitlines() if line.strip())
    if len(set(names)) != len(names):
        raise UserError(f"{listing} names a file twice ({next(a for a, b in pairwise(names) if a == b)})")
    if len(classes) == FULL_CLASSES:
        per_class = Counter(Counter(name.rpartition("_")[0] for name in names).values())
        if per_class != ONE_PERCENT_CLASSES:
            raise UserError(
                f"{listing} has {len(names)} names; the published 1 % list has 12811: 13 of 811 classes and 12 of 189; fetch it again"
            )
    index = {wnid: number for number, wnid in enumerate(classes)}
    present = {wnid: set(os.listdir(train / wnid)) for wnid in {name.rpartition("_")[0] for name in names} & set(classes)}
    absent = [name for name in names if name not in present.get(name.rpartition("_")[0], ())]
    if absent:
        raise UserError(f"{listing} names {len(absent)} files that imagenet/train lacks, for example {absent[0]}; unpack train in full")
    pairs = [(train / name.rpartition("_")[0] / name, index[name.rpartition("_")[0]]) for name in names]
    return _image_set("1percent", data_root, pairs, classes, limit)


def robustness_set(name: str, data_root: Path, folder: Path, limit: int | None = None) -> ImageSet:
    """A set of class folders below ``folder``, all of them classes of train.

    For the full 1000 classes, IN-A and IN-R must have exactly their 200 official classes, IN-Sketch and IN-C all 1000.

    Raises:
        UserError: otherwise, naming the classes.
    """
    classes = class_names(data_root / "imagenet/train")
    found = class_names(folder)
    if len(classes) == FULL_CLASSES:
        official = tuple(json.loads(OFFICIAL_CLASSES.read_text()).get(name, classes))
        if found != official:
            raise UserError(f"{folder} should hold the {len(official)} classes of {name}: {_difference(found, official)}")
    elif set(found) - set(classes):
        raise UserError(f"{folder} holds classes that imagenet/train lacks: {', '.join(sorted(set(found) - set(classes))[:3])}")
    return _folder_set(name, data_root, folder, classes, limit, found)


def concatenate(name: str, parts: list[ImageSet]) -> ImageSet:
    """One set of several over the same classes, in order."""
    files = tuple(file for part in parts for file in part.files)
    labels = np.concatenate([part.labels for part in parts])
    fingerprint = hashlib.sha256("\n".join(part.fingerprint for part in parts).encode()).hexdigest()[:16]
    return ImageSet(name, files, labels, parts[0].classes, fingerprint, sum(part.asked for part in parts))


def class_names(folder: Path) -> tuple[str, ...]:
    """The sorted names of the folders inside ``folder``; raises UserError if there is none."""
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder; it should hold one folder a class, named by its wnid")
    names = tuple(sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith(".")))
    if not names:
        raise UserError(f"{folder} holds no class folders; it should hold one folder a class, named by its wnid")
    return names


def _folder_set(
    name: str, data_root: Path, folder: Path, classes: tuple[str, ...], limit: int | None, found: tuple[str, ...] | None = None
) -> ImageSet:
    index = {wnid: number for number, wnid in enumerate(classes)}
    pairs: list[tuple[Path, int]] = []
    for wnid in found or classes:
        files = sorted(file for file in os.listdir(folder / wnid) if not file.startswith("."))
        strange = [file for file in files if not file.lower().endswith(SUFFIXES)]
        if strange:
            raise UserError(f"{folder / wnid / strange[0]} is not an image by its name ({', '.join(SUFFIXES)}); move it away")
        if not files:
            raise UserError(f"the class folder {folder / wnid} is empty; unpack it again, or remove the class from every set")
        pairs.extend((folder / wnid / file, index[wnid]) for file in files)
    return _image_set(name, data_root, pairs, classes, limit)


def _image_set(name: str, data_root: Path, pairs: list[tuple[Path, int]], classes: tuple[str, ...], limit: int | None) -> ImageSet:
    asked = len(pairs)
    if limit is not None and limit < asked:  # evenly spaced, so that every class keeps its share
        pairs = [pairs[position * asked // limit] for position in range(limit)]
    digest = hashlib.sha256()
    world = data_root / "world.json"
    if world.is_file():
        digest.update(world.read_bytes())
    for path, label in pairs:
        digest.update(f"{path.relative_to(data_root)}\0{label}\n".encode())
    files, labels = tuple(path for path, _ in pairs), np.array([label for _, label in pairs], dtype=np.int64)
    return ImageSet(name, files, labels, classes, digest.hexdigest()[:16], asked)


def _difference(found: tuple[str, ...], expected: tuple[str, ...]) -> str:
    """``12 missing (n01440764, …), 1 too many (foo)``."""
    parts = []
    for names, word in ((set(expected) - set(found), "missing"), (set(found) - set(expected), "too many")):
        if names:
            shown = ", ".join(sorted(names)[:3]) + (", …" if len(names) > 3 else "")
            parts.append(f"{len(names)} {word} ({shown})")
    return ", ".join(parts)


def read_image(path: Path) -> Image.Image:
    """An RGB image; raises UserError naming a file that cannot be read to its end."""
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"the image {path} cannot be read ({error}); fetch it again: no image is ever left out") from error


class Images(Dataset):
    """Decoded and transformed images, uint8 (3, H, W), with their labels, by ``(epoch, index)``.

    An unreadable file comes out as its UserError, not as an exception: a data loading process would wrap that in a traceback.
    """

    def __init__(self, images: ImageSet, transform: Transform) -> None:
        self.images, self.transform = images, transform
        self.kept: dict[int, Image.Image] | None = {}

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, draw: Draw) -> tuple[torch.Tensor, int] | UserError:
        epoch, index = draw
        try:
            image = self._read(index)
        except UserError as error:
            return error
        pixels = np.array(self.transform(image, epoch, index), dtype=np.uint8)
        return torch.from_numpy(pixels).permute(2, 0, 1), int(self.images.labels[index])

    def _read(self, index: int) -> Image.Image:
        if self.kept is not None and index in self.kept:
            return self.kept[index]
        image = read_image(self.images.files[index])
        if self.kept is not None:
            self.kept[index] = image
            if 3 * image.width * image.height * len(self.images) > KEPT_BYTES:
                self.kept = None
        return image


def batches(dataset: Images, draws: Iterable[list[Draw]], workers: int = 0) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Images uint8 (B, 3, H, W) and labels int64 (B,), one batch for each list of draws; raises UserError for an unreadable image."""
    loader = DataLoader(
        dataset, batch_sampler=draws, num_workers=workers, collate_fn=_collate, pin_memory=torch.cuda.is_available()  # type: ignore[arg-type]
    )
    for batch in loader:
        if isinstance(batch, UserError):
            raise batch
        yield batch


def _collate(items: list[tuple[torch.Tensor, int] | UserError]) -> tuple[torch.Tensor, torch.Tensor] | UserError:
    for item in items:
        if isinstance(item, UserError):
            return item
    return torch.stack([image for image, _ in items]), torch.tensor([label for _, label in items])


class InOrder:
    """Every ``step``-th index below ``count`` from ``start``, once, in batches: what one of ``step`` processes evaluates."""

    def __init__(self, count: int, batch_size: int, start: int = 0, step: int = 1) -> None:
        self.indices, self.batch_size = range(start, count, step), batch_size

    def __len__(self) -> int:
        return -(-len(self.indices) // self.batch_size)

    def __iter__(self) -> Iterator[list[Draw]]:
        for begin in range(0, len(self.indices), self.batch_size):
            yield [(0, index) for index in self.indices[begin : begin + self.batch_size]]
