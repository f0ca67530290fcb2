"""ADE20k in its own layout (ADEChallengeData2016): pictures, label maps, and the mean intersection over union of a prediction."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from mmengine.evaluator import BaseMetric
from torch import Tensor
from torch.utils.data import Dataset

from evaluate.data.ade20k import class_names, paired_files
from evaluate.mm.datasets import as_callable, seed_sample
from evaluate.runtime.errors import UserError

IGNORED = 255


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


class LoadPicture:
    """Reads ``img`` (H, W, 3) uint8 BGR, as mmseg does. Raises UserError naming an unreadable file."""

    def __call__(self, sample: dict[str, Any]) -> dict[str, Any]:
        image = cv2.imread(sample["img_path"], cv2.IMREAD_COLOR)
        if image is None:
            raise UserError(f"the image {sample['img_path']} cannot be read; restore it")
        return {**sample, "img": image, "img_shape": image.shape[:2], "ori_shape": image.shape[:2]}


class LoadLabels:
    """Reads ``gt_seg_map`` (H, W) uint8 with classes from 0 and 255 for what is ignored.

    Raises:
        UserError: an unreadable file, one of another size than its picture, or a label out of range.
    """

    def __call__(self, sample: dict[str, Any]) -> dict[str, Any]:
        path = sample["seg_map_path"]
        labels = cv2.imread(path, cv2.IMREAD_UNCHANGED)
        if labels is None or labels.ndim != 2:
            raise UserError(f"the label map {path} cannot be read as one channel of labels; restore it")
        if labels.shape != tuple(sample["ori_shape"]):
            raise UserError(
                f"the label map {path} is {labels.shape[::-1]} pixels, its picture {tuple(sample['ori_shape'])[::-1]}; restore it"
            )
        if labels.max() > sample["classes"]:
            raise UserError(f"the label map {path} holds label {labels.max()}, but there are {sample['classes']} classes; restore it")
        # uint8 arithmetic on purpose: 0 - 1 is 255, ignored
        return {**sample, "gt_seg_map": labels.astype(np.uint8) - np.uint8(1), "seg_fields": [*sample["seg_fields"], "gt_seg_map"]}


def count_pixels(predicted: Tensor, labels: Tensor, classes: int) -> Tensor:
    """(3, classes) pixels of the intersection, of the prediction and of the truth; ignored pixels count nowhere."""
    kept = labels != IGNORED
    predicted, labels = predicted[kept], labels[kept]
    return torch.stack([torch.bincount(x, minlength=classes) for x in (predicted[predicted == labels], predicted, labels)])


def scores(counts: Tensor) -> dict[str, float]:
    """``miou`` over the classes that occur in truth or prediction, and pixel accuracy ``aacc``, in percent."""
    intersection, predicted, truth = counts.double()
    union = predicted + truth - intersection
    return {
        "miou": float(100 * (intersection / union)[union > 0].mean()),
        "aacc": float(100 * intersection.sum() / truth.sum()),
    }


class MeanIoU(BaseMetric):
    """mmengine's metric around ``scores``: mmseg's IoUMetric without its rounding to two decimals."""

    def __init__(self, collect_dir: str | None = None) -> None:
        super().__init__(prefix="seg", collect_dir=collect_dir)

    def process(self, data_batch: Any, data_samples: Sequence[dict[str, Any]]) -> None:
        classes = len(self.dataset_meta["classes"])
        for sample in data_samples:
            predicted, labels = sample["pred_sem_seg"]["data"].squeeze(0).cpu(), sample["gt_sem_seg"]["data"].squeeze(0).cpu()
            self.results.append(count_pixels(predicted, labels, classes))

    def compute_metrics(self, results: list[Tensor]) -> dict[str, float]:
        """The metrics over all pictures. Raises UserError where the label maps hold nothing but "other", which is never scored."""
        counts = torch.stack(results).sum(0)
        if not counts[2].any():
            raise UserError(f"the {len(results)} label maps read from {self.dataset_meta['folder']} have no labelled pixel; restore them")
        return {**scores(counts), "images": len(results)}
