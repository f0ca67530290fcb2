"""PASCAL VOC's own layout as a COCO-like dictionary.

Pixels are counted from 1 in the files and from 0 here.
"""

import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from pathlib import Path
from typing import Any

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
        objects = []
        for entry in tree.findall("object"):
            x1, y1, x2, y2 = (float(entry.findtext(f"bndbox/{name}", "")) for name in ("xmin", "ymin", "xmax", "ymax"))
            x1, y1 = x1 - 1, y1 - 1
            objects.append(
                {
                    "category_id": CLASSES.index(entry.findtext("name", "")),
                    "difficult": entry.findtext("difficult", "0").strip() == "1",
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "segmentation": [[x1, y1, x2, y1, x2, y2, x1, y2]],
                }
            )
    except (OSError, ElementTree.ParseError, ValueError) as error:
        raise UserError(
            f"{path} is not an annotation of VOC ({type(error).__name__}: {error}); unpack it again"
        ) from error
    return width, height, objects
