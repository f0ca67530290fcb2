"""The steps of the pipelines: instances as detectron2 reads, jitters and resizes them, label maps as mmseg reads them.

Instances: RGB through PIL, polygons as floats, boxes from cropped polygons. A sample is mmdet's dictionary: ``img`` (H,
W, 3) uint8 RGB, ``ori_shape``, ``img_shape`` (height, width), ``gt_masks`` (PolygonMasks), ``gt_bboxes`` (x1, y1, x2,
y2 in pixels), ``gt_bboxes_labels``. Random numbers come from numpy's global generator, which the data set seeds for
each sample.
"""

from pathlib import Path
from typing import Any

import numpy as np
from mmdet.structures.bbox import HorizontalBoxes
from mmdet.structures.mask import PolygonMasks
from PIL import Image

from evaluate.data.label_maps import read_labels
from evaluate.data.pixels import READ_ERRORS, read_rgb
from evaluate.runtime.errors import UserError

Sample = dict[str, Any]


def jittered_size(height: int, width: int, scale: float, target: int) -> tuple[int, int]:
    """(height, width) after large-scale jitter: fitted into a square of ``target * scale``; halves round to even."""
    ratio = min(target * scale / height, target * scale / width)
    return int(np.round(height * ratio)), int(np.round(width * ratio))


def crop_offset(height: int, width: int, target: int, draw: float) -> tuple[int, int]:
    """(top, left) of the crop of side ``target``: one draw in [0, 1] serves both axes; halves round to even."""
    return int(np.round(max(height - target, 0) * draw)), int(np.round(max(width - target, 0) * draw))


def tested_size(height: int, width: int, shortest: int, longest: int) -> tuple[int, int]:
    """(height, width) of which the shorter is ``shortest``, less where the longer would exceed ``longest``."""
    scale = shortest / min(height, width)
    new_height, new_width = (float(shortest), scale * width) if height < width else (scale * height, float(shortest))
    if max(new_height, new_width) > longest:
        shrink = longest / max(new_height, new_width)
        new_height, new_width = new_height * shrink, new_width * shrink
    return int(new_height + 0.5), int(new_width + 0.5)


def resize_image(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """PIL's bilinear filter, which averages over the area when shrinking; OpenCV's differs by up to 41 grey levels."""
    return np.array(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))


class LoadImage:
    """Reads ``img_path``, turned as its EXIF orientation says; it must have the size that the annotations say.

    Raises:
        UserError: an unreadable picture, or one of another size.
    """

    def __call__(self, sample: Sample) -> Sample:
        path = sample["img_path"]
        try:
            image = np.asarray(read_rgb(path, upright=True))
        except READ_ERRORS as error:
            raise UserError(
                f"the image {path} named by {sample['annotations']} cannot be read ({error}); restore it"
            ) from error
        if image.shape[:2] != (sample["height"], sample["width"]):
            expected = f"{sample['annotations']} says {sample['width']} x {sample['height']}"
            raise UserError(f"{path} is {image.shape[1]} x {image.shape[0]} pixels, but {expected}; fetch both again")
        shape = image.shape[:2]
        return {
            **sample,
            "img": image,
            "ori_shape": shape,
            "img_shape": shape,
            "scale_factor": (1.0, 1.0),
            "flip": False,
        }


class LargeScaleJitter:
    """Flip, resize by a random scale, crop a square of at most ``size``, and take boxes anew from the cropped polygons.

    Args:
        size: side of the square in pixels; smaller pictures are padded after normalization, by the preprocessor.
        scales: range of the uniform scale.
        flip: probability of a horizontal flip, which comes first.
    """

    def __init__(self, size: int, scales: tuple[float, float], flip: float = 0.5) -> None:
        self.size, self.scales, self.flip = size, scales, flip

    def __call__(self, sample: Sample) -> Sample:
        flip, scale, draw = np.random.random() < self.flip, np.random.uniform(*self.scales), np.random.random()
        return jitter(sample, self.size, flip, scale, draw)


def jitter(sample: Sample, size: int, flip: bool, scale: float, draw: float) -> Sample:
    """``LargeScaleJitter`` with its random numbers given."""
    height, width = sample["img"].shape[:2]
    height, width = jittered_size(height, width, scale, size)
    return apply_geometry(sample, flip, max(height, 1), max(width, 1), crop_offset(height, width, size, draw), size)


