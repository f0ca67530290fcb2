"""The method: its golden numbers, its loss beside a naive loop, its moving average."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from evaluate.runtime.errors import UserError
from pretrain import parity
from pretrain.data import views
from pretrain.geometry import relative_positions
from pretrain.methods import configure, siameseim
from pretrain.methods.siameseim import DEMO, PAPER

GOLDEN = Path(__file__).parents[1] / "golden"
FILES = sorted(GOLDEN.glob("siameseim_step_*.json"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_step_equals_the_official_numbers(path, capsys):
    assert parity.main([str(path)]) == 0
    assert "gradients" in capsys.readouterr().out


@pytest.mark.parametrize("change", ["loss", "pred", "target_before_norm", "relative_pos_embed"])
def test_parity_sees_a_changed_number(change, tmp_path, capsys):
    golden = json.loads(FILES[0].read_text())
    if change == "loss":
        golden["expected"]["loss"] *= 1 + 1e-4
    else:
        golden["expected"][change]["value"][3] += 1e-3
    changed = tmp_path / "changed.json"
    changed.write_text(json.dumps(golden))
    assert parity.main([str(changed)]) == 1
    assert "TOO LARGE" in capsys.readouterr().out


def test_parity_takes_several_files(capsys):
    assert parity.main([str(path) for path in FILES]) == 0
    printed = capsys.readouterr().out
    assert all(str(path) in printed for path in FILES) and printed.count("gradients") == len(FILES) == 2


def test_parity_names_a_file_it_cannot_use(tmp_path, capsys):
    path = tmp_path / "other.json"
    path.write_text('{"config": {}}')
    assert parity.main([str(path)]) == 2
    assert str(path) in capsys.readouterr().err


def test_loss_equals_the_naive_loop_in_value_and_gradient():
    generator = torch.Generator().manual_seed(0)
    p = torch.randn(2, 5, 8, generator=generator, dtype=torch.float64).requires_grad_()
    t = torch.randn(2, 5, 8, generator=generator, dtype=torch.float64)
    rows, targets = p.reshape(-1, 8), t.reshape(-1, 8)
    total = torch.zeros((), dtype=torch.float64)
    for row, target in zip(rows, targets, strict=True):
        total = (
            total + (row - target).square().sum() + 0.3 * sum((row @ other) ** 2 for other in targets) / len(targets)
        )
    naive = total / len(rows) / 8
    (expected,) = torch.autograd.grad(naive, p)
    loss = siameseim.unigrad_loss(p, t, 0.3)
    (gradient,) = torch.autograd.grad(loss, p)
    assert loss.item() == pytest.approx(naive.item(), rel=1e-6)
    torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("momentum", [0.0, 1.0, 0.9])
def test_moving_average(momentum):
    model = siameseim.build(DEMO)
    with torch.no_grad():
        for parameter in model.online.parameters():
            parameter.add_(1.0)
    before = [p.clone() for p in model.target.parameters()]
    model.update_target(momentum)
    for old, new, online in zip(before, model.target.parameters(), model.online.parameters(), strict=True):
        torch.testing.assert_close(new, momentum * old + (1 - momentum) * online)


def test_only_the_online_side_learns_and_the_papers_patch_embedding_is_frozen():
    small = replace(DEMO, train_patch_embed=PAPER.train_patch_embed)
    model = siameseim.build(small)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained and not any(name.startswith(("target.", "online.patch_embed")) for name in trained)


def test_official_names_round_trip():
    model = siameseim.build(DEMO)
    state = model.state_dict()
    official = siameseim.to_official(state)
    assert {
        "mm_blocks.0.attn.qkv.weight",
        "mm_projector_decoder_blocks.0.norm1.bn.weight",
        "decoder_pos_mlp.bias",
    } <= official.keys()
    back = siameseim.from_official(official, list(state))
    assert all(back[name] is state[name] for name in state)
    official["surprise"] = official.pop("cls_token")
    with pytest.raises(ValueError, match=r"missing \['cls_token'\], unexpected \['surprise'\]"):
        siameseim.from_official(official, list(state))


def test_the_papers_run():
    assert (PAPER.lr, PAPER.num_patches, PAPER.epochs, PAPER.num_masked) == (1e-3, 196, 1600, 118)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"num_masked": 0}, "num_masked 0"),
        ({"num_masked": 16}, "num_masked 16"),
        ({"img_size": 30}, "not a multiple of patch_size 8"),
        ({"num_heads": 5}, "num_heads 5"),
        ({"decoder_num_heads": 5}, "decoder_num_heads 5"),
        ({"embed_dim": 42}, "embed_dim must be a multiple of 4"),
        ({"crop_scale": (0.5, 0.2)}, "crop_scale"),
        ({"jitter": (0.4, 0.4, 0.2, 0.6)}, "hue"),
    ],
)
def test_contradictions_are_refused(wrong, says):
    with pytest.raises(ValueError, match=says):
        replace(DEMO, **wrong)


@pytest.mark.parametrize(
    "wrong",
    [
        "num_masked=0",
        "img_size=30",
        "num_heads=5",
        "projector_norm=none",
        "predictor_norm=group",
        "precision=int8",
        "momentum=2",
    ],
)
def test_a_value_that_is_not_legal_is_named(wrong):
    name, value = wrong.split("=")
    with pytest.raises(UserError, match=f"{name}.*{value}"):
        configure("demo", [wrong])


def test_config_has_no_mutable_values():
    assert all(not isinstance(value, list | dict) for value in vars(PAPER).values())


def two_views(**settings):
    """The batch of eight images of noise, with a seed of its own for nothing but the settings."""
    config = replace(DEMO, **settings)
    images = [
        torch.randint(0, 255, (3, 40, 48), dtype=torch.uint8, generator=torch.Generator().manual_seed(i))
        for i in range(8)
    ]
    return config, views.augment(views.crop(images, np.arange(8), 0, config), 0, config)


def test_the_target_may_be_the_same_view():
    plain = {"gray_probability": 0.0, "blur_probability": (0.0, 0.0), "jitter_probability": 0.0}
    _, other = two_views(**plain)
    config, same = two_views(**plain, target_view="same")
    assert torch.equal(same.view1, same.view2) and torch.equal(same.view1, other.view1)
    assert not torch.equal(other.view1, other.view2)
    rows, columns = relative_positions(same.geometry, config.grid_size)
    cells = torch.arange(config.num_patches)
    assert torch.allclose(rows, (cells // config.grid_size).float().expand_as(rows), atol=1e-5)
    assert torch.allclose(columns, (cells % config.grid_size).float().expand_as(columns), atol=1e-5)
    _, colored = two_views(target_view="same")
    assert not torch.equal(colored.view1, colored.view2), "the colors of the two are drawn apart"


def test_the_colors_of_the_masked_view_may_stay():
    _, kept = two_views(target_view="same", masked_view_colors=False)
    _, plain = two_views(gray_probability=0.0, blur_probability=(0.0, 0.0), jitter_probability=0.0)
    _, both = two_views(target_view="same")
    torch.testing.assert_close((kept.view1, kept.view2), (plain.view1, both.view2), rtol=1e-6, atol=1e-6)


def test_random_masks_hide_as_many_patches_and_no_blocks():
    for name, adjacent in (("random", (0.30, 0.41)), ("block", (0.47, 0.60))):
        config = replace(PAPER, mask=name)
        masks = config.draw_mask(0, np.arange(60))
        assert (masks.sum(1) == PAPER.num_masked).all() and np.array_equal(config.draw_mask(0, np.arange(60)), masks)
        grids = masks.reshape(-1, 14, 14)
        low, high = adjacent  # (118 / 196) ** 2 is 0.36
        assert low < (grids[:, :, 1:] & grids[:, :, :-1]).mean() < high, name


def test_the_weights_add_the_dense_and_the_global_loss():
    generator = torch.Generator().manual_seed(0)
    prediction, target = torch.randn(2, 3, 16, 48, generator=generator)
    losses = {}
    for weights in ((1.0, 0.0), (0.0, 1.0), (2.0, 3.0)):
        config = replace(DEMO, dense_weight=weights[0], global_weight=weights[1])
        losses[weights] = siameseim.build(config).loss(prediction, target)
    normal = siameseim.normalize(target)
    means = prediction.mean(1, keepdim=True), normal.mean(1, keepdim=True)
    assert torch.equal(losses[1.0, 0.0], siameseim.unigrad_loss(prediction, normal, DEMO.neg_weight))
    assert torch.equal(losses[0.0, 1.0], siameseim.unigrad_loss(*means, DEMO.neg_weight))
    torch.testing.assert_close(losses[2.0, 3.0], 2 * losses[1.0, 0.0] + 3 * losses[0.0, 1.0])
    with pytest.raises(UserError, match="both 0"):
        configure("demo", ["dense_weight=0"])
