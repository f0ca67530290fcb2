"""Pictures of what a detector and a segmenter say of some test pictures, beside the truth.

The pictures are evenly spaced in the listing, so they are the same for every encoder. They go through the trained model
once more, on the first process.
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.dataset import pseudo_collate
from mmengine.runner import Runner
from pycocotools import mask as rle

from evaluate.data import drawing
from evaluate.data.pixels import read_rgb
from evaluate.data.thumbnails import Thumbnail, spaced, write
from evaluate.mm.metrics import IGNORED, InstanceAP

PICTURES = 8
SCORE = 0.3  # of what is drawn
OBJECTS = 10  # of a picture that are drawn, the best


def detections(runner: Runner, folder: Path) -> None:
    """Draws boxes and masks above ``SCORE``, and the annotated ones, of some test pictures."""
    (metric,) = runner.test_evaluator.metrics
    categories = sorted(metric.ground_truth["categories"], key=lambda category: category["id"])
    names, outlined = [category["name"] for category in categories], isinstance(metric, InstanceAP)
    labels = {category["id"]: label for label, category in enumerate(categories)}
    pictures = []
    for sample in _answers(runner):
        image, subject = read_rgb(sample.img_path, upright=True), Path(sample.img_path).name
        annotated = [
            annotation
            for annotation in metric.ground_truth["annotations"]
            if annotation["image_id"] == sample.img_id and not annotation.get("iscrowd", 0)
        ]
        annotated.sort(key=lambda one: -one["bbox"][2] * one["bbox"][3])  # the largest have names
        true = [_annotated(one, labels, names, image.size if outlined else None) for one in annotated]
        found = _found(sample.pred_instances, names)
        told = f"{len(found)} above {SCORE}" if found else f"nothing above {SCORE}"
        pictures += [
            Thumbnail(drawing.instances(image, true), subject, "truth", _objects(len(true))),
            Thumbnail(drawing.instances(image, found), subject, "result", told),
        ]
    write(folder, "detections", pictures)


def _objects(count: int) -> str:
    return "1 object" if count == 1 else f"{count} objects"


def _annotated(
    annotation: dict[str, Any], labels: dict[int, int], names: Sequence[str], size: tuple[int, int] | None
) -> drawing.Shape:
    """An annotation as the scorer takes it; ``size`` is the picture's (width, height), None where only boxes count."""
    x, y, across, down = annotation["bbox"]
    label = labels[annotation["category_id"]]
    mask = _mask(annotation["segmentation"], *size) if size else None
    return drawing.Shape(names[label], label, (x, y, x + across, y + down), mask)


def _mask(outline: Any, width: int, height: int) -> np.ndarray:
    """(height, width) bool of polygons or run lengths."""
    if isinstance(outline, list):
        outline = rle.merge(rle.frPyObjects(outline, height, width))
    elif isinstance(outline["counts"], list):
        outline = rle.frPyObjects(outline, height, width)
    return rle.decode(outline).astype(bool)


def _found(predicted: Any, names: Sequence[str]) -> list[drawing.Shape]:
    """The best of a picture's detections, from the best score down."""
    order = predicted.scores.argsort(descending=True, stable=True)
    order = order[predicted.scores[order] > SCORE][:OBJECTS]
    chosen = predicted[order].cpu()
    boxes, labels, scores = chosen.bboxes.tolist(), chosen.labels.tolist(), chosen.scores.tolist()
    masks = list(chosen.masks.numpy().astype(bool)) if "masks" in chosen else [None] * len(boxes)
    return [
        drawing.Shape(names[label], label, tuple(box), mask, score)
        for box, label, mask, score in zip(boxes, labels, masks, scores, strict=True)
    ]


def segmentations(runner: Runner, folder: Path) -> None:
    """Draws some test pictures, their label maps and what is said of each pixel."""
    names = runner.test_dataloader.dataset.metainfo["classes"]
    pictures, pixels = [], Counter[int]()
    for sample in _answers(runner):
        image, subject = read_rgb(sample.img_path), Path(sample.img_path).name
        said, true = (one.data.squeeze(0).cpu().numpy() for one in (sample.pred_sem_seg, sample.gt_sem_seg))
        labeled = true != IGNORED
        right = f"{100 * np.mean(said[labeled] == true[labeled]):.0f} % of the pixels" if labeled.any() else ""
        pixels.update(dict(zip(*(part.tolist() for part in np.unique([true, said], return_counts=True)), strict=True)))
        pictures += [
            Thumbnail(drawing.fitted(image), subject, "image", ""),
            Thumbnail(drawing.label_map(true), subject, "truth", "", flat=True),
            Thumbnail(drawing.label_map(said), subject, "result", right, flat=True),
        ]
    legend = {names[label]: drawing.color(label) for label, _ in pixels.most_common() if label != IGNORED}
    if pixels[IGNORED]:
        legend["not labeled"] = drawing.UNLABELED
    write(folder, "segmentations", pictures, legend)


def _answers(runner: Runner) -> list[Any]:
    """What the trained model says of the chosen test pictures."""
    model = getattr(runner.model, "module", runner.model)
    dataset = runner.test_dataloader.dataset
    answers = []
    with torch.inference_mode():
        for index in spaced(len(dataset), PICTURES):
            answers += model.test_step(pseudo_collate([dataset[index]]))
    return answers
