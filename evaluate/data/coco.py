"""The one gate of COCO's and LVIS's annotation files: what is accepted here trains and is scored; plain JSON, no mm*
package.
"""

import functools
import json
import os
import posixpath
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evaluate.data.outlines import NUMBERS, has_area, near, outline_fault, pixels, usable_parts
from evaluate.data.pictures import picture_sizes
from evaluate.data.published_counts import INSTANCES
from evaluate.runtime.errors import UserError

ANNOTATIONS = {  # of train and of val, below the data root
    "coco": ("coco/annotations/instances_train2017.json", "coco/annotations/instances_val2017.json"),
    "lvis": ("lvis/lvis_v1_train.json", "lvis/lvis_v1_val.json"),
    "voc": ("VOCdevkit", "VOCdevkit"),
}
IMAGES = {
    "coco": "coco",
    "lvis": "coco",
    "voc": "VOCdevkit",
}  # the folder below the data root that picture paths start from
PUBLISHED_VAL = {(counts["val"], classes) for classes, counts in INSTANCES.values()}  # images and categories
FIELDS = ("image_id", "category_id", "bbox", "segmentation")  # that every annotation must have
LONGEST_SIDE = 65_535  # pixels, a JPEG's limit
SMALLEST_BOX = 0.01  # pixels: COCO's boxes are written in hundredths


@dataclass(frozen=True)
class Instances:
    """What the gate found of one data set."""

    train_images: int
    tested: int
    """Validation images that are scored."""
    val_images: int
    categories: list[dict[str, Any]]
    """Of the training json, by id."""
    pictures: dict[str, list[Path]]
    """All pictures of ``train`` and of ``val``."""
    left_out: int
    """Training objects that cannot be learnt: a box without area or no outline of three points or more."""


def check_instances(data_root: Path, name: str, limit: int | None = None) -> Instances:
    """The gate of ``coco`` or ``lvis``: both json files, whether they belong together, and that their pictures are
    there.

    The sizes of the validation pictures are read from their headers. The last file read is the training json, which
    ``read_annotations`` then has at hand.

    Args:
        limit: how many validation images are scored, the first by id.

    Raises:
        UserError: naming the file and the first fault.
    """
    paths = dict(zip(("train", "val"), (data_root / part for part in ANNOTATIONS[name]), strict=True))
    pictures, categories, counts = {}, {}, {}
    tested = left_out = 0
    for split in ("val", "train"):  # train last
        path = paths[split]
        content = read_annotations(path)
        categories[split] = sorted(content["categories"], key=lambda category: category["id"])
        if name == "lvis":
            _require_lvis_fields(path, content, split)
        if split == "val":
            tested = require_scorable(path, content, limit)
        else:
            left_out = _require_learnable(path, content)
        folder = data_root / IMAGES[name]
        pictures[split] = [folder / file_name(image, f"{split}2017") for image in content["images"]]
        counts[split] = len(content["images"])
        require_present(pictures[split], path)
        if split == "val":
            require_sizes(pictures[split], content["images"], path)
    for ours, theirs in zip(*(_names(categories[split]) for split in ("train", "val")), strict=False):
        if ours != theirs:
            raise UserError(
                f"{paths['train']} has the category {ours[0]} {ours[1]!r} where {paths['val']} has {theirs[0]} "
                f"{theirs[1]!r}; both must list the same ids and names"
            )
    if len(categories["train"]) != len(categories["val"]):
        raise UserError(
            f"{paths['train']} has {len(categories['train'])} categories and {paths['val']} "
            f"{len(categories['val'])}; both must list the same ids and names"
        )
    return Instances(counts["train"], tested, counts["val"], categories["train"], pictures, left_out)


def _names(categories: list[dict[str, Any]]) -> list[tuple[int, str]]:
    return [(category["id"], category["name"]) for category in categories]


def read_annotations(path: Path) -> dict[str, Any]:
    """A COCO or LVIS json, checked: ids, sizes, names, boxes and outlines are what they should be.

    The content is kept for the next call, which must not change it; ``forget`` frees it.

    Raises:
        UserError: naming the file and the first fault.
    """
    try:
        stamp = os.stat(path)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); fetch it again") from error
    return _read(Path(path), stamp.st_mtime_ns, stamp.st_size)


def forget() -> None:
    """Frees the content that was read last: gigabytes of a whole training json."""
    _read.cache_clear()


