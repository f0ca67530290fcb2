"""Published sets that are ready by name where their archives, unpacked as published, lie below the data root.

A row of READY is all that a set takes. Where torchvision has a reader, its ``torchvision.datasets`` reads the set, and
nothing is ever downloaded. Metrics and splits are those of the transfer protocols of Kornblith et al. (2019) and of
SimCLR: accuracy, or the mean over classes.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

from evaluate.data import listing
from evaluate.data.archives import Held
from evaluate.data.sources import Item, is_image
from evaluate.runtime.errors import UserError

Splits = tuple[list[Item], list[Item]]
CALTECH_TRAIN = 30  # images of each class; the others are for the test


@dataclass(frozen=True)
class Ready:
    """A published set."""

    title: str
    """In the table."""
    metric: Literal["accuracy", "mean_per_class"]
    train: int
    """Images."""
    val: int
    classes: int
    parts: tuple[str, ...]
    """What must lie below the data root."""
    origin: str
    reader: Callable[[Path], Splits]

    def read(self, data_root: Path) -> Splits:
        """The images of train and val. Raises UserError where the set is not as published."""
        try:
            train, val = self.reader(data_root)
        except UserError:
            raise
        except Exception as error:  # whatever torchvision, scipy or pickle make of a damaged file
            raise UserError(
                f"{self.title} below {data_root / self.parts[0]} cannot be read ({type(error).__name__}: {error}); "
                f"unpack it as it is published: {self.origin}"
            ) from error
        if not train or not val:
            raise UserError(f"{data_root / self.parts[0]} holds no image of {self.title}; unpack it in full")
        return train, val


def _items(files: Iterable[str | Path], labels: Iterable[object]) -> list[Item]:
    """Images by their paths; of a class they keep the order of their folder and name."""
    return [
        Item(Path(file), "/".join(Path(file).parts[-2:]), (str(label),))
        for file, label in zip(files, labels, strict=True)
    ]


def _cifar(kind: str) -> Callable[[Path], Splits]:
    def read(root: Path) -> Splits:
        from torchvision import datasets

        def split(train: bool) -> list[Item]:
            found = getattr(datasets, kind)(root, train=train)
            names = [f"{'train' if train else 'test'}/{number:05d}.png" for number in range(len(found))]
            return [
                Item(Held(name, pixels), name, (found.classes[label],))
                for name, pixels, label in zip(names, found.data, found.targets, strict=True)
            ]

        return split(True), split(False)

    return read


def _named(kind: str, files: str, *splits: Sequence[str]) -> Callable[[Path], Splits]:
    """A reader through torchvision's class of a name, which keeps its paths in an attribute ``files``.

    Args:
        splits: torchvision's names of the parts of train, and of val.
    """

    def read(root: Path) -> Splits:
        from torchvision import datasets

        def together(names: Sequence[str]) -> list[Item]:
            parts = [getattr(datasets, kind)(root, split=name) for name in names]
            return [
                item
                for part in parts
                for item in _items(getattr(part, files), (part.classes[label] for label in part._labels))
            ]

        train, val = map(together, splits)
        return train, val

    return read


def _cars(root: Path) -> Splits:
    from torchvision import datasets

    def split(name: str) -> list[Item]:
        found = datasets.StanfordCars(root, split=name)
        return _items(*zip(*((file, found.classes[label]) for file, label in found._samples), strict=True))

    return split("train"), split("test")


def _sun397(root: Path) -> Splits:
    """Split 01; the lists lie in SUN397/ or SUN397/Partitions/."""
    folder = root / "SUN397"

    def split(name: str) -> list[Item]:
        lists = [folder / name, folder / "Partitions" / name]
        text = next((path for path in lists if path.is_file()), lists[0]).read_text()
        paths = [line.strip().lstrip("/") for line in text.splitlines() if line.strip()]
        return [Item(folder / path, path, ("/".join(PurePosixPath(path).parts[1:-1]),)) for path in paths]

    return split("Training_01.txt"), split("Testing_01.txt")


def _caltech101(root: Path) -> Splits:
    """CALTECH_TRAIN images of each of the 102 folders, the same ones on every machine: those whose names' digests come
    first.
    """
    train: list[Item] = []
    val: list[Item] = []
    folder = root / "caltech101/101_ObjectCategories"
    for entry in filter(listing.is_folder, listing.entries(folder)):
        names = [f"{entry.name}/{file.name}" for file in listing.entries(entry.path) if is_image(file.name)]
        drawn = sorted(names, key=lambda name: hashlib.sha256(name.encode()).digest())[:CALTECH_TRAIN]
        for name in names:
            (train if name in drawn else val).append(Item(folder / name, name, (entry.name,)))
    return train, val


def _inaturalist2018(root: Path) -> Splits:
    folder = root / "inaturalist2018"

    def split(name: str) -> list[Item]:
        content = json.loads((folder / name).read_text())
        category = {one["image_id"]: one["category_id"] for one in content["annotations"]}
        return [
            Item(folder / one["file_name"], one["file_name"], (str(category[one["id"]]),)) for one in content["images"]
        ]

    return split("train2018.json"), split("val2018.json")


def _inaturalist2021(root: Path) -> Splits:
    from torchvision import datasets

    def split(version: str) -> list[Item]:
        found = datasets.INaturalist(root / "inaturalist", version=version)
        names = found.all_categories
        return _items(
            (Path(found.root) / names[place] / file for place, file in found.index),
            (names[place] for place, _ in found.index),
        )

    return split("2021_train"), split("2021_valid")


def _tiny_imagenet(root: Path) -> Splits:
    """Train lies in ``train/<wnid>/images``; ``val_annotations.txt`` has the classes of val."""
    folder = root / "tiny-imagenet-200"
    train = [
        Item(folder / "train" / name, name, (name.partition("/")[0],))
        for name, _ in listing.walk(folder / "train", lambda entry: None)
        if is_image(name)
    ]
    lines = [line.split("\t") for line in (folder / "val/val_annotations.txt").read_text().splitlines() if line]
    return train, [Item(folder / "val/images" / line[0], line[0], (line[1],)) for line in lines]


def _vtab(name: str) -> Callable[[Path], Splits]:
    """The 1,000 training images that a list in the copy names, and the test images."""

    def read(root: Path) -> Splits:
        folder = root / "vtab-1k" / name

        def split(file: str) -> list[Item]:
            lines = [line.rpartition(" ") for line in (folder / file).read_text().splitlines() if line.strip()]
            return [Item(folder / path, path, (label,)) for path, _, label in lines]

        return split("train800val200.txt"), split("test.txt")

    return read


VTAB = {  # by folder: title, test images, classes
    "caltech101": ("Caltech-101", 6_084, 102),
    "cifar": ("CIFAR-100", 10_000, 100),
    "dtd": ("DTD", 1_880, 47),
    "oxford_flowers102": ("Flowers", 6_149, 102),
    "oxford_iiit_pet": ("Pets", 3_669, 37),
    "sun397": ("SUN397", 21_750, 397),
    "svhn": ("SVHN", 26_032, 10),
    "patch_camelyon": ("Camelyon", 32_768, 2),
    "eurosat": ("EuroSAT", 5_400, 10),
    "resisc45": ("Resisc45", 6_300, 45),
    "diabetic_retinopathy": ("Retinopathy", 42_670, 5),
    "clevr_count": ("Clevr count", 15_000, 8),
    "clevr_dist": ("Clevr distance", 15_000, 6),
    "dmlab": ("DMLab", 22_735, 6),
    "kitti": ("KITTI", 711, 4),
    "dsprites_loc": ("dSprites location", 73_728, 16),
    "dsprites_ori": ("dSprites orientation", 73_728, 16),
    "smallnorb_azi": ("sNORB azimuth", 12_150, 18),
    "smallnorb_ele": ("sNORB elevation", 12_150, 9),
}
TRAIN_AND_VAL = ("train", "val")
READY = {  # by the name on the command line
    name: Ready(*row)  # type: ignore[arg-type]  # its metric is one of the two
    for name, row in {
        # title, metric, train, val, classes, parts, origin, reader
        "cifar10": (
            "CIFAR-10", "accuracy", 50_000, 10_000, 10, ("cifar-10-batches-py",),
            "cs.toronto.edu/~kriz has it as cifar-10-python.tar.gz", _cifar("CIFAR10"),
        ),
        "cifar100": (
            "CIFAR-100", "accuracy", 50_000, 10_000, 100, ("cifar-100-python",),
            "cs.toronto.edu/~kriz has it as cifar-100-python.tar.gz", _cifar("CIFAR100"),
        ),
        "food101": (
            "Food-101", "accuracy", 75_750, 25_250, 101, ("food-101",),
            "data.vision.ee.ethz.ch/cvl has it as food-101.tar.gz",
            _named("Food101", "_image_files", ["train"], ["test"]),
        ),
        "pets": (
            "Pets", "mean_per_class", 3_680, 3_669, 37, ("oxford-iiit-pet/images", "oxford-iiit-pet/annotations"),
            "robots.ox.ac.uk/~vgg/data/pets has images.tar.gz and annotations.tar.gz, for the folder oxford-iiit-pet",
            _named("OxfordIIITPet", "_images", ["trainval"], ["test"]),
        ),
        "flowers": (
            "Flowers", "mean_per_class", 2_040, 6_149, 102, ("flowers-102",),
            "robots.ox.ac.uk/~vgg/data/flowers/102 has 102flowers.tgz, imagelabels.mat and setid.mat, for flowers-102",
            _named("Flowers102", "_image_files", TRAIN_AND_VAL, ["test"]),
        ),
        "cars": (
            "Cars", "accuracy", 8_144, 8_041, 196, ("stanford_cars",),
            "ai.stanford.edu/~jkrause/cars had cars_train, cars_test, devkit and cars_test_annos_withlabels.mat, for "
            "the folder stanford_cars", _cars,
        ),
        "aircraft": (
            "Aircraft", "mean_per_class", 6_667, 3_333, 100, ("fgvc-aircraft-2013b",),
            "robots.ox.ac.uk/~vgg/data/fgvc-aircraft has it as fgvc-aircraft-2013b.tar.gz",
            _named("FGVCAircraft", "_image_files", ["trainval"], ["test"]),
        ),
        "dtd": (
            "DTD", "accuracy", 3_760, 1_880, 47, ("dtd/dtd",),
            "robots.ox.ac.uk/~vgg/data/dtd has it as dtd-r1.0.1.tar.gz, for the folder dtd",
            _named("DTD", "_image_files", TRAIN_AND_VAL, ["test"]),
        ),
        "sun397": (
            "SUN397", "accuracy", 19_850, 19_850, 397, ("SUN397",),
            "vision.princeton.edu/projects/2010/SUN has SUN397.tar.gz, and Partitions.zip for the folder SUN397",
            _sun397,
        ),
        "caltech101": (
            "Caltech-101", "mean_per_class", 3_060, 6_084, 102, ("caltech101/101_ObjectCategories",),
            "data.caltech.edu/records/mzrjq-6wc02 has it, for the folder caltech101", _caltech101,
        ),
        "inat2018": (
            "iNat 2018", "accuracy", 437_513, 24_426, 8_142, ("inaturalist2018",),
            "github.com/visipedia/inat_comp has train_val2018.tar.gz and its lists, for the folder inaturalist2018",
            _inaturalist2018,
        ),
        "inat2021": (
            "iNat 2021", "accuracy", 2_686_843, 100_000, 10_000,
            ("inaturalist/2021_train", "inaturalist/2021_valid"),
            "github.com/visipedia/inat_comp has train.tar.gz and val.tar.gz, for inaturalist/2021_train and 2021_valid",
            _inaturalist2021,
        ),
        "tiny_imagenet": (
            "Tiny-ImageNet", "accuracy", 100_000, 10_000, 200, ("tiny-imagenet-200",),
            "cs231n.stanford.edu has it as tiny-imagenet-200.zip", _tiny_imagenet,
        ),
        **{
            f"vtab_{name}": (
                f"VTAB {title}", "accuracy", 1_000, val, classes, (f"vtab-1k/{name}",),
                "copies of VTAB-1k have for each set its images, train800val200.txt and test.txt (path and label)",
                _vtab(name),
            )
            for name, (title, val, classes) in VTAB.items()
        },
    }.items()
}  # fmt: skip
