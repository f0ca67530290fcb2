"""Further test sets of ImageNet classifiers, as published: ImageNet-V2, the reassessed labels (ReaL), ObjectNet.

ImageNet-V2 (Recht et al. 2019) names its class folders 0 to 999, the places among ImageNet-1k's sorted wnids; in the
order of their names they are not in that order. ReaL (Beyer et al. 2020) gives every image of val all classes that are
right; images without one do not count. ObjectNet (Barbu et al. 2019) is scored on its 113 classes that ImageNet has,
each of which may be several of ImageNet's; its images have a red border of 2 pixels, which is cut off.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from evaluate.data import imagenet, layouts
from evaluate.data.imagenet import NONE, Identities, ImageSet
from evaluate.data.published_counts import VAL
from evaluate.runtime.errors import UserError

if TYPE_CHECKING:
    from evaluate.data.transforms import Transform

V2 = ("imagenet_v2_matched", "imagenet_v2_threshold", "imagenet_v2_top")
REAL, OBJECTNET = "imagenet_real", "objectnet"
BORDER = 2  # pixels
VAL_NAME = re.compile(r"ILSVRC2012_val_(\d{8})")


@dataclass(frozen=True)
class WithoutBorder:
    """ObjectNet's images without the border that marks them."""

    then: "Transform"

    def __call__(self, image: Image.Image, epoch: int = 0, index: int = 0) -> Any:
        inner = (BORDER, BORDER, image.width - BORDER, image.height - BORDER)
        return self.then(image.crop(inner), epoch, index)


def v2_set(name: str, data_root: Path, limit: int | None = None, identities: Identities = NONE) -> ImageSet:
    """One of the three ImageNet-V2, all of whose classes are classes of train.

    Raises UserError for a folder that is no number below 1,000, and for a class that train lacks.
    """
    (part,) = layouts.LAYOUTS[name]
    classes, official = imagenet.class_names(data_root / "imagenet/train"), _official()
    images = {}
    for folder, files in imagenet.images_of_classes(data_root / part).items():
        if not (folder.isdecimal() and int(folder) < len(official)):
            raise UserError(f"{data_root / part / folder} should be named by a class's number, 0 to 999, as published")
        images[official[int(folder)]] = files
    if lacking := sorted(set(images) - set(classes)):
        raise UserError(f"{data_root / part} holds classes that imagenet/train lacks: {', '.join(lacking[:3])}")
    return imagenet.image_set(name, data_root, part, dict(sorted(images.items())), classes, limit, identities)


def real_labels(data_root: Path, val: ImageSet) -> np.ndarray:
    """(n, C) bool: which classes are right for each image of val, by ``imagenet/real.json``.

    Raises UserError for a file of another form, and for images that are not named as val's are.
    """
    path = data_root / layouts.LAYOUTS[REAL][0]
    listed = _json(path)
    if not (isinstance(listed, list) and len(listed) == VAL and all(isinstance(own, list) for own in listed)):
        raise UserError(f"{path} should be a list of {VAL:,} lists of classes, as published with ReaL")
    place = _places(val.classes)
    right = np.zeros((len(val), len(val.classes)), dtype=bool)
    for row, file in enumerate(val.files):
        named = VAL_NAME.fullmatch(file.stem)
        if not named or not 1 <= int(named[1]) <= VAL:
            raise UserError(
                f"{path} knows images by the numbers in their names (ILSVRC2012_val_00000001.JPEG), and {file} has none"
            )
        for label in listed[int(named[1]) - 1]:
            if type(label) is not int or not 0 <= label < imagenet.FULL_CLASSES:
                raise UserError(f"{path} should hold classes from 0 to 999, not {label!r}")
            if label in place:
                right[row, place[label]] = True
    return right


def objectnet_set(
    data_root: Path, limit: int | None = None, identities: Identities = NONE
) -> tuple[ImageSet, np.ndarray]:
    """ObjectNet's images of classes that train has too, and (n, C) bool: which classes of train are right for each.

    A set's label is the first of these; its ``scored`` are places among ObjectNet's classes here.

    Raises UserError for mappings of another form, and where no class is one of train's.
    """
    part, mappings = layouts.LAYOUTS[OBJECTNET]
    classes = imagenet.class_names(data_root / "imagenet/train")
    right_of = _objectnet_classes(data_root / mappings, classes)
    folders = {
        name: files for name, files in imagenet.images_of_classes(data_root / part).items() if right_of.get(name)
    }
    if not folders:
        raise UserError(f"{data_root / part} holds no class that imagenet/train has")
    names = tuple(folders)
    own = imagenet.image_set(OBJECTNET, data_root, part, folders, names, limit, identities)
    right = np.zeros((len(own), len(classes)), dtype=bool)
    for row, label in enumerate(own.labels):
        right[row, right_of[names[label]]] = True
    return ImageSet(own.name, own.files, right.argmax(axis=1), classes, own.fingerprint, own.asked, own.scored), right


def among_right(first: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Whether the most probable class is a right one, of the images that have one: bool (k,), k at most m.

    Args:
        first: (m,) the most probable class of each image.
        right: (m, C) bool.
    """
    counted = right.any(axis=1)
    return right[np.arange(len(first)), first][counted]


def _objectnet_classes(folder: Path, classes: tuple[str, ...]) -> dict[str, list[int]]:
    """By ObjectNet's folder, the places in ``classes`` of the ImageNet classes that it is."""
    place = _places(classes)
    try:
        numbers = _json(folder / "pytorch_to_imagenet_2012_id.json")
        number_of_line = {int(line): int(number) for number, line in numbers.items()}
        lines = (folder / "imagenet_to_label_2012_v2").read_text(encoding="utf-8").splitlines()
        number_of = {text.strip(): number_of_line[line] for line, text in enumerate(lines) if text.strip()}
        labels = _json(folder / "folder_to_objectnet_label.json")
        to_imagenet = _json(folder / "objectnet_to_imagenet_1k.json")
        return {
            name: [
                place[number_of[text]]
                for text in to_imagenet.get(label, "").split("; ")
                if text and number_of[text] in place
            ]
            for name, label in labels.items()
        }
    except (OSError, KeyError, ValueError, AttributeError, TypeError) as error:
        raise UserError(
            f"{folder} should hold ObjectNet's four published mappings ({type(error).__name__}: {error}); unpack "
            f"objectnet-1.0.zip again"
        ) from error


def _places(classes: tuple[str, ...]) -> Mapping[int, int]:
    """By a class's number in ImageNet-1k its place among these classes, where it is one of them."""
    own = {wnid: place for place, wnid in enumerate(classes)}
    return {number: own[wnid] for number, wnid in enumerate(_official()) if wnid in own}


def _official() -> list[str]:
    """The 1,000 wnids of ImageNet-1k, sorted."""
    return json.loads(imagenet.OFFICIAL_CLASSES.read_text())["imagenet"]


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is no JSON: {error}; download it again") from error
