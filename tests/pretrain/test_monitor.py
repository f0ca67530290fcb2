"""The online measures see a collapse, know classes, and change nothing."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from pretrain import monitor
from pretrain.data.images import ImageFolder
from pretrain.methods import mae, siameseim

SMALL = {"embed_dim": 24, "num_heads": 2, "depth": 1, "decoder_embed_dim": 24, "decoder_num_heads": 2}
CONFIG = replace(siameseim.DEMO, **SMALL, predictor_depth=1)


@pytest.fixture
def folder(tmp_path):
    """Two classes that differ in brightness, images of several sizes."""
    for label, level in (("dark", 40), ("bright", 200)):
        (tmp_path / label).mkdir()
        for i in range(12):
            noise = np.random.default_rng(i).integers(0, 30, (30 + i, 40, 3))
            Image.fromarray((level + noise).astype(np.uint8)).save(tmp_path / label / f"{i}.png")
    return tmp_path


@pytest.mark.parametrize("method", [siameseim, mae])
def test_it_knows_classes_and_moves_nothing(folder, method):
    torch.manual_seed(0)
    model = method.build(replace(method.DEMO, **SMALL)).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = torch.get_rng_state()
    found = monitor.Monitor(ImageFolder(folder), CONFIG).measure(model, "cpu")
    assert found["knn_top1"] == 100 and 1 <= found["feature_rank"] <= 24 and not monitor.is_collapsed(found)
    assert model.training and torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_collapsed_encoder_is_seen(folder):
    model = siameseim.build(CONFIG)
    with torch.no_grad():
        for parameter in model.online.blocks.parameters():
            parameter.zero_()
        model.online.patch_embed.proj.weight.zero_()
    found = monitor.Monitor(ImageFolder(folder), CONFIG).measure(model, "cpu")
    assert monitor.is_collapsed(found) and found["feature_spread"] < 1e-3


def test_labels_without_meaning_are_guessed(folder):
    measured = monitor.leave_one_out(
        torch.randn(400, 16, generator=torch.Generator().manual_seed(0)), torch.arange(400) % 4
    )
    assert 15 < measured < 35


def test_images_of_one_folder_have_no_accuracy(folder):
    found = monitor.Monitor(ImageFolder(folder / "dark"), CONFIG).measure(siameseim.build(CONFIG), "cpu")
    assert set(found) == {"feature_rank", "feature_spread"}


def test_rank_and_spread_have_their_known_values():
    even = torch.cat([torch.eye(8), -torch.eye(8)])
    assert monitor.effective_rank(even) == pytest.approx(8, rel=1e-5)
    assert monitor.effective_rank(even[:, :1] * torch.ones(8)) == pytest.approx(1, rel=1e-4)
    assert monitor.spread(torch.randn(4000, 16, generator=torch.Generator().manual_seed(0))) == pytest.approx(
        1, rel=0.02
    )
    assert monitor.spread(torch.ones(10, 16)) == pytest.approx(0, abs=1e-6)
