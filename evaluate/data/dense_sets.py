"""The sets of pictures and label maps that segmentation is measured on, and the gate that looks at one before."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from evaluate.data import ade20k, voc2012
from evaluate.data.label_maps import Form, label_size, read_labels
from evaluate.data.pictures import THREADS, picture_sizes
from evaluate.runtime.errors import UserError
from evaluate.runtime.progress import track

SPLITS = ("training", "validation")
FOLDERS = {"ade20k": "ade20k", "voc2012": "VOCdevkit/VOC2012"}  # below the data root, by name
TRAIN_SAMPLES = 100  # training label maps that the gate reads in full; of the others it reads the headers

Pairs = tuple[dict[str, Path], dict[str, Path]]


@dataclass(frozen=True)
class DenseSet:
    """Pictures with label maps, as their publisher lays them out."""

    name: str
    root: Path
    classes: tuple[str, ...]
    form: Form
    find: Callable[[Path, str], Pairs]

    def pairs(self, split: str) -> Pairs:
        """The pictures and the label maps of one split by name. Raises UserError for what is missing."""
        return self.find(self.root, split)

    def read(self, path: Path) -> np.ndarray:
        """(height, width) uint8 labels as in the file; ``form.none`` is no class. Raises UserError for others."""
        return read_labels(path, self.form)

    def check(self, limit: int | None = None) -> dict[str, list[Path]]:
        """The gate: the pictures of each split, sorted by name, after their label maps were looked at.

        All validation label maps are read, and a sample of the training ones; of all others the headers are: size, one
        channel, depth.

        Args:
            limit: at most so many pictures of a split, as the task reads them.

        Raises:
            UserError: naming the file.
        """
        found = {}
        for split in SPLITS:
            pictures, labels = self.pairs(split)
            maps = [labels[name] for name in sorted(pictures)][:limit]
            found[split] = [pictures[name] for name in sorted(pictures)]
            with ThreadPoolExecutor(THREADS) as pool:
                sizes = list(pool.map(lambda path: label_size(path, self.form), maps))
            for path, own, expected in zip(
                maps, sizes, picture_sizes(found[split][:limit], upright=False), strict=True
            ):
                if own != expected:
                    raise UserError(f"the label map {path} is {own} pixels, but its image is {expected}; restore it")
            step = 1 if split == "validation" else max(1, len(maps) // TRAIN_SAMPLES)
            if not self._any_label(maps[::step]) and split == "validation":
                raise UserError(
                    f"the {len(maps)} label maps read from {maps[0].parent} have no labeled pixel; restore them"
                )
        return found

    def _any_label(self, maps: Sequence[Path]) -> bool:
        with ThreadPoolExecutor(THREADS) as pool:
            read = pool.map(lambda path: bool((self.read(path) != self.form.none).any()), maps)
            return any(list(track(read, "label maps", len(maps))))


def of(name: str, root: Path) -> DenseSet:
    """A set by its name in ``layouts.LAYOUTS``, in its own folder. Raises UserError for names that cannot be read."""
    if name == "ade20k":
        classes = ade20k.class_names(root)
        return DenseSet(name, root, classes, Form(len(classes)), ade20k.paired_files)
    form = Form(len(voc2012.CLASSES), first=0, palette=True)
    return DenseSet(name, root, voc2012.CLASSES, form, voc2012.paired_files)


def below(data_root: Path, name: str) -> DenseSet:
    """A set below a data root, as ``of``."""
    return of(name, data_root / FOLDERS[name])
