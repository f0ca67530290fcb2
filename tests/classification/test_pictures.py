"""The pictures of the ImageNet tasks show what the task found."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from evaluate import knn
from evaluate.classification import features, pictures
from evaluate.classification.neighbors import unit_features
from evaluate.data import drawing
from evaluate.data.imagenet import train_set, val_set
from evaluate.data.transforms import CenterCrop
from evaluate.encoder.model import Maps, Tokens
from evaluate.runtime.env import Env
from results.predictions import Answers
from tests.factories import class_token_vit, resnet
from tests.worlds import write_world

CROP = CenterCrop(32, 32, "bicubic")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_world(tmp_path_factory.mktemp("world"), train=8, val=4)


def index(folder: Path, kind: str) -> list[dict[str, str]]:
    return json.loads((folder / f"pictures/{kind}.json").read_text())["pictures"]


def test_the_surest_mistakes_come_first_each_pair_once(data: Path, tmp_path: Path) -> None:
    val = val_set(data)
    left_out = np.array([1])
    labels = np.delete(val.labels, left_out)
    said = labels.copy()
    sure = np.full(len(labels), 0.9)
    for place, other, probability in ((0, 2, 0.5), (1, 2, 0.75), (5, 3, 1.0), (14, 0, 0.6), (9, 1, 0.4)):
        said[place], sure[place] = other, probability
    answers = Answers(labels, said[:, None], sure[:, None], left_out)
    pictures.mistakes(tmp_path, val, answers, CROP)
    found = index(tmp_path, "mistakes")
    names = val.classes
    assert [entry["caption"] for entry in found] == [
        f"said {names[3]} (100 %), is {names[1]}",
        f"said {names[2]} (75 %), is {names[0]}",  # the less sure of two that said so is left out
        f"said {names[0]} (60 %), is {names[3]}",
        f"said {names[1]} (40 %), is {names[2]}",
    ]
    rows = [6, 2, 15, 10]  # the places above, behind the image that was left out
    assert [entry["subject"] for entry in found] == [f"{names[val.labels[r]]}/{val.files[r].name}" for r in rows]
    for entry, row in zip(found, rows, strict=True):
        with Image.open(tmp_path / "pictures" / entry["file"]) as shown, Image.open(val.files[row]) as own:
            assert np.abs(np.asarray(shown.resize((8, 8), 4)) - np.asarray(own.resize((8, 8), 4), float)).mean() < 8


@pytest.mark.parametrize("made", [class_token_vit, resnet])
def test_neighbors_and_patches(made, data: Path, tmp_path: Path) -> None:
    encoder, env = made(), Env(data, tmp_path / "row/knn")
    env.out_dir.mkdir(parents=True)
    knn.run(encoder, knn.PRESETS["demo"], env)
    found = index(env.out_dir, "neighbors")
    assert [entry["part"] for entry in found] == ["image", "result"] * 6
    sets = train_set(data), val_set(data)
    pooling = features.resolve_pooling(encoder, None)
    train, val = (features.extract(encoder, images, CROP, env) for images in sets)
    near, far = (unit_features(part, encoder, pooling, "cpu") for part in (train, val))
    rows = [(2 * place + 1) * 16 // 12 for place in range(6)]
    for place, row in enumerate(rows):
        query, result = found[2 * place : 2 * place + 2]
        name = sets[1].classes[sets[1].labels[row]]
        assert query["subject"] == result["subject"] == f"{name}/{sets[1].files[row].name}"
        assert query["caption"] == name
        nearest = (near @ far[row]).topk(4).indices.numpy()
        told = ", ".join(sets[0].classes[label] for label in sets[0].labels[nearest])
        assert result["caption"].endswith(f"nearest: {told}")
        assert (", right;" in result["caption"]) == (f"said {name}," in result["caption"])
        with Image.open(env.out_dir / "pictures" / result["file"]) as sheet:
            for number, other in enumerate(nearest):
                border = np.array(sheet.getpixel((120 * (number % 2) + 2, 120 * (number // 2) + 60)), int)
                right = sets[0].labels[other] == sets[1].labels[row]
                green, red = (np.abs(border - color).sum() for color in (drawing.RIGHT, drawing.WRONG))
                assert (green < red) == right
    patches = index(env.out_dir, "patches")
    assert [entry["part"] for entry in patches] == ["image", "result"] * 6
    assert [entry["subject"] for entry in patches] == [entry["subject"] for entry in found]


def test_principal_colors_tell_parts_apart_and_do_not_depend_on_the_axes() -> None:
    draw = np.random.default_rng(0)
    values = draw.normal(0, 0.05, (2, 4, 4, 10))
    values[:, :, 2:, 0] += 3  # the right half differs most
    values[1, :2, :, 1] += 1
    colors = pictures.principal_colors(values)
    assert (
        np.ptp(colors[:, :, :2, 0]) < 60 and np.abs(colors[:, :, 2:, 0].astype(int) - colors[:, :, :2, 0]).min() > 150
    )
    rotation, _ = np.linalg.qr(draw.normal(size=(10, 10)))
    assert np.abs(pictures.principal_colors(values @ rotation).astype(int) - colors).max() <= 1
    rare = draw.normal(0, 0.05, (1, 8, 8, 10))
    rare[0, :2, :3, 0] += 3  # what is rare is bright, however the axes lie
    for _ in range(10):
        rotation, _ = np.linalg.qr(draw.normal(size=(10, 10)))
        assert pictures.principal_colors(rare @ rotation)[0, :2, :3, 0].min() > 200
    assert pictures.principal_colors(np.zeros((1, 1, 1, 2))).shape == (1, 1, 1, 3)  # a map of one place


def test_tokens_lie_row_by_row() -> None:
    tokens = torch.arange(12.0).reshape(1, 4, 3) ** 2
    found = pictures.grid(Tokens(None, tokens))
    assert np.allclose(found[0, 1, 0], torch.nn.functional.layer_norm(tokens[0, 2], (3,)), atol=1e-4)
    maps = torch.arange(12.0).reshape(1, 3, 2, 2)
    assert (pictures.grid(Maps(maps))[0, 1, 0] == [2, 6, 10]).all()
