"""What the ImageNet tasks leave of each image: the right classes, the best classes and their probabilities."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from evaluate import few_shot, finetune, knn, linear_probe, robustness, sweep
from evaluate.classification import classifier, metrics
from evaluate.data import imagenet, loader
from evaluate.data.transforms import normalize
from results import predictions
from tests.factories import FINETUNE, PROBE, environment, save_classifier, vit
from tests.worlds import WNIDS, in_order, write_world

TASKS: dict[str, tuple[Any, Any]] = {
    "finetune": (finetune, replace(FINETUNE, epochs=2)),
    "linear_probe": (linear_probe, replace(PROBE, epochs=2)),
    "sweep": (sweep, replace(sweep.PRESETS["demo"], epochs=1)),
    "few_shot": (few_shot, few_shot.PRESETS["demo"]),
    "knn": (knn, knn.PRESETS["demo"]),
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_world(tmp_path_factory.mktemp("world"))


def answers_of(folder: Path, metric: str = "top1") -> predictions.Answers:
    found = predictions.answers_of(predictions.load(folder), metric)
    assert found is not None
    return found


@pytest.mark.parametrize("task", TASKS)
def test_every_task_leaves_its_answers_in_the_order_of_the_set(data: Path, tmp_path: Path, task: str) -> None:
    module, config = TASKS[task]
    env = environment(data, tmp_path, task)
    result = module.run(vit(), config, env)
    kept, val = predictions.load(env.out_dir), imagenet.val_set(data)
    assert kept["classes"].tolist() == list(WNIDS) and len(kept["names"]) == len(WNIDS)
    assert (kept["label"].dtype, kept["top"].dtype, kept["probability"].dtype) == (np.int16, np.int16, np.float16)
    found = answers_of(env.out_dir)
    assert np.array_equal(found.labels, val.labels) and not len(found.left_out)
    assert found.top.shape == found.probabilities.shape == (60, 4), "four classes: no fifth column"
    assert all(sorted(row) == [0, 1, 2, 3] for row in found.top.tolist())
    assert (np.diff(found.probabilities.astype(float), axis=1) <= 0).all()
    assert found.probabilities.astype(float).sum(axis=1) == pytest.approx(1, abs=2e-3)
    for metric in {"top1", "top5"} & set(result):
        assert 100 * predictions.outcome(kept, metric).mean() == pytest.approx(result[metric])


def test_the_probabilities_are_the_classifiers_own(data: Path, tmp_path: Path) -> None:
    env = environment(data, tmp_path, "finetune")
    finetune.run(vit(), TASKS["finetune"][1], env)
    model, _, crop = classifier.load(env.out_dir / "classifier.safetensors", vit())
    val = imagenet.val_set(data)
    pixels = torch.cat([part for part, _ in loader.batches(loader.Images(val, crop), in_order(len(val), 64))])
    with torch.no_grad():
        probabilities = model(normalize(pixels, (0.5,) * 3, (0.25,) * 3, "cpu")).softmax(1).numpy()
    found = answers_of(env.out_dir)
    assert np.array_equal(found.top[:, 0], probabilities.argmax(1))
    told = np.take_along_axis(probabilities, found.top.astype(int), 1)
    assert found.probabilities.astype(float) == pytest.approx(told, abs=1e-3)


@pytest.mark.parametrize("task", ["finetune", "knn"])
def test_unreadable_images_are_named_by_their_place(tmp_path: Path, task: str) -> None:
    data = write_world(tmp_path / "data")
    whole = imagenet.val_set(data)
    whole.files[7].write_bytes(b"")
    module, config = TASKS[task]
    env = environment(data, tmp_path, task)
    module.run(vit(), replace(config, max_unreadable_images=1), env)
    found = answers_of(env.out_dir)
    assert found.left_out.tolist() == [7] and np.array_equal(found.labels, np.delete(whole.labels, 7))
    assert len(found.top) == 59


def test_robustness_leaves_the_answers_of_each_natural_set(data: Path, tmp_path: Path) -> None:
    save_classifier(tmp_path / "classifier.safetensors")
    env = environment(data, tmp_path, "robustness", inputs={"classifier": tmp_path / "classifier.safetensors"})
    robustness.run(vit(pooling="cls"), robustness.PRESETS["demo"], env)
    for name, metric in (
        ("imagenet_a", "imagenet_a_top1_all_classes"),
        ("imagenet_r", "imagenet_r_top1_all_classes"),
        ("imagenet_sketch", "imagenet_sketch_top1"),
    ):
        images = imagenet.robustness_set(name, data, name.replace("_", "-"))
        assert np.array_equal(answers_of(env.out_dir, metric).labels, images.labels)
    assert np.array_equal(answers_of(env.out_dir, "clean_top1").labels, imagenet.val_set(data).labels)


def test_the_first_class_is_the_arg_max_also_where_scores_tie() -> None:
    scores = torch.tensor([[1.0, 3.0, 3.0, 3.0, 0.0, 2.0, -1.0], [0.0] * 7])
    best = metrics.best(scores)
    assert best[:, 0].tolist() == scores.argmax(1).tolist()
    assert all(len(set(row)) == 5 for row in best.tolist()) and set(best[0, :4].tolist()) == {1, 2, 3, 5}
    top, probabilities = metrics.best_of_logits(torch.randn(8, 9))
    assert top.shape == probabilities.shape == (8, 5) and probabilities.dtype == torch.float16


def test_the_file_of_imagenets_val_has_a_megabyte(tmp_path: Path) -> None:
    """Of a classifier that is right on four of five of the images, as sure as ImageNet's are."""
    rng = np.random.default_rng(0)
    labels, right = np.repeat(np.arange(1000), 50), rng.random(50_000) < 0.8
    top = np.argsort(rng.random((50_000, 40)), axis=1)[:, :5] + labels[:, None] // 40 * 40  # of 40 similar classes
    top[right, 0] = labels[right]
    sharp = np.sort(rng.dirichlet([0.15] * 40, 50_000), axis=1)[:, :-6:-1]
    names = tuple(f"n{number:08}" for number in range(1000))
    predictions.save(tmp_path, {"top1": predictions.Answers(labels, top, sharp, labels[:0])}, names, names)
    size = (tmp_path / predictions.FILE).stat().st_size
    print(f"{size:,} bytes")
    assert size < 1.0e6


@pytest.mark.parametrize("count", [2, 40_000])
def test_any_number_of_classes_has_a_type(tmp_path: Path, count: int) -> None:
    labels, names = np.array([count - 1, 0]), ("a",) * count
    answers = predictions.Answers(labels, labels[:, None], np.ones((2, 1)), labels[:0])
    predictions.save(tmp_path, {"top1": answers}, names, names)
    assert answers_of(tmp_path).top[:, 0].tolist() == labels.tolist()
