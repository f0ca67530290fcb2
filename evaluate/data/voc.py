"""PASCAL VOC's own layout as a COCO-like dictionary, and the gate that looks at it before a training.

Pixels are counted from 1 in the files and from 0 here.
"""

import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from evaluate.data.coco import require_present, require_sizes
from evaluate.runtime.errors import UserError

CLASSES = (
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
)


PARTS = {"trainval": ("2007/trainval", "2012/trainval"), "test": ("2007/test",)}


def check_voc(root: Path, limit: int | None = None) -> dict[str, list[Path]]:
    """The gate: the pictures of ``trainval`` (2007 and 2012) and of ``test``, after all their files were looked at.

    Every xml is read, every picture must be there, and those of the test have the sizes that their xml says.

    Args:
        root: the folder ``VOCdevkit``.
        limit: how many test pictures are scored.

    Raises:
        UserError: naming the file that is missing or has another form, or no object to learn or to score.
    """
    found = {}
    for name, parts in PARTS.items():
        content = read_voc(root, parts)
        found[name] = [root / image["file_name"] for image in content["images"]]
        require_present(found[name], root / f"lists of {', '.join(parts)}")
        used = {image["id"] for image in content["images"][: limit if name == "test" else None]}
        # a difficult object is learnt, but not scored
        if all(a["image_id"] not in used or name == "test" and a["difficult"] for a in content["annotations"]):
            raise UserError(
                f"{root}: none of the pictures of {', '.join(parts)} has an object to use; unpack VOC again"
            )
        if name == "test":
            require_sizes(found[name], content["images"], root / "VOC2007/Annotations")
    return found


def read_voc(root: Path, parts: Sequence[str]) -> dict[str, Any]:
    """Sets of VOCdevkit as one COCO-like dictionary, in the order of their lists.

    Args:
        root: the folder ``VOCdevkit``.
        parts: ``year/list``, for example ``2007/trainval``.

    Raises:
        UserError: naming the file that is missing or has another form.
    """
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for part in parts:
        year, _, split = part.partition("/")
        folder = Path(root) / f"VOC{year}"
        listed = folder / "ImageSets" / "Main" / f"{split}.txt"
        try:
            names = listed.read_text().split()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{listed} cannot be read ({error}); unpack VOC{year} below {root} again") from error
        if len(set(names)) < len(names) or any("/" in name for name in names):
            raise UserError(f"{listed} names a picture twice or with a folder; unpack VOC{year} below {root} again")
        for name in names:
            image_id = len(images)
            width, height, objects = _read(folder / "Annotations" / f"{name}.xml")
            images.append(
                {"id": image_id, "file_name": f"VOC{year}/JPEGImages/{name}.jpg", "width": width, "height": height}
            )
            annotations += [
                {"id": len(annotations) + k, "image_id": image_id, **entry} for k, entry in enumerate(objects)
            ]
    return {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": k, "name": name} for k, name in enumerate(CLASSES)],
    }


def _read(path: Path) -> tuple[int, int, list[dict[str, Any]]]:
    """(width, height, objects) of one xml."""
    try:
        tree = ElementTree.parse(path).getroot()
        width, height = (int(tree.findtext(f"size/{name}", "")) for name in ("width", "height"))
        if width < 1 or height < 1:
            raise ValueError(f"the picture has {width} x {height} pixels")
        objects = []
        for entry in tree.findall("object"):
            x1, y1, x2, y2 = (float(entry.findtext(f"bndbox/{name}", "")) for name in ("xmin", "ymin", "xmax", "ymax"))
            difficult = entry.findtext("difficult", "0").strip()
            if not (1 <= x1 <= x2 <= width + 1 and 1 <= y1 <= y2 <= height + 1):  # some end one pixel outside
                raise ValueError(f"the box {x1, y1, x2, y2} is not inside {width} x {height} pixels")
            if difficult not in ("0", "1"):
                raise ValueError(f"difficult is {difficult!r}, which should be 0 or 1")
            x1, y1 = x1 - 1, y1 - 1
            objects.append(
                {
                    "category_id": CLASSES.index(entry.findtext("name", "")),
                    "difficult": difficult == "1",
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "segmentation": [[x1, y1, x2, y1, x2, y2, x1, y2]],
                }
            )
    except (OSError, ElementTree.ParseError, ValueError) as error:
        raise UserError(
            f"{path} is not an annotation of VOC ({type(error).__name__}: {error}); unpack it again"
        ) from error
    return width, height, objects