@functools.lru_cache(maxsize=1)
def _read(path: Path, changed: int, size: int) -> dict[str, Any]:
    """``read_annotations`` of a file as it was changed last."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        lists = [content[key] for key in ("images", "categories", "annotations")]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{path} is not an instances file ({type(error).__name__}: {error}); fetch it again") from error
    if not all(isinstance(entries, list) and all(isinstance(entry, dict) for entry in entries) for entries in lists):
        raise UserError(
            f"{path} is not an instances file: images, categories and annotations must be lists of objects; fetch it "
            f"again"
        )
    if not lists[0] or not lists[1]:
        raise UserError(f"{path} lists no images or no categories; fetch it again")
    try:
        _require_images(content["images"])
        _require_categories(content["categories"])
        _require_annotations(content)
    except UserError as error:
        raise UserError(f"{path}: {error}; fetch the file again") from error
    return content


def _require_ids(entries: list[dict[str, Any]], kind: str) -> set[int]:
    """The ids of a list. Raises UserError for one that is missing, not a whole number from 0 on, or there twice."""
    ids: set[int] = set()
    for number, entry in enumerate(entries):
        own = entry.get("id")
        if type(own) is not int or not 0 <= own < 2**63:  # True is an int
            raise UserError(f"the id of {kind} number {number} is {own!r}, which should be a whole number from 0 on")
        if own in ids:
            raise UserError(f"the {kind} id {own} is there twice")
        ids.add(own)
    return ids


def _require_images(images: list[dict[str, Any]]) -> None:
    _require_ids(images, "image")
    named: dict[str, int] = {}
    for image in images:
        for side in ("width", "height"):
            if type(image.get(side)) is not int or not 0 < image[side] <= LONGEST_SIDE:
                raise UserError(
                    f"image {image['id']} has the {side} {image.get(side)!r}, which should be whole pixels from 1 to "
                    f"{LONGEST_SIDE}"
                )
        field = "file_name" if "file_name" in image else "coco_url"
        name = image.get(field)
        if not isinstance(name, str) or not name or "\0" in name or "\\" in name:
            raise UserError(f"image {image['id']} has the {field} {name!r}, which should be the name of a picture")
        below = file_name(image, "")
        parts = below.strip("/").split("/")
        if ".." in parts or name.startswith("/") or not parts[-1] or (field == "coco_url" and len(parts) < 2):
            raise UserError(f"image {image['id']} has the {field} {name!r}, which leads out of the folder of pictures")
        other = named.setdefault(posixpath.normpath(below), image["id"])
        if other != image["id"]:
            raise UserError(f"the images {other} and {image['id']} have the same {field} {name!r}")


def _require_categories(categories: list[dict[str, Any]]) -> None:
    _require_ids(categories, "category")
    names: set[str] = set()
    for category in categories:
        name = category.get("name")
        if not isinstance(name, str) or not name:
            raise UserError(f"category {category['id']} has the name {name!r}, which should be a text")
        if name in names:
            raise UserError(f"the category name {name!r} is there twice")
        names.add(name)


def _require_annotations(content: dict[str, Any]) -> None:
    sizes = {image["id"]: (image["height"], image["width"]) for image in content["images"]}
    categories = {category["id"] for category in content["categories"]}
    annotations = content["annotations"]
    _require_ids([annotation for annotation in annotations if "id" in annotation], "annotation")
    for number, annotation in enumerate(annotations):
        fault = _fault(annotation, sizes, categories)
        if fault:
            raise UserError(f"{_called(annotation, number)} {fault}")


def _called(annotation: dict[str, Any], number: int) -> str:
    return f"annotation {annotation['id']}" if "id" in annotation else f"annotation number {number} (without id)"


def _fault(annotation: dict[str, Any], sizes: dict[int, tuple[int, int]], categories: set[int]) -> str | None:
    """What is wrong with an annotation of train or val, as the end of a sentence; its ids have been looked at."""
    for name in FIELDS:
        if name not in annotation:
            return f"has no {name}"
    image, category, box = annotation["image_id"], annotation["category_id"], annotation["bbox"]
    if type(image) is not int or image not in sizes:
        return f"is of image {image!r}, which the file does not list"
    if type(category) is not int or category not in categories:
        return f"has category {category!r}, which the file does not list"
    height, width = sizes[image]
    if not isinstance(box, list) or len(box) != 4 or not near(box, height, width):
        return f"has the bbox {box!r}, which should be four finite numbers (x, y, width, height) near its picture"
    if box[2] < 0 or box[3] < 0:
        return f"has the bbox {box}, whose width and height must not be negative"
    crowd = annotation.get("iscrowd", 0)
    if type(crowd) is not int or crowd not in (0, 1):
        return f"has iscrowd {crowd!r}, which should be 0 or 1"
    area = annotation.get("area", 0)
    if type(area) not in NUMBERS or not 0 <= area <= 1e10:  # COCO's evaluation leaves out what is outside
        return f"has the area {area!r}, which should be a number from 0 to 1e10"
    return outline_fault(annotation["segmentation"], height, width)


def _require_learnable(path: Path, content: dict[str, Any]) -> int:
    """How many training objects are left out. Raises UserError where none remains."""
    objects = [a for a in content["annotations"] if not a.get("iscrowd", 0)]
    left_out = sum(
        min(a["bbox"][2:]) == 0 or not (pixels(o) if isinstance(o := a["segmentation"], dict) else usable_parts(o))
        for a in objects
    )
    if left_out == len(objects):
        raise UserError(f"{path} has no image with an object that can be used for training; download it again")
    return left_out


def require_scorable(path: Path, content: dict[str, Any], limit: int | None) -> int:
    """How many images of a validation json are scored: the first by id, at most ``limit``.

    An object that no detection could find is refused: COCO's own evaluation would count it as missed. The published
    sets are scored as they are, by that evaluation's rules.

    Raises:
        UserError: none holds an object, or one has an outline that cannot be read, or no area and the set is not a
            published one.
    """
    published = (len(content["images"]), len(content["categories"])) in PUBLISHED_VAL
    sizes = {image["id"]: (image["height"], image["width"]) for image in content["images"]}
    tested = set(sorted(sizes)[:limit])
    if all(a.get("iscrowd", 0) for a in content["annotations"] if a["image_id"] in tested):
        raise UserError(
            f"{path} has no image with an object that can be scored among the {len(tested)} read; fetch it again"
        )
    for number, annotation in enumerate(content["annotations"]):
        fault = _unreadable(annotation)
        if not published:
            fault = fault or _not_findable(annotation, *sizes[annotation["image_id"]])
        if fault:
            raise UserError(f"{path}: {_called(annotation, number)} {fault}; fetch the file again")
    return len(tested)


def _unreadable(annotation: dict[str, Any]) -> str | None:
    outline = annotation["segmentation"]
    if not isinstance(outline, dict):
        # as the scorer reads them: the first part decides that all are polygons
        if not outline or len(outline[0]) < 6:
            return "has an outline of fewer than three points"
        if any(len(part) % 2 or not part for part in outline):
            return "has a polygon of an odd count of numbers, or of none"
    return None


def _not_findable(annotation: dict[str, Any], height: int, width: int) -> str | None:
    if annotation.get("iscrowd", 0):
        return None
    outline = annotation["segmentation"]
    x, y, box_width, box_height = annotation["bbox"]
    outside = x >= width or y >= height or x + box_width <= 0 or y + box_height <= 0
    if outside or min(box_width, box_height) < SMALLEST_BOX:
        return f"has the bbox {annotation['bbox']}, which has no area in its picture and cannot be found"
    if not (pixels(outline) if isinstance(outline, dict) else any(has_area(part, height, width) for part in outline)):
        return "has an outline without area in its picture, which cannot be found"
    return None


def _require_lvis_fields(path: Path, content: dict[str, Any], split: str) -> None:
    """Raises UserError where the lists or numbers are missing that LVIS's rules and the federated loss ask for."""
    known = {category["id"] for category in content["categories"]}
    if split == "val":
        for image in content["images"]:
            for field in ("neg_category_ids", "not_exhaustive_category_ids"):
                listed = image.get(field)
                if not isinstance(listed, list) or not set(map(type, listed)) <= {int} or not known.issuperset(listed):
                    raise UserError(
                        f"{path}: image {image['id']} has no list {field} of listed categories, which every LVIS v1 "
                        f"image has; without it false detections do not count; fetch the file again"
                    )
    for category in content["categories"]:
        if split == "val" and category.get("frequency") not in ("r", "c", "f"):
            raise UserError(
                f"{path}: category {category['id']} has the frequency {category.get('frequency')!r}, which should be "
                f"r, c or f as in every LVIS v1 file; fetch it again"
            )
        count = category.get("image_count")
        if split == "train" and (type(count) is not int or count < 0):
            raise UserError(
                f"{path} has categories without image_count, which every LVIS v1 file has (category "
                f"{category['id']}: {count!r}); fetch it again"
            )
    if split == "train" and not any(category["image_count"] for category in content["categories"]):
        raise UserError(f"{path}: the image_count of every category is 0; fetch the file again")


