"""A detector's answers as arrays: a dict for each would take thirty times their memory, 40 GB for LVIS' val."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import numpy as np

from evaluate.mm import artifacts


@dataclass(frozen=True)
class Detections:
    """Detections of any images. Axes: n detections, b bytes of all run lengths."""

    image_ids: np.ndarray
    """(n,) int64."""
    category_ids: np.ndarray
    """(n,) int64."""
    scores: np.ndarray
    """(n,) float64."""
    boxes: np.ndarray
    """(n, 4) float64: x, y, width, height."""
    sizes: np.ndarray
    """(n, 2) int32: height and width of the picture."""
    lengths: np.ndarray
    """(n,) int64: bytes of each mask's compressed run lengths."""
    runs: np.ndarray
    """(b,) uint8: the run lengths one after the other."""

    @classmethod
    def of(cls, results: Sequence[dict[str, Any]]) -> "Detections":
        """From COCO results: ``image_id``, ``category_id``, ``score``, ``bbox`` and compressed ``segmentation``."""
        runs = [result["segmentation"]["counts"] for result in results]
        return cls(
            np.array([result["image_id"] for result in results], np.int64),
            np.array([result["category_id"] for result in results], np.int64),
            np.array([result["score"] for result in results], np.float64),
            np.array([result["bbox"] for result in results], np.float64).reshape(-1, 4),
            np.array([result["segmentation"]["size"] for result in results], np.int32).reshape(-1, 2),
            np.array([len(run) for run in runs], np.int64),
            np.frombuffer(b"".join(runs), np.uint8),
        )

    @classmethod
    def joined(cls, parts: Sequence["Detections"]) -> "Detections":
        """The detections of several in their order."""
        parts = parts or [cls.of([])]
        return cls(*(np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(cls)))

    def __len__(self) -> int:
        return len(self.scores)

    @cached_property
    def _ends(self) -> np.ndarray:
        """(n,) where each mask's run lengths end; found once, since LVIS' val has six million."""
        return np.cumsum(self.lengths)

    def best(self, count: int) -> np.ndarray:
        """Indices of the ``count`` best of each image, image after image, from the best score down; ties keep their
        order.
        """
        order = np.lexsort((-self.scores, self.image_ids))
        _, counts = np.unique(self.image_ids, return_counts=True)
        place = np.arange(len(self)) - np.repeat(np.cumsum(counts) - counts, counts)
        return order[place < count]

    def scored(self, count: int) -> Iterator[dict[str, Any]]:
        """The ``best`` as COCO results, each with its box to a thousandth of a pixel and its mask."""
        chosen = self.best(count)
        for begin in range(0, len(chosen), 1000):  # a dict for each at once would take gigabytes
            part = chosen[begin : begin + 1000]
            for box, mask in zip(self.results(part, masks=False), self.results(part, masks=True), strict=True):
                outline = mask["segmentation"]
                yield {
                    **box,
                    "score": artifacts.short(box["score"]),
                    "bbox": [round(value, artifacts.DECIMALS) for value in box["bbox"]],
                    "segmentation": {**outline, "counts": outline["counts"].decode()},
                }

    def results(self, indices: np.ndarray, masks: bool) -> list[dict[str, Any]]:
        """Those of some indices as COCO results, each with its mask or its box."""
        found = []
        for index in indices.tolist():
            entry: dict[str, Any] = {
                "image_id": int(self.image_ids[index]),
                "category_id": int(self.category_ids[index]),
                "score": float(self.scores[index]),
            }
            if masks:
                run = self.runs[self._ends[index] - self.lengths[index] : self._ends[index]].tobytes()
                entry["segmentation"] = {"size": self.sizes[index].tolist(), "counts": run}
            else:
                entry["bbox"] = self.boxes[index].tolist()
            found.append(entry)
        return found
