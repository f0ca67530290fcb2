"""Instances in the layouts of COCO and LVIS v1, read by one class: classes come from the annotation file, in the order of their ids."""

import random
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from evaluate.data.ade20k import class_names, paired_files
from evaluate.data.coco import file_name, read_annotations
from evaluate.data.voc import read_voc
from evaluate.runtime.errors import UserError


def polygons_of(segmentation: Any, height: int, width: int) -> list[np.ndarray]:
    """An annotation's parts as (2 n,) x, y in pixels; run lengths are traced, parts of fewer than three points left out."""
    if isinstance(segmentation, dict):
        import cv2
        from pycocotools import mask as rle

        encoded = rle.frPyObjects(segmentation, height, width) if isinstance(segmentation["counts"], list) else segmentation
        contours, _ = cv2.findContours(rle.decode(encoded), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
        # a contour runs through pixel centres
        parts = [contour.reshape(-1).astype(np.float64) + 0.5 for contour in contours]
    else:
        parts = [np.asarray(part, np.float64) for part in segmentation]
    return [part for part in parts if len(part) >= 6 and len(part) % 2 == 0]


class InstanceSet(Dataset):
    """COCO or LVIS instances.

    Args:
        annotations: the json.
        images: the folder ``coco``.
        folder: ``train2017`` or ``val2017``, where the images of a COCO json lie.
        pipeline: callables from sample to sample, or their mmengine configs.
        training: leaves out crowd regions, and images without an object.
        limit: at most so many images.
        seed: of the augmentations; a sample's draws depend on it and on the sample's place in the stream only, so that neither
            the number of workers nor an interruption changes them.
    """

    def __init__(
        self, annotations: str, images: str, folder: str, pipeline: list[Any], training: bool, limit: int | None = None, seed: int = 0
    ) -> None:
        content = self.read(annotations, folder)
        categories = sorted(content["categories"], key=lambda category: category["id"])
        self.labels = {category["id"]: label for label, category in enumerate(categories)}
        self.metainfo = {"classes": tuple(category["name"] for category in categories)}
        self.pipeline = [as_callable(step) for step in pipeline]
        self.seed, self.training = seed, training
        by_image: dict[int, list[dict[str, Any]]] = defaultdict(list)
        for annotation in content["annotations"]:
            by_image[annotation["image_id"]].append(annotation)
        self.samples = []
        for image in sorted(content["images"], key=lambda image: image["id"])[:limit]:
            sample = {
                "img_id": image["id"], "img_path": str(Path(images) / self.picture(image, folder)), "annotations": annotations,
                "height": image["height"], "width": image["width"],
            }  # fmt: skip
            if training:
                sample["objects"] = self._objects(by_image[image["id"]], image)
                if not sample["objects"]:
                    continue
            self.samples.append(sample)
        if not self.samples:
            raise UserError(f"{annotations} has no image with an object that can be learnt; fetch it again")

    def read(self, annotations: str, folder: str) -> dict[str, Any]:
        """The parsed annotations."""
        return read_annotations(Path(annotations))

    def picture(self, image: dict[str, Any], folder: str) -> str:
        """An image's path below ``images``."""
        return file_name(image, folder)

    def _objects(self, annotations: list[dict[str, Any]], image: dict[str, Any]) -> list[tuple[int, Any]]:
        """(label, segmentation) of what can be learnt: no crowd, a box of positive size, a traceable outline."""
        return [
            (self.labels[a["category_id"]], a["segmentation"])
            for a in annotations
            if not a.get("iscrowd", 0) and min(a["bbox"][2:]) > 0 and polygons_of(a["segmentation"], image["height"], image["width"])
        ]

    def categories_of(self, index: int) -> list[int]:
        """Labels of an image's objects, for the repeat factors."""
        return [label for label, _ in self.samples[index]["objects"]]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, key: int | tuple[int, int]) -> Any:
        """A sample by its index, or by (place in the stream, index) in training."""
        if isinstance(key, tuple):
            place, key = key
            seed_sample(self.seed, place)
        sample = dict(self.samples[key])
        objects = sample.pop("objects", [])
        sample["labels"] = [label for label, _ in objects]
        sample["polygons"] = [polygons_of(segmentation, sample["height"], sample["width"]) for _, segmentation in objects]
        for step in self.pipeline:
            sample = step(sample)
        return sample


def seed_sample(seed: int, place: int) -> None:
    """Seeds the generators that augmentations draw from, numpy's and Python's global ones."""
    words = np.random.SeedSequence([seed, place]).generate_state(2)
    np.random.seed(words[0])
    random.seed(int(words[1]))


def as_callable(step: Any) -> Callable[[Any], Any]:
    """A pipeline step, built if it is an mmengine config."""
    if callable(step):
        return step
    from mmengine.registry import TRANSFORMS

    return TRANSFORMS.build(step)


class VOCSet(InstanceSet):
    """``InstanceSet`` over VOCdevkit; ``annotations`` is that folder and ``folder`` the lists, joined by a plus: 2007/trainval+2012/trainval."""

    def read(self, annotations: str, folder: str) -> dict[str, Any]:
        """The parsed sets."""
        return read_voc(Path(annotations), folder.split("+"))

    def picture(self, image: dict[str, Any], folder: str) -> str:
        """An image's path below VOCdevkit."""
        return image["file_name"]


class SegmentationSet(Dataset):
    """Pictures and label maps of one split; label k of the file is class k - 1, and 0 ("other") is ignored.

    Args:
        root: the folder with ``images/<split>/*.jpg`` and ``annotations/<split>/*.png``.
        pipeline: callables from sample to sample, or their mmengine configs.
        limit: at most so many pictures.
        seed: of the augmentations, as in ``InstanceSet``.

    Raises:
        UserError: a picture without a label map, or the reverse.
    """

    def __init__(self, root: str, split: str, pipeline: list[Any], limit: int | None = None, seed: int = 0) -> None:
        pictures, labels = paired_files(Path(root), split)
        self.metainfo = {"classes": class_names(Path(root)), "palette": None, "folder": str(Path(root) / "annotations" / split)}
        self.pipeline = [as_callable(step) for step in pipeline]
        self.seed = seed
        self.samples = [{"img_path": str(pictures[name]), "seg_map_path": str(labels[name])} for name in sorted(pictures)[:limit]]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, key: int | tuple[int, int]) -> Any:
        if isinstance(key, tuple):
            place, key = key
            seed_sample(self.seed, place)
        sample: Any = {**self.samples[key], "classes": len(self.metainfo["classes"]), "seg_fields": [], "reduce_zero_label": True}
        for step in self.pipeline:
            sample = step(sample)
        return sample