def require_present(pictures: Iterable[Path], listed_by: Path) -> None:
    """Raises UserError where a listed picture is not there; a folder is listed once, not asked for each file."""
    found: dict[Path, set[str]] = {}
    absent = []
    for picture in pictures:
        folder = picture.parent
        if folder not in found:
            try:
                with os.scandir(folder) as entries:
                    found[folder] = {entry.name for entry in entries if entry.is_file()}
            except (OSError, ValueError):
                found[folder] = set()
        if picture.name not in found[folder]:
            absent.append(picture)
    if absent:
        raise UserError(
            f"{listed_by} lists {len(absent)} pictures that are not there, for example {str(absent[0])!r}; unpack them "
            f"in full"
        )


def require_sizes(pictures: Sequence[Path], images: Sequence[dict[str, Any]], listed_by: Path) -> None:
    """Raises UserError naming a picture that has another size by its header than its entry says."""
    for picture, (width, height), image in zip(pictures, picture_sizes(pictures, upright=True), images, strict=True):
        if (width, height) != (image["width"], image["height"]):
            raise UserError(
                f"{picture} is {width} x {height} pixels, but {listed_by} says {image['width']} x {image['height']}; "
                f"fetch both again"
            )


def file_name(image: dict[str, Any], folder: str) -> str:
    """The picture's path below ``coco/``: LVIS has no ``file_name``, and its val set lies partly in train2017, as
    ``coco_url`` says.
    """
    return f"{folder}/{image['file_name']}" if "file_name" in image else "/".join(image["coco_url"].split("/")[-2:])