class ResizeShortest:
    """Flip, then resize the shorter side to one of several lengths, the longer to at most ``longest``, as detectron2.

    Args:
        shortest: the lengths to choose from, in pixels.
        flip: probability of a horizontal flip.
    """

    def __init__(self, shortest: list[int], longest: int, flip: float = 0.5) -> None:
        self.shortest, self.longest, self.flip = list(shortest), longest, flip

    def __call__(self, sample: Sample) -> Sample:
        flip, side = np.random.random() < self.flip, self.shortest[np.random.randint(len(self.shortest))]
        height, width = sample["img"].shape[:2]
        height, width = tested_size(height, width, side, self.longest)
        return apply_geometry(sample, flip, height, width, (0, 0), self.longest)


def apply_geometry(
    sample: Sample, flip: bool, new_height: int, new_width: int, corner: tuple[int, int], size: int
) -> Sample:
    """A sample flipped, resized and cropped to a square of ``size`` at most, whose corner is (top, left).

    It reads ``polygons`` and ``labels`` and writes mmdet's ground truth.
    """
    image = sample["img"][:, ::-1] if flip else sample["img"]
    height, width = image.shape[:2]
    top, left = corner
    image = resize_image(np.ascontiguousarray(image), new_height, new_width)[top : top + size, left : left + size]
    factors = np.array([new_width / width, new_height / height])
    polygons = [[_moved_polygon(part, width, flip, factors) for part in parts] for parts in sample["polygons"]]
    box = np.array([left, top, left + image.shape[1], top + image.shape[0]])
    masks = PolygonMasks(polygons, new_height, new_width).crop(box)
    boxes = masks.get_bboxes("hbox").tensor.numpy().reshape(-1, 4)
    kept = ((boxes[:, 2:] - boxes[:, :2]) > 1e-5).all(1)
    return {
        **sample,
        "img": image,
        "img_shape": image.shape[:2],
        "scale_factor": tuple(factors.tolist()),
        "flip": flip,
        "flip_direction": "horizontal" if flip else None,
        "gt_masks": masks[np.flatnonzero(kept)],
        "gt_bboxes": HorizontalBoxes(boxes[kept].astype(np.float32)),
        "gt_bboxes_labels": np.asarray(sample["labels"], np.int64)[kept],
        "gt_ignore_flags": np.zeros(int(kept.sum()), bool),
    }


def _moved_polygon(part: np.ndarray, width: int, flip: bool, factors: np.ndarray) -> np.ndarray:
    """A polygon (2 n,) of x, y in a picture so many pixels wide, mirrored and scaled with it."""
    points = np.asarray(part, np.float64).reshape(-1, 2)
    if flip:
        points = np.stack([width - points[:, 0], points[:, 1]], 1)
    return (points * factors).ravel()


class TestResize:
    """Resizes for testing: the shorter side to ``shortest``, the longer at most ``longest``."""

    def __init__(self, shortest: int, longest: int) -> None:
        self.shortest, self.longest = shortest, longest

    def __call__(self, sample: Sample) -> Sample:
        height, width = sample["img"].shape[:2]
        new_height, new_width = tested_size(height, width, self.shortest, self.longest)
        image = resize_image(sample["img"], new_height, new_width)
        factors = (new_width / width, new_height / height)
        return {**sample, "img": image, "img_shape": image.shape[:2], "scale_factor": factors}


class LoadPicture:
    """Reads ``img`` (H, W, 3) uint8 BGR, as mmseg does, but as it is stored: the label map knows no EXIF orientation.

    Raises UserError naming an unreadable file.
    """

    def __call__(self, sample: Sample) -> Sample:
        try:
            image = np.ascontiguousarray(np.asarray(read_rgb(sample["img_path"]))[..., ::-1])
        except READ_ERRORS as error:
            raise UserError(f"the image {sample['img_path']} cannot be read ({error}); restore it") from error
        return {**sample, "img": image, "img_shape": image.shape[:2], "ori_shape": image.shape[:2]}


class LoadLabels:
    """Reads ``gt_seg_map`` (H, W) uint8 with classes from 0 and 255 for what is ignored.

    Raises:
        UserError: an unreadable file, one of another size than its picture, or a label out of range.
    """

    def __call__(self, sample: Sample) -> Sample:
        path = sample["seg_map_path"]
        labels = read_labels(Path(path), sample["form"])
        if labels.shape != tuple(sample["ori_shape"]):
            size, expected = labels.shape[::-1], tuple(sample["ori_shape"])[::-1]
            raise UserError(f"the label map {path} is {size} pixels, but its image is {expected}; restore it")
        # uint8 arithmetic on purpose: the label before the first class becomes 255, ignored
        return {
            **sample,
            "gt_seg_map": labels - np.uint8(sample["form"].first),
            "seg_fields": [*sample["seg_fields"], "gt_seg_map"],
        }
