"""On photographs, where a folder of them is given:

SIAMESE_EVAL_REAL_DATA=DIR uv run pytest -m real

DIR holds ``imagenet/`` with a few classes and, for the dense tasks, ``coco/`` and ``ade20k/``.
"""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from evaluate import detection, few_shot, knn, linear_probe, segmentation
from evaluate.checkpoints import conversion
from evaluate.data import check
from evaluate.data.imagenet import ImageSet, train_set, val_set
from evaluate.encoder import Encoder, load
from evaluate.runtime.env import Env
from tests.factories import tiny_encoder

FOLDER = os.environ.get("SIAMESE_EVAL_REAL_DATA")
pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(not FOLDER, reason="SIAMESE_EVAL_REAL_DATA names no folder of real images"),
]
DATA = Path(FOLDER or ".")
LIMIT = 100  # images of train and of val
SIDE, HALF = 224, 0.5  # timm's mean and std of the model are 0.5


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    torch.manual_seed(0)
    return timm.create_model("vit_tiny_patch16_224", num_classes=0, depth=4).eval()


@pytest.fixture(scope="module")
def encoder(model: torch.nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    folder = tmp_path_factory.mktemp("encoder")
    torch.save(model.state_dict(), folder / "vit.pth")
    return load(conversion.ensure(folder / "vit.pth", folder / "encoder.safetensors", normalize="half"), device="cpu")


def plain(model: torch.nn.Module, images: ImageSet, filter: Image.Resampling) -> tuple[Tensor, Tensor]:
    """The class token behind the last block, before and after the norm, of each image, by PIL and timm alone."""
    raw, normed = [], []
    for file in images.files:
        image = Image.open(str(file)).convert("RGB")
        scale = 256 / min(image.size)
        image = image.resize(tuple(int(scale * length + 1e-9) for length in image.size), filter)
        left, top = (round((length - SIDE) / 2) for length in image.size)
        pixels = np.asarray(image.crop((left, top, left + SIDE, top + SIDE)), np.float32) / 255
        with torch.inference_mode():
            x = model.patch_embed(torch.from_numpy((pixels - HALF) / HALF).permute(2, 0, 1)[None])
            x = model.blocks(model._pos_embed(x))
            raw.append(x[:, 0])
            normed.append(model.norm(x)[:, 0])
    return torch.cat(raw), torch.cat(normed)


@pytest.fixture(scope="module")
def sets() -> tuple[ImageSet, ImageSet]:
    return train_set(DATA, LIMIT), val_set(DATA, LIMIT)


@pytest.fixture(scope="module")
def bicubic(model: torch.nn.Module, sets: tuple[ImageSet, ImageSet]) -> list[tuple[Tensor, Tensor]]:
    return [plain(model, images, Image.Resampling.BICUBIC) for images in sets]


def env(folder: Path) -> Env:
    return Env(DATA, folder, limit=LIMIT)


def percent(predicted: Tensor, images: ImageSet) -> float:
    return 100 * float((predicted.numpy() == images.labels).mean())


def test_knn(encoder: Encoder, bicubic: list, sets: tuple[ImageSet, ImageSet], tmp_path: Path) -> None:
    (_, train), (_, val) = bicubic
    config = replace(knn.PRESETS["paper"], neighbors=(20,))
    found = knn.run(encoder, config, env(tmp_path))
    nearest = (F.normalize(val) @ F.normalize(train).T).topk(20)
    votes = torch.zeros(len(val), len(sets[0].classes), dtype=torch.float64)
    votes.scatter_add_(
        1, torch.from_numpy(sets[0].labels)[nearest.indices], (nearest.values / config.temperature).exp().double()
    )
    assert found["top1"] == pytest.approx(percent(votes.argmax(1), sets[1]), abs=1e-9)


def test_few_shot(encoder: Encoder, model: torch.nn.Module, sets: tuple[ImageSet, ImageSet], tmp_path: Path) -> None:
    """Softmax regression on raw class tokens, each minus its mean and over its norm, by L-BFGS."""
    config = replace(few_shot.PRESETS["paper"], fraction=1.0)
    found = few_shot.run(encoder, config, env(tmp_path))
    train, val = (plain(model, images, Image.Resampling.BILINEAR)[0].double() for images in sets)
    train, val = (F.normalize(rows - rows.mean(1, keepdim=True), dim=1) for rows in (train, val))
    weights = torch.zeros(len(sets[0].classes), train.shape[1], dtype=torch.float64, requires_grad=True)
    labels = torch.from_numpy(sets[0].labels)
    solver = torch.optim.LBFGS([weights], max_iter=2000, tolerance_grad=1e-10, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        solver.zero_grad()
        value = F.cross_entropy(train @ weights.T, labels) + config.l2 / len(labels) / 2 * weights.square().sum()
        value.backward()
        return value

    solver.step(loss)
    assert found["top1"] == pytest.approx(percent((val @ weights.T).argmax(1).detach(), sets[1]), abs=1e-9)


def test_linear_probe(encoder: Encoder, bicubic: list, sets: tuple[ImageSet, ImageSet], tmp_path: Path) -> None:
    """The head that the task has trained gives the task's accuracy on plain features."""
    config = replace(linear_probe.PRESETS["paper"], epochs=1, warmup_epochs=0, batch_size=50, micro_batch=50)
    found = linear_probe.run(encoder, replace(config, pooling="cls"), env(tmp_path))
    head = torch.load(tmp_path / "training_state.pt", weights_only=True)["head"]
    (mean, variance, weight, bias) = (
        next(value for name, value in head.items() if name.endswith(end))
        for end in ("running_mean", "running_var", "weight", "bias")
    )
    val = (bicubic[1][1] - mean) / (variance + 1e-6).sqrt()
    assert found["top1"] == pytest.approx(percent((val @ weight.T + bias).argmax(1), sets[1]), abs=1e-9)


def test_features(encoder: Encoder, model: torch.nn.Module, sets: tuple[ImageSet, ImageSet]) -> None:
    """Beside timm, on an image that is no noise: 1e-4 of the largest feature."""
    image = Image.open(str(sets[1].files[0])).convert("RGB").resize((SIDE, SIDE))
    pixels = torch.from_numpy((np.asarray(image, np.float32) / 255 - HALF) / HALF).permute(2, 0, 1)[None]
    with torch.inference_mode():
        reference = model.forward_features(pixels)
        ours = encoder.model.forward_features(pixels)
    assert (ours - reference).abs().max() <= 1e-4 * reference.abs().max()


@pytest.mark.skipif(not (DATA / "coco").is_dir(), reason="no coco/ below the folder")
def test_detection_trains_on_photographs(tmp_path: Path) -> None:
    config = replace(detection.PRESETS["demo"], iterations=4)
    found = detection.run(tiny_encoder(), config, Env(DATA, tmp_path, limit=8))
    assert 0 <= found["box_ap"] <= 100


@pytest.mark.skipif(not (DATA / "ade20k").is_dir(), reason="no ade20k/ below the folder")
def test_segmentation_trains_on_photographs(tmp_path: Path) -> None:
    config = replace(segmentation.PRESETS["demo"], iterations=4)
    found = segmentation.run(tiny_encoder(), config, Env(DATA, tmp_path, limit=8))
    assert 0 < found["miou"] <= 100


def test_the_check_says_what_is_less_than_published() -> None:
    found = check.check(DATA, ["imagenet", "coco", "ade20k"], samples=5, subset=True)
    assert {finding.status for finding in found} <= {"part", "absent"}, [str(finding) for finding in found]
    assert all("its cells are marked" in finding.detail for finding in found if finding.status == "part")
