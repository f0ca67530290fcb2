"""Testing a segmenter at several scales and mirrored, as mmseg 0.x did; 1.x has neither its scales nor its least size.

0.x resizes a picture's shorter side to the crop times each ratio, but never below the crop, and leaves the longer side
free (mmseg 0.30: ``MultiScaleFlipAug`` around ``Resize(keep_ratio=True, min_size=512)``). So the ratios 0.5 and 0.75
give what 1 gives, which then weighs three times; here it is computed once.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from mmengine.model import BaseModel
from mmengine.structures import PixelData
from torch import nn


def short_sides(crop: int, ratios: Sequence[float]) -> dict[int, int]:
    """The lengths in pixels of a picture's shorter side, and how often each occurs among the ratios."""
    return dict(Counter(max(crop, int(crop * ratio)) for ratio in ratios))


def resize_short(image: np.ndarray, side: int) -> np.ndarray:
    """(H, W, C) with a shorter side of ``side``, the proportions kept, by OpenCV's bilinear filter; halves round up."""
    height, width = image.shape[:2]
    factor = side / min(height, width)
    return cv2.resize(image, (int(width * factor + 0.5), int(height * factor + 0.5)), interpolation=cv2.INTER_LINEAR)


class Views:
    """A sample to the views of its picture, each also mirrored: ``inputs`` and ``data_samples``, lists of equal length.

    Each data sample's ``weight`` says how often the view counts; ``gt_sem_seg`` is the label map of the picture as it
    is.
    """

    def __init__(self, crop: int, ratios: Sequence[float]) -> None:
        # here, since the runner imports this module, also for a benchmark that has not provided mmcv's operators yet
        from mmseg.datasets.transforms import PackSegInputs

        self.sides = short_sides(crop, ratios)
        self.pack = PackSegInputs(meta_keys=("img_path", "ori_shape", "img_shape", "flip", "flip_direction", "weight"))

    def __call__(self, sample: dict[str, Any]) -> dict[str, list[Any]]:
        packed = []
        for side, weight in self.sides.items():
            image = resize_short(sample["img"], side)
            for flip in (False, True):
                view = np.ascontiguousarray(image[:, ::-1]) if flip else image
                direction = "horizontal" if flip else None
                described = {"img": view, "img_shape": view.shape[:2], "flip": flip, "flip_direction": direction}
                packed.append(self.pack({**sample, **described, "weight": weight}))
        return {key: [view[key] for view in packed] for key in ("inputs", "data_samples")}


class MultiScale(nn.Module):
    """A segmenter that predicts the class of the highest mean probability over a picture's views.

    Args:
        segmentor: mmseg's, which resizes each view's logits to the picture's own size and mirrors them back.
    """

    def __init__(self, segmentor: BaseModel) -> None:
        super().__init__()
        self.segmentor = segmentor

    def test_step(self, data: dict[str, list[Any]]) -> list[Any]:
        """The data sample of one picture with ``pred_sem_seg``; one view after another, so that few logits are kept."""
        total: Any = 0.0
        for inputs, samples in zip(data["inputs"], data["data_samples"], strict=True):
            (view,) = self.segmentor.test_step({"inputs": inputs, "data_samples": samples})
            total = total + view.metainfo["weight"] * view.seg_logits.data.softmax(0)
        view.pred_sem_seg = PixelData(data=total.argmax(0, keepdim=True))
        return [view]
