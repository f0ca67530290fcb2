"""MAE: its golden numbers, what it hides, its loss beside a naive loop, its run and its checkpoint."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from evaluate.runtime.errors import UserError
from pretrain import methods, parity, preview
from pretrain.data import views
from pretrain.methods import configure, mae, siameseim, simsiam
from pretrain.methods.mae import DEMO as MAE_DEMO
from pretrain.methods.mae import PAPER as MAE_PAPER

FILES = sorted((Path(__file__).parents[1] / "golden").glob("mae_step_*.json"))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_step_equals_the_official_numbers(path, capsys):
    assert parity.main([str(path)]) == 0
    assert "gradients" in capsys.readouterr().out


def test_both_golden_files_are_there():
    assert len(FILES) == 2


@pytest.mark.parametrize("change", ["loss", "mask", "pred", "decoder_pos_embed", "grads", "no_grad"])
def test_parity_sees_a_changed_number(change, tmp_path, capsys):
    golden = json.loads(FILES[0].read_text())
    expected = golden["expected"]
    if change == "loss":
        expected["loss"] *= 1 + 1e-4
    elif change == "mask":
        expected["mask"][1][0] = 1 - expected["mask"][1][0]
    elif change == "grads":
        sample = expected["grads"]["decoder_blocks.1.mlp.fc2.weight"]["value"]
        sample[2] += 1e-3 * max(map(abs, sample))
    elif change == "no_grad":
        expected["no_grad"].append("cls_token")
    else:
        expected[change]["value"][3] += 1e-3
    changed = tmp_path / "changed.json"
    changed.write_text(json.dumps(golden))
    assert parity.main([str(changed)]) == 1
    assert capsys.readouterr().out.count("TOO LARGE") == 1


def test_exactly_the_stated_share_is_hidden_where_the_noise_is_largest():
    noise = torch.rand(5, 196, generator=generator())
    visible, mask = mae.random_mask(noise, MAE_PAPER.num_visible)
    assert visible.shape == (5, 49) and (mask.sum(1) == 147).all()
    for row in range(5):
        assert noise[row][~mask[row]].max() < noise[row][mask[row]].min()
        assert set(visible[row].tolist()) == set((~mask[row]).nonzero()[:, 0].tolist())


def test_patches_hold_their_own_pixels():
    images = torch.arange(2 * 3 * 8 * 8).float().view(2, 3, 8, 8)
    patches = mae.patchify(images, 4)
    assert patches.shape == (2, 4, 48)
    torch.testing.assert_close(patches[1, 2].view(4, 4, 3), images[1, :, 4:, :4].permute(1, 2, 0))


def test_loss_equals_the_naive_loop():
    prediction, pixels = torch.randn(2, 2, 5, 12, generator=generator(), dtype=torch.float64)
    mask = torch.tensor([[1, 0, 1, 1, 0], [0, 1, 1, 0, 1]]).bool()
    total, count = 0.0, 0
    for image, patch in mask.nonzero().tolist():
        values = pixels[image, patch].numpy()
        target = (values - values.mean()) / np.sqrt(values.var(ddof=1) + 1e-6)
        total, count = total + ((prediction[image, patch].numpy() - target) ** 2).mean(), count + 1
    assert mae.masked_loss(prediction, mae.normalize(pixels), mask).item() == pytest.approx(total / count, rel=1e-6)


def test_hidden_pixels_do_not_reach_the_prediction():
    model = mae.build(MAE_DEMO)
    images, noise = torch.randn(2, 3, 32, 32, generator=generator()), torch.rand(2, 16, generator=generator())
    before = model.reconstruct(images, noise)
    hidden = before.mask.view(2, 1, 4, 4).repeat_interleave(8, -1).repeat_interleave(8, -2)
    assert torch.equal(model.reconstruct(torch.where(hidden, 7.0, images), noise).prediction, before.prediction)
    assert not torch.equal(model.reconstruct(torch.where(hidden, images, 7.0), noise).prediction, before.prediction)


def test_noise_depends_on_seed_epoch_and_image_alone():
    images = [torch.randint(0, 255, (3, 40, 48), dtype=torch.uint8, generator=generator(i)) for i in range(4)]

    def noise(index: list[int], epoch: int = 3, seed: int = 0) -> torch.Tensor:
        config = replace(MAE_DEMO, seed=seed)
        return views.augment(
            views.crop([images[i] for i in index], np.array(index), epoch, config), epoch, config
        ).noise

    whole = noise([0, 1, 2, 3])
    assert whole.shape == (4, 16) and len(whole.unique()) == 64
    assert torch.equal(noise([3, 1]), whole[[3, 1]])
    assert not torch.equal(noise([0, 1, 2, 3], epoch=4), whole) and not torch.equal(noise([0, 1, 2, 3], seed=1), whole)


def test_mask_noise_takes_nothing_from_the_augmentations():
    many = views.uniforms(0, 1, np.arange(3), 200)
    assert np.array_equal(many[:, :90], views.uniforms(0, 1, np.arange(3), 90))
    used = 2 * (views.CROP_DRAWS + views.COLOR_DRAWS)  # by two views' crops, flips and colors
    assert np.array_equal(
        views.patch_noise(0, 1, np.arange(3), 16), views.uniforms(0, 1, np.arange(3), used + 16)[:, used:]
    )


def test_what_a_method_does_not_use_is_not_drawn():
    images = [torch.zeros(3, 40, 48, dtype=torch.uint8)] * 2
    for config, made in (
        (siameseim.DEMO, (True, False, True)),
        (MAE_DEMO, (False, True, False)),
        (simsiam.DEMO, (False, False, False)),
    ):
        batch = views.augment(views.crop(images, np.arange(2), 0, config), 0, config)
        assert tuple(part is not None for part in (batch.mask, batch.noise, batch.geometry)) == made


def test_official_names():
    model = mae.build(MAE_DEMO)
    official = mae.to_official(model.state_dict())
    golden = json.loads(FILES[0].read_text())
    assert official.keys() == {key for key, *_ in golden["entries"]}
    back = mae.from_official(official, list(model.state_dict()))
    assert all(back[name] is tensor for name, tensor in official.items())
    official["surprise"] = official.pop("norm.bias")
    with pytest.raises(ValueError, match=r"missing \['norm.bias'\], unexpected \['surprise'\]"):
        mae.from_official(official, list(model.state_dict()))


def test_the_papers_run():
    assert MAE_PAPER.lr == pytest.approx(2.4e-3)
    assert (MAE_PAPER.decoder_depth, MAE_PAPER.decoder_embed_dim, MAE_PAPER.decoder_num_heads) == (8, 512, 16)
    assert (MAE_PAPER.epochs, MAE_PAPER.warmup_epochs, MAE_PAPER.clip_norm, MAE_PAPER.num_visible) == (
        1600,
        40,
        None,
        49,
    )
    with torch.device("meta"):
        values = sum(tensor.numel() for tensor in mae.build(MAE_PAPER).state_dict().values())
    block = {width: 12 * width**2 + 13 * width for width in (768, 512)}  # weights, then biases and norms
    encoder_values = 12 * block[768] + 768 * 768 + 768 + 198 * 768 + 2 * 768
    decoder_values = 8 * block[512] + 769 * 512 + 198 * 512 + 2 * 512 + 513 * 768
    assert values == encoder_values + decoder_values


@pytest.mark.parametrize("mask_ratio", [1.0, 0.0, 0.99])
def test_contradictions_are_refused(mask_ratio):
    with pytest.raises(ValueError, match="mask_ratio"):
        replace(MAE_DEMO, mask_ratio=mask_ratio)


@pytest.mark.parametrize(
    "wrong", ["mask_ratio=1.0", "mask_ratio=0.0", "mask_ratio=0.99", "clip_norm=0.0", "norm_pix_loss=1"]
)
def test_a_value_that_is_not_legal_is_named(wrong):
    with pytest.raises(UserError, match=wrong.partition("=")[0]):
        configure("mae_demo", [wrong])


def test_clipping_can_be_set_and_taken_away():
    assert configure("demo", ["clip_norm=null"]) == replace(siameseim.DEMO, clip_norm=None)
    assert configure("mae_demo", ["clip_norm=2"]) == replace(MAE_DEMO, clip_norm=2.0)
    assert siameseim.PAPER.clip_norm == 1.0
    with pytest.raises(UserError, match="setting 'epochs' is a whole number above 0, not None"):
        configure("mae_paper", ["epochs=null"])


def test_one_view_alone_is_cut_and_it_is_the_first_of_two(tmp_path):
    images = [torch.randint(0, 255, (3, 40, 48), dtype=torch.uint8, generator=generator(i)) for i in range(4)]
    one, two = (views.crop(images, np.arange(4), 0, config) for config in (MAE_DEMO, replace(MAE_DEMO, num_views=2)))
    assert one.view2 is None and torch.equal(one.view1, two.view1) and torch.equal(one.crop2, one.crop1)
    batch, of_two = (
        views.augment(crops, 0, config) for crops, config in ((one, MAE_DEMO), (two, replace(MAE_DEMO, num_views=2)))
    )
    assert batch.view2 is None and torch.equal(batch.view1, of_two.view1) and torch.equal(batch.noise, of_two.noise)
    model = methods.method_of(MAE_DEMO).build(MAE_DEMO)
    assert torch.equal(model(batch).loss, model(of_two).loss)
    for shown, columns in ((batch, 1), (of_two, 2)):
        preview.draw(shown, model.hidden(shown), MAE_DEMO, tmp_path / "batch.png")
        assert Image.open(tmp_path / "batch.png").size == (columns * preview.SIDE, 4 * preview.SIDE)


def test_siameseim_cannot_do_with_one_view():
    with pytest.raises(ValueError, match="num_views"):
        siameseim.build(replace(siameseim.DEMO, num_views=1))
    with pytest.raises(UserError, match="num_views"):
        configure("demo", ["num_views=1"])
    for preset in ("demo", "mae_demo"):
        with pytest.raises(UserError, match="from 1 to 2"):
            configure(preset, ["num_views=3"])
