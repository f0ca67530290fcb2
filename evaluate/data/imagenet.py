"""Readers of ImageNet and of its look-alikes: train and val, IN-A, IN-R, IN-Sketch and IN-C, in folders or as
published.

Class indices always go by wnid: the class list is the sorted names of ``imagenet/train``, and a folder of any other set
counts as the class it is named after. Nothing is ever dropped silently: a stray file, a class too many or too few and
an image that cannot be read are errors that name what was found.
"""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import MappingProxyType

import numpy as np

from evaluate.data import archives, layouts, listing, val_labels
from evaluate.data.archives import File
from evaluate.runtime.errors import UserError

SUFFIXES = (".jpeg", ".jpg", ".png")
OFFICIAL_CLASSES = Path(__file__).with_name("imagenet_classes.json")
FULL_CLASSES = 1000
Identities = Mapping[str, str]  # of parts of the data root (evaluate.data.identity), for what is kept of images
NONE: Identities = MappingProxyType({})
WNID = re.compile(r"n\d{8}")


@dataclass(frozen=True)
class ImageSet:
    """Files with their class indices; ``asked`` is how many the whole set has (``--limit`` may have left some out)."""

    name: str
    files: tuple[File, ...]
    labels: np.ndarray  # (n,) int64
    classes: tuple[str, ...]  # wnids; a label is an index into these
    fingerprint: str  # of names, labels and the set's identity
    asked: int
    scored: tuple[int, ...]  # the classes the whole set is of, sorted: among them IN-A and IN-R are scored
    several: np.ndarray | None = None  # (n, classes) bool where an image may have several; its label is then the first

    def __len__(self) -> int:
        return len(self.files)

    @property
    def present(self) -> np.ndarray:
        """The sorted class indices that occur."""
        return np.unique(self.labels)


def train_set(data_root: Path, limit: int | None = None, identities: Identities = NONE) -> ImageSet:
    """``imagenet/train/<wnid>/*``, in the order of wnid and file name."""
    folder = data_root / "imagenet/train"
    return image_set(
        "train", data_root, "imagenet/train", images_of_classes(folder), class_names(folder), limit, identities
    )


def val_set(data_root: Path, limit: int | None = None, identities: Identities = NONE) -> ImageSet:
    """``imagenet/val/<wnid>/*``, or ``imagenet/val/*`` beside a file that says the classes
    (``evaluate.data.val_labels``).

    Raises UserError unless its classes are exactly those of train.
    """
    classes, folder = class_names(data_root / "imagenet/train"), data_root / "imagenet/val"
    images = (
        _flat(folder, val_labels.read(data_root / "imagenet", classes))
        if _is_flat(folder)
        else images_of_classes(folder)
    )
    if tuple(images) != classes:
        raise UserError(
            f"the classes of imagenet/val differ from those of imagenet/train: {_difference(tuple(images), classes)}; "
            "val needs images of each class of train (README, data layout)"
        )
    return image_set("val", data_root, "imagenet/val", images, classes, limit, identities)


def robustness_set(
    name: str, data_root: Path, part: str, limit: int | None = None, identities: Identities = NONE
) -> ImageSet:
    """A set of class folders at ``part`` below the data root, or in its archive, all of them classes of train.

    For the full 1000 classes, IN-A and IN-R must have exactly their 200 official classes, IN-Sketch and IN-C all 1000.

    Raises:
        UserError: otherwise, naming the classes.
    """
    classes = class_names(data_root / "imagenet/train")
    folder = data_root / part
    images = images_of_classes(folder) if folder.is_dir() else _archived(data_root, part)
    found = tuple(images)
    if len(classes) == FULL_CLASSES:
        official = tuple(json.loads(OFFICIAL_CLASSES.read_text()).get(name, classes))
        if found != official:
            raise UserError(
                f"{folder} should hold the {len(official)} classes of {name}: {_difference(found, official)}"
            )
    elif set(found) - set(classes):
        raise UserError(
            f"{folder} holds classes that imagenet/train lacks: {', '.join(sorted(set(found) - set(classes))[:3])}"
        )
    return image_set(name, data_root, part, images, classes, limit, identities)


def class_names(folder: Path) -> tuple[str, ...]:
    """The sorted names of the folders inside ``folder``; raises UserError if there is none."""
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder; it should hold one folder a class, named by its wnid")
    names = tuple(entry.name for entry in listing.entries(folder) if listing.is_folder(entry))
    if not names:
        raise UserError(f"{folder} holds no class folders; it should hold one folder a class, named by its wnid")
    return names


def spoken(classes: Sequence[str]) -> tuple[str, ...]:
    """What the classes are called: WordNet's first word for a wnid, which timm brings along, else the folder's name.

    Of two with one word (crane) each also has its folder's name.
    """
    from timm.data.imagenet_info import ImageNetInfo  # needs torch

    info = ImageNetInfo()
    known = set(info.label_names())
    words = [info.label_name_to_description(wnid).partition(",")[0] if wnid in known else wnid for wnid in classes]
    counts = Counter(words)
    return tuple(word if counts[word] == 1 else f"{word} ({wnid})" for word, wnid in zip(words, classes, strict=True))


