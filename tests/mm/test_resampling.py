"""The resampled AP and mIoU are those of images that really are there several times, and their intervals are right."""

import copy
from typing import Any

import numpy as np
import pytest
import torch

from evaluate.mm import metrics, resampling
from evaluate.mm.detections import Detections
from evaluate.runtime import bootstrap
from tests.mm.detections import random_world

Z = 1.96


def repeated(truth: dict, found: list[dict], weights: np.ndarray) -> tuple[dict, list[dict]]:
    """The world with each image as many times as it weighs, all copies under ids of their own."""
    images, annotations, detections = [], [], []
    for image, weight in zip(truth["images"], weights, strict=True):
        for _ in range(weight):
            number = len(images) + 1
            images.append({**image, "id": number})
            annotations += [{**a, "image_id": number} for a in truth["annotations"] if a["image_id"] == image["id"]]
            detections += [{**d, "image_id": number} for d in found if d["image_id"] == image["id"]]
    annotations = [{**a, "id": k} for k, a in enumerate(annotations, 1)]
    return copy.deepcopy({**truth, "images": images, "annotations": annotations}), copy.deepcopy(detections)


@pytest.mark.parametrize("lvis", [False, True])
def test_a_draw_is_the_metric_of_images_that_are_there_so_often(lvis: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    truth, found = random_world(0, lvis=lvis)
    ids = [image["id"] for image in truth["images"]]
    weights = np.concatenate([np.ones((1, len(ids)), np.int64), np.random.default_rng(1).integers(0, 4, (3, len(ids)))])
    monkeypatch.setattr(bootstrap, "draws", lambda images: weights)
    drawn: dict[str, list[float]] = {}
    ours = metrics.average_precision(copy.deepcopy(truth), Detections.of(found), ids, lvis, 300, drawn)
    assert set(drawn) == set(ours) and len(ours) == (12 if lvis else 6)
    for number, row in enumerate(weights):
        world, detections = repeated(truth, found, row)
        expected = metrics.average_precision(
            world, Detections.of(detections), [i["id"] for i in world["images"]], lvis, 300
        )
        assert {name: values[number] for name, values in drawn.items()} == pytest.approx(expected, abs=1e-4)
    assert len(set(drawn["box_ap"])) == 4


def test_draws_are_the_same_for_every_encoder_and_have_as_many_images() -> None:
    drawn = bootstrap.draws(50)
    assert drawn.shape == (200, 50) and (drawn.sum(1) == 50).all() and (drawn == bootstrap.draws(50)).all()


def test_a_metric_that_some_draw_does_not_have_has_no_error() -> None:
    assert bootstrap.kept({"a": [1.0, 2.0], "b": [1.0, float("nan")]}) == {"a": [1.0, 2.0]}
    assert bootstrap.errors({"a": [1.0, 2.0]}) == {"a": pytest.approx(0.5**0.5)}


CLASSES = 4


def detector(images: int, rng: np.random.Generator) -> list[resampling.Outcomes]:
    """What a detector of known quality makes of images: objects, hits at ten thresholds, and false alarms."""
    found = []
    for k in range(CLASSES):
        objects = rng.poisson(1.5, images)
        difficulty = rng.normal(0, 0.5, images)  # the objects of one image are easy or hard together
        seen = np.repeat(np.arange(images), objects)
        quality = np.clip(rng.normal(0.75 - 0.03 * k, 0.12, len(seen)) - 0.1 * difficulty[seen], 0, 1)
        alarms = np.repeat(np.arange(images), rng.poisson(1.0, images))
        scores = np.concatenate([rng.normal(1, 1, len(seen)) - difficulty[seen], rng.normal(-0.3, 1, len(alarms))])
        right = np.concatenate([quality, np.zeros(len(alarms))])[:, None] >= np.arange(0.5, 1, 0.05)
        order = np.argsort(-scores, kind="stable")
        where = np.concatenate([seen, alarms])[order]
        found.append(resampling.Outcomes(where, right[order], ~right[order], objects))
    return found


def ap(outcomes: list[resampling.Outcomes], weights: np.ndarray) -> np.ndarray:
    return 100 * np.mean([resampling.precision(one, weights, resampling.COCO_LEVELS) for one in outcomes], axis=(0, 2))


def segmenter(images: int, rng: np.random.Generator) -> torch.Tensor:
    """(images, 3, classes) pixels, as ``metrics.count_pixels`` gives them."""
    truth = rng.multinomial(1000, rng.dirichlet(np.full(CLASSES, 0.7), images)).astype(float)
    kept = truth * np.clip(rng.normal([0.9, 0.8, 0.7, 0.5], 0.15, truth.shape), 0, 1)
    lost = (truth - kept).sum(1, keepdims=True)
    predicted = kept + lost / CLASSES
    return torch.from_numpy(np.stack([kept, predicted, truth], 1).round())


def miou(counts: torch.Tensor, weights: np.ndarray) -> np.ndarray:
    summed = (torch.from_numpy(weights).double() @ counts.flatten(1)).view(len(weights), 3, CLASSES)
    return np.array([metrics.scores(one)["miou"] for one in summed])


def coverage(kind: str, images: int, worlds: int) -> float:
    """Share of worlds, in percent, whose 95 % interval covers what is expected on other sets of as many images.

    That is the truth of a number measured on a set of this size. AP itself is higher on small sets than on large ones:
    the best precision at a recall is a maximum over noise.
    """
    draw: Any
    draw, measure = (detector, ap) if kind == "ap" else (segmenter, miou)
    rng = np.random.default_rng(0)
    weights = np.concatenate([np.ones((1, images), np.int64), bootstrap.draws(images)])
    drawn = np.array([measure(draw(images, rng), weights) for _ in range(worlds)])
    errors = np.array([bootstrap.errors({"a": row[1:].tolist()})["a"] for row in drawn])
    return 100 * float(np.mean(np.abs(drawn[:, 0] - drawn[:, 0].mean()) <= Z * errors))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ap", "miou"])
def test_of_a_thousand_intervals_nineteen_of_twenty_cover_the_truth(kind: str) -> None:
    found = coverage(kind, images=300, worlds=1000)
    print(f"{kind}: {found:.1f} %")
    assert 93 <= found <= 97


@pytest.mark.parametrize("kind", ["ap", "miou"])
def test_of_sixty_intervals_most_cover_the_truth(kind: str) -> None:
    assert 87 <= coverage(kind, images=100, worlds=60) < 100  # fewer has a chance below two in a hundred
