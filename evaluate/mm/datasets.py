"""The dense data sets: instances in the layouts of COCO, LVIS v1 and PASCAL VOC, and ADE20k's label maps.

The classes of instances come from the annotation file, in the order of their ids.
"""

import pickle
import random
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from mmengine.dataset import Compose
from pycocotools import mask as rle
from torch.utils.data import Dataset

from evaluate.data import dense_sets
from evaluate.data.coco import file_name, forget, read_annotations
from evaluate.data.outlines import usable_parts
from evaluate.data.voc import read_voc
from evaluate.runtime.errors import UserError

Sample = dict[str, Any]
Pipeline = list[Callable[[Any], Any] | dict[str, Any]]  # steps from sample to sample, or their mmengine configs


def polygons_of(segmentation: Any, height: int, width: int) -> list[np.ndarray]:
    """An annotation's parts as (2 n,) x, y in pixels: run lengths traced, parts of fewer than three points left out."""
    if isinstance(segmentation, dict):
        encoded = (
            rle.frPyObjects(segmentation, height, width) if isinstance(segmentation["counts"], list) else segmentation
        )
        contours, _ = cv2.findContours(rle.decode(encoded), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
        # a contour runs through pixel centres
        parts = [contour.reshape(-1).astype(np.float64) + 0.5 for contour in contours]
    else:
        parts = segmentation
    return [np.asarray(part, np.float64) for part in usable_parts(parts)]


class Packed(Sequence[Sample]):
    """A list of samples in one array: processes that are forked from this one share its memory.

    A list of Python objects is copied into each of them bit by bit, since to read an object counts a reference in it.
    """

    def __init__(self, samples: Iterable[Sample]) -> None:
        pickled = [pickle.dumps(sample, pickle.HIGHEST_PROTOCOL) for sample in samples]
        self.ends = np.cumsum([len(one) for one in pickled], dtype=np.int64)
        self.bytes = np.frombuffer(b"".join(pickled), np.uint8)

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: Any) -> Any:
        position = range(len(self))[index]  # IndexError behind the end
        begin = self.ends[position - 1] if position else 0
        return pickle.loads(self.bytes[begin : self.ends[position]].data)


class SampleSet(Dataset[Any]):
    """Samples that go through a pipeline.

    Its random numbers depend on ``seed`` and on the sample's place in the stream only, so that neither the number of
    workers nor an interruption changes them.
    """

    def __init__(self, samples: Iterable[Sample], pipeline: Pipeline, seed: int) -> None:
        self.samples, self.seed = Packed(samples), seed
        self.pipeline = Compose(pipeline)

    def prepare(self, sample: Sample) -> Sample:
        """What the pipeline gets of an element of ``samples``."""
        return dict(sample)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, key: int | tuple[int, int]) -> Any:
        """A sample by its index, or by (place in the stream, index) in training."""
        if isinstance(key, tuple):
            place, key = key
            seed_sample(self.seed, place)
        return self.pipeline(self.prepare(self.samples[key]))


class InstanceSet(SampleSet):
    """COCO or LVIS instances.

    Args:
        annotations: the json.
        images: the folder ``coco``.
        folder: ``train2017`` or ``val2017``, where the images of a COCO json lie.
        training: leaves out crowd regions, and images without an object.
        limit: at most so many images.
    """

    def __init__(
        self,
        annotations: str,
        images: str,
        folder: str,
        pipeline: Pipeline,
        training: bool,
        limit: int | None = None,
        seed: int = 0,
    ) -> None:
        content = self.read(annotations, folder)
        categories = sorted(content["categories"], key=lambda category: category["id"])
        self.labels = {category["id"]: label for label, category in enumerate(categories)}
        self.metainfo = {"classes": tuple(category["name"] for category in categories)}
        by_image: dict[int, list[dict[str, Any]]] = defaultdict(list)
        for annotation in content["annotations"]:
            by_image[annotation["image_id"]].append(annotation)

        def samples() -> Iterator[Sample]:
            for image in sorted(content["images"], key=lambda image: image["id"])[:limit]:
                sample = {
                    "img_id": image["id"],
                    "img_path": str(Path(images) / self.picture(image, folder)),
                    "annotations": annotations,
                    "height": image["height"],
                    "width": image["width"],
                }
                if training:
                    sample["objects"] = self._objects(by_image[image["id"]], image)
                if not training or sample["objects"]:
                    yield sample

        super().__init__(samples(), pipeline, seed)
        forget()  # the samples hold what they need of it
        if not self.samples:
            raise UserError(
                f"{annotations} has no image with an object that can be used for training; download it again"
            )

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
            if not a.get("iscrowd", 0)
            and min(a["bbox"][2:]) > 0
            and polygons_of(a["segmentation"], image["height"], image["width"])
        ]

    def categories_of(self, index: int) -> list[int]:
        """Labels of an image's objects, for the repeat factors."""
        return [label for label, _ in self.samples[index]["objects"]]

    def prepare(self, sample: Sample) -> Sample:
        """A sample with ``labels`` and ``polygons`` of its objects."""
        objects = sample.get("objects", [])
        polygons = [polygons_of(segmentation, sample["height"], sample["width"]) for _, segmentation in objects]
        others = {key: value for key, value in sample.items() if key != "objects"}
        return {**others, "labels": [label for label, _ in objects], "polygons": polygons}


def seed_sample(seed: int, place: int) -> None:
    """Seeds the generators that augmentations draw from, numpy's and Python's global ones."""
    words = np.random.SeedSequence([seed, place]).generate_state(2)
    np.random.seed(words[0])
    random.seed(int(words[1]))


class VOCSet(InstanceSet):
    """``InstanceSet`` over PASCAL VOC.

    ``annotations`` is the folder VOCdevkit and ``folder`` the lists, joined by a plus: 2007/trainval+2012/trainval.
    """

    def read(self, annotations: str, folder: str) -> dict[str, Any]:
        """The parsed sets."""
        return read_voc(Path(annotations), folder.split("+"))

    def picture(self, image: dict[str, Any], folder: str) -> str:
        """An image's path below VOCdevkit."""
        return image["file_name"]


class SegmentationSet(SampleSet):
    """Pictures and label maps of one split.

    Args:
        root: the set's own folder.
        split: ``training`` or ``validation``.
        limit: at most so many pictures.
        data: the set's name in ``evaluate.data.dense_sets``.

    Raises:
        UserError: a picture without a label map, or the reverse.
    """

    def __init__(
        self,
        root: str,
        split: str,
        pipeline: Pipeline,
        limit: int | None = None,
        seed: int = 0,
        data: str = "ade20k",
    ) -> None:
        images = dense_sets.of(data, Path(root))
        self.form = images.form
        pictures, labels = images.pairs(split)
        names = sorted(pictures)[:limit]
        folder = str(labels[names[0]].parent)
        self.metainfo = {"classes": images.classes, "palette": None, "folder": folder}
        samples = [{"img_path": str(pictures[name]), "seg_map_path": str(labels[name])} for name in names]
        super().__init__(samples, pipeline, seed)

    def prepare(self, sample: Sample) -> Sample:
        """A sample with what mmseg's steps ask for."""
        return {**sample, "form": self.form, "seg_fields": [], "reduce_zero_label": True}