def _is_flat(folder: Path) -> bool:
    return folder.is_dir() and not any(map(listing.is_folder, listing.entries(folder)))


def images_of_classes(folder: Path) -> dict[str, list[File]]:
    """The images of each class folder. Raises UserError for one that is empty."""
    images: dict[str, list[File]] = {}
    for wnid in class_names(folder):
        names = [entry.name for entry in listing.entries(folder / wnid)]
        if not names:
            raise UserError(
                f"the class folder {folder / wnid} is empty; unpack it again, or remove the class from every set"
            )
        images[wnid] = [folder / wnid / name for name in names]
    return images


def _flat(folder: Path, wnid_of: dict[str, str]) -> dict[str, list[File]]:
    """The images of each class from a folder without class folders, by the classes of the images' names."""
    images: dict[str, list[File]] = {}
    for name in (entry.name for entry in listing.entries(folder)):
        wnid = wnid_of.get(Path(name).stem)
        if wnid is None:
            raise UserError(
                f"the class of {folder / name} is not known: {val_labels.source(folder.parent)} does not list it; "
                f"remove the image"
            )
        images.setdefault(wnid, []).append(folder / name)
    if not images:
        raise UserError(
            f"{folder} is empty; it should hold one folder for each class, named by its wnid, or all images"
        )
    return dict(sorted(images.items()))


def _archived(data_root: Path, part: str) -> dict[str, list[File]]:
    """The images of each class from the archive that holds ``part``: those whose path goes on from the part's last
    names.
    """
    archive = layouts.locate(data_root, part) or layouts.locate(data_root, str(PurePosixPath(part).parent))
    if archive is None or archive.is_dir():
        raise UserError(f"{data_root / part} is missing; unpack the set in full")
    below = PurePosixPath(part).parts[1:]  # imagenet-c/fog/3: of all that an archive holds, fog/3
    images: dict[str, list[File]] = {}
    for folder, members in archives.folders(archive).items():
        if WNID.fullmatch(folder.name) and folder.parts[-1 - len(below) : -1] == below:
            images.setdefault(folder.name, []).extend(members)
    if not images:
        raise UserError(f"{archive} holds no images in folders named by their wnid below {'/'.join(below) or part}")
    return dict(sorted(images.items()))


def image_set(
    name: str,
    data_root: Path,
    part: str,
    images: dict[str, list[File]],
    classes: tuple[str, ...],
    limit: int | None,
    identities: Identities,
) -> ImageSet:
    """A set of the images of some classes at ``part`` below the data root; every so many of them with a limit.

    Raises UserError for a file that is no image by its name.
    """
    index = {wnid: number for number, wnid in enumerate(classes)}
    entries = [(wnid, file) for wnid, files in images.items() for file in files]
    require_image_names([file for _, file in entries])
    asked = len(entries)
    if limit is not None and limit < asked:  # evenly spaced, so that every class keeps its share
        entries = [entries[position * asked // limit] for position in range(limit)]
    owner = next((known for known in identities if part == known or part.startswith(f"{known}/")), None)
    digest = hashlib.sha256(identities[owner].encode() if owner else b"")
    for wnid, file in entries:
        facts = "" if owner else facts_of(file)
        digest.update(f"{part}/{wnid}/{file.name}\0{index[wnid]}{facts}\n".encode())
    files, labels = tuple(file for _, file in entries), np.array([index[wnid] for wnid, _ in entries], dtype=np.int64)
    return ImageSet(name, files, labels, classes, digest.hexdigest()[:16], asked, tuple(index[wnid] for wnid in images))


def require_image_names(files: Sequence[File]) -> None:
    """Raises UserError naming a file that is no image by its name."""
    strange = next((file for file in files if not file.name.lower().endswith(SUFFIXES)), None)
    if strange and strange.name == "images":
        raise UserError(
            f"{strange} is a folder, as Tiny-ImageNet has in each class; call that set's folder tiny-imagenet-200 and "
            "measure it by --sets tiny_imagenet (docs/own_images.md)"
        )
    if strange:
        raise UserError(f"{strange} is no image by its name, which ends in none of {', '.join(SUFFIXES)}; move it away")


def facts_of(file: File) -> str:
    """Size and time of change of a file, or of the archive that holds it, where nobody has found out the set's
    identity.
    """
    if isinstance(file, archives.Held):
        return f"\0{hashlib.sha256(file.pixels.tobytes()).hexdigest()}"
    about = (file.archive if isinstance(file, archives.Member) else file).stat()
    return f"\0{about.st_size}\0{about.st_mtime_ns}"


def _difference(found: tuple[str, ...], expected: tuple[str, ...]) -> str:
    """``12 missing (n01440764, …), 1 too many (foo)``."""
    parts = []
    for names, word in ((set(expected) - set(found), "missing"), (set(found) - set(expected), "too many")):
        if names:
            shown = ", ".join(sorted(names)[:3]) + (", …" if len(names) > 3 else "")
            parts.append(f"{len(names)} {word} ({shown})")
    return ", ".join(parts)
