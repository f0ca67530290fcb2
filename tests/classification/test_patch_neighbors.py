"""Segmentation by the nearest patches: as its description, step by step, on twenty pictures."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import jaccard_score
from sklearn.preprocessing import StandardScaler

from evaluate import knn_segmentation
from evaluate.classification import patch_neighbors
from evaluate.data import toy_dense
from evaluate.runtime.env import Env
from evaluate.runtime.errors import Skip, UserError
from evaluate.runtime.seeding import seed_of
from tests.factories import tiny_encoder, tiny_resnet
from tests.worlds import make_voc2012

SIDE, PATCH = 64, 8
DEMO = replace(knn_segmentation.PRESETS["demo"], neighbors=(1, 3, 10))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    toy_dense.make(folder, 0, train_images=20, val_images=6)
    make_voc2012(folder, folder, train=14, further=6, val=6)
    return folder


def label_map(root: Path, dataset: str, split: str, name: str) -> Path:
    if dataset == "ade20k":
        return root / f"ade20k/annotations/{split}/{name}.png"
    folders = ("SegmentationClass", "SegmentationClassAug")
    return next(path for folder in folders if (path := root / f"VOCdevkit/VOC2012/{folder}/{name}.png").exists())


def transcribed(root: Path, encoder, split: str, dataset: str) -> tuple[np.ndarray, np.ndarray]:
    """Features (n, D) and labels (n, 64) of the patches, picture by picture and patch by patch; both sets have the same
    pictures.
    """
    features, labels = [], []
    for path in sorted((root / f"ade20k/images/{split}").glob("*.jpg")):
        picture = Image.open(path).convert("RGB").resize((SIDE, SIDE), Image.BICUBIC)
        known = Image.open(label_map(root, dataset, split, path.stem)).resize((SIDE, SIDE), Image.NEAREST)
        pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 255
        mean, std = (torch.tensor(values)[:, None, None] for values in (encoder.spec.mean, encoder.spec.std))
        with torch.no_grad():
            tokens = encoder.model.norm(encoder.forward_blocks(((pixels - mean) / std)[None], 1)[-1].patches)[0]
        features.append(tokens.numpy())
        known = np.array(known)
        labels += [
            known[row : row + PATCH, column : column + PATCH].reshape(-1)
            for row in range(0, SIDE, PATCH)
            for column in range(0, SIDE, PATCH)
        ]
    return np.concatenate(features), np.stack(labels)


def frequent(labels: np.ndarray) -> int:
    values, counts = np.unique(labels, return_counts=True)
    return values[counts.argmax()]


def nearest_labels(x, labels, queries, k: int, distance: str, other: int) -> np.ndarray:
    kept = np.array([frequent(own) != other for own in labels])
    x, labels = x[kept].astype(np.float64), labels[kept]
    found = []
    for query in queries.astype(np.float64):
        if distance == "cosine":
            far = 1 - x @ query / np.linalg.norm(x, axis=1) / np.linalg.norm(query)
        else:
            far = np.linalg.norm(x - query, axis=1)
        neighbors = labels[np.argsort(far, kind="stable")[:k]]
        found.append([frequent(pixel) for pixel in neighbors.T])
    return np.array(found)


def miou(truth: np.ndarray, predicted: np.ndarray, other: int) -> float:
    scored = truth != other
    return 100 * jaccard_score(truth[scored], predicted[scored], average="macro")


@pytest.mark.parametrize(("dataset", "other"), [("ade20k", 0), ("voc2012", 255)])
def test_the_task_is_its_description(root: Path, tmp_path: Path, dataset: str, other: int) -> None:
    encoder = tiny_encoder(patch_size=PATCH)
    env = Env(root, tmp_path)
    result = knn_segmentation.run(encoder, replace(DEMO, dataset=dataset), env)
    assert env.notes["sizes"][f"{dataset}_training"] == {"images": 20, "classes": 7 if dataset == "ade20k" else 21}
    x, labels = transcribed(root, encoder, "training", dataset)
    test, truth = transcribed(root, encoder, "validation", dataset)
    patches = (SIDE // PATCH) ** 2
    order = np.random.default_rng(seed_of(0, "tenth")).permutation(20)
    of = lambda pictures: np.concatenate([np.arange(patches) + one * patches for one in pictures])  # noqa: E731
    tenth, others = of(order[:2]), of(order[2:])
    scaler = StandardScaler().fit(x[others])
    x, test = scaler.transform(x), scaler.transform(test)
    tried = {
        (k, distance): miou(
            labels[tenth], nearest_labels(x[others], labels[others], x[tenth], k, distance, other), other
        )
        for distance in DEMO.distances
        for k in DEMO.neighbors
    }
    said = env.notes["protocol"]
    assert said["miou there"] == pytest.approx({f"{k}, {distance}": value for (k, distance), value in tried.items()})
    k, distance = max(tried, key=lambda pair: tried[pair])
    assert (said["k"], said["distance"]) == (k, distance)
    predicted = nearest_labels(x, labels, test, k, distance, other)
    assert result["miou"] == pytest.approx(miou(truth, predicted, other))
    assert result["aacc"] == pytest.approx(100 * (truth == predicted)[truth != other].mean())
    assert env.notes["standard_error"]["miou"] > 0 and len(env.notes["resamples"]["miou"]) == 200


def test_neighbors_are_the_same_in_blocks_of_any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    tokens, labels = torch.randn(500, 16, generator=generator), torch.randint(0, 4, (500, 9), generator=generator)
    whole = patch_neighbors.Patches(tokens, labels.to(torch.uint8), 10, torch.arange(500))
    train, test = whole.of(np.arange(5, 50)), whole.of(np.arange(5))
    expected = {
        distance: patch_neighbors.predict(train, test, (1, 7), distance, "cpu") for distance in ("cosine", "l2")
    }
    far = torch.cdist(tokens[:50], tokens[50:])
    assert torch.equal(expected["l2"][1], labels[50:][far.argmin(dim=1)].to(torch.uint8))
    monkeypatch.setattr(patch_neighbors, "QUERIES", 7)
    monkeypatch.setattr(patch_neighbors, "KEYS", 31)
    for distance, found in expected.items():
        again = patch_neighbors.predict(train, test, (1, 7), distance, "cpu")
        assert all(torch.equal(again[k], found[k]) for k in (1, 7))
    few = patch_neighbors.predict(whole.of(np.arange(5, 6)), test, (30,), "cosine", "cpu")[30]
    assert torch.equal(few, labels[50:60].to(torch.uint8).mode(dim=0).values.expand(50, 9)), "ten are all there are"


def test_what_is_no_class_is_not_scored_but_may_be_predicted() -> None:
    labels = torch.tensor([[1, 1, 0, 0], [2, 2, 2, 1]], dtype=torch.uint8)
    patches = patch_neighbors.Patches(torch.zeros(2, 1), labels, 1, torch.arange(2))
    predicted = torch.tensor([[1, 0, 2, 2], [2, 2, 1, 1]], dtype=torch.uint8)
    counts = patch_neighbors.pixels_met(predicted, patches)
    # class 1: right 2, predicted 3, there 3; class 2: 2, 2, 3; "other": predicted once, which counts as a class
    assert patch_neighbors.scores(counts.sum(axis=0)) == pytest.approx(
        {"miou": 100 * (0 + 2 / 4 + 2 / 3) / 3, "aacc": 100 * 4 / 6}
    )


def test_the_memory_that_it_is_said_to_need_follows_the_patches() -> None:
    spec = tiny_encoder(patch_size=PATCH).spec
    few, many = (knn_segmentation.cost(DEMO, spec, lambda part, n=n: n).memory for n in (20, 20_000))
    assert 0 < few < 0.1 and many == pytest.approx(3.0, abs=0.1)
    assert patch_neighbors.KEYS == 262_144, "the plan knows the number too"


def test_what_cannot_be_measured_is_said(root: Path, tmp_path: Path) -> None:
    with pytest.raises(Skip, match="this encoder is no ViT"):
        knn_segmentation.run(tiny_resnet(), DEMO, Env(root, tmp_path))
    with pytest.raises(UserError, match="img_size 60 is no multiple of the patch size 8"):
        knn_segmentation.run(tiny_encoder(patch_size=PATCH), replace(DEMO, img_size=60), Env(root, tmp_path))
    with pytest.raises(UserError, match="two are needed"):
        knn_segmentation.run(tiny_encoder(patch_size=PATCH), DEMO, Env(root, tmp_path, limit=1))
