"""Annotation files of COCO and LVIS, checked: plain JSON, no mm* package."""

import json
from pathlib import Path
from typing import Any

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
FIELDS = ("id", "image_id", "category_id", "bbox", "segmentation")  # of an annotation


def read_annotations(path: Path) -> dict[str, Any]:
    """A COCO or LVIS json, checked: ids unique, and every annotation's image and category listed.

    Raises:
        UserError: naming the file and the first fault.
    """
    try:
        content = json.loads(Path(path).read_text())
        images = {image["id"]: image for image in content["images"]}
        categories = {category["id"] for category in content["categories"]}
        annotations = content["annotations"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is not an instances file ({type(error).__name__}: {error}); fetch it again") from error
    if len(images) != len(content["images"]):
        raise UserError(f"{path} lists an image id twice; fetch it again")
    if not images or not categories:
        raise UserError(f"{path} lists no images or no categories; fetch it again")
    for annotation in annotations:
        for field in FIELDS:
            if field not in annotation:
                raise UserError(
                    f"{path}: annotation {annotation.get('id', '(without id)')} has no {field}; fetch the file again"
                )
        if annotation["image_id"] not in images:
            raise UserError(
                f"{path}: annotation {annotation['id']} is of image {annotation['image_id']}, which the file does not "
                f"list"
            )
        if annotation["category_id"] not in categories:
            raise UserError(
                f"{path}: annotation {annotation['id']} has category {annotation['category_id']}, which the file does "
                f"not list"
            )
    return content


def require_scorable(path: Path, content: dict[str, Any], limit: int | None) -> int:
    """How many images of a validation json are scored: the first by id, at most ``limit``.

    Raises:
        UserError: none holds an object, or an outline that COCO's own evaluation cannot read either.
    """
    tested = set(sorted(image["id"] for image in content["images"])[:limit])
    objects = [a for a in content["annotations"] if a["image_id"] in tested]
    if all(annotation.get("iscrowd", 0) for annotation in objects):
        raise UserError(
            f"{path} has no image with an object that can be scored among the {len(tested)} read; fetch it again"
        )
    for annotation in objects:
        outline = annotation["segmentation"]
        if not isinstance(outline, dict) and (not outline or len(outline[0]) < 6):
            raise UserError(
                f"{path}: annotation {annotation['id']} has an outline of fewer than three points; fetch the file again"
            )
    return len(tested)


def file_name(image: dict[str, Any], folder: str) -> str:
    """The picture's path below ``coco/``: LVIS has no ``file_name``, and its val set lies partly in train2017, as
    ``coco_url`` says.
    """
    return f"{folder}/{image['file_name']}" if "file_name" in image else "/".join(image["coco_url"].split("/")[-2:])
