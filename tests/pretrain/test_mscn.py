"""Masks of Masked Siamese ConvNets: their shares, that channels differ, and that nothing else is touched."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

import run_all
from evaluate import encoder
from evaluate.checkpoints import conversion, export
from evaluate.data import toy
from pretrain import train
from pretrain.data import loader, views
from pretrain.data.augment import gaussian_blur
from pretrain.data.images import Sample
from pretrain.methods import mscn, simclr

CONFIG = replace(mscn.PRESETS["demo"], img_size=64, mask_ratio=0.25, mask_grid=8, high_pass_sigma=0.0, batch_size=4)
REMARK = "after the description in arXiv 2206.07700; sizes are ours"


def view(count=4, size=64):
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(0))


def masked(config, number=0, epoch=0, index=range(4)):
    before = view(len(index), config.img_size)
    after = config.finish_view(before.clone(), number, epoch, np.array(index))
    return before, after, after != before


@pytest.mark.parametrize("ratio", [0.25, 0.5, 0.875])
def test_a_grid_hides_exactly_its_share_in_whole_cells(ratio):
    before, after, hidden = masked(replace(CONFIG, mask_ratio=ratio, focal_probability=0.0))
    cells = hidden.unfold(2, 8, 8).unfold(3, 8, 8).flatten(4)
    assert torch.equal(cells.all(4), cells.any(4))
    assert (hidden.float().mean((2, 3)) == ratio).all()
    assert torch.equal(after[~hidden], before[~hidden])
    assert any(not torch.equal(channels[0], channels[1]) for channels in hidden)
    assert not torch.equal(hidden[0], hidden[1])


def test_a_focal_mask_leaves_one_square_window():
    _, _, hidden = masked(replace(CONFIG, mask_ratio=0.75, focal_probability=1.0))
    corners = []
    for channel in (~hidden).flatten(0, 1):
        rows, columns = (channel.any(axis).nonzero().flatten() for axis in (1, 0))
        assert len(rows) == len(columns) == 32 and channel.sum() == 32**2  # a quarter of the pixels is left
        corners.append((int(rows[0]), int(columns[0])))
    assert len(set(corners)) > 8


def test_focal_masks_are_as_frequent_as_asked():
    _, _, hidden = masked(replace(CONFIG, focal_probability=0.3), index=range(600))
    side = 55  # pixels: the square root of three quarters of 64
    share = ((~hidden).sum((2, 3)) == side**2).float().mean()
    assert share == pytest.approx(0.3, abs=0.04)


def test_the_masked_places_hold_normal_noise():
    _, after, hidden = masked(replace(CONFIG, mask_ratio=0.5), index=range(64))
    noise = after[hidden]
    assert noise.mean() == pytest.approx(0, abs=0.01) and noise.std() == pytest.approx(1, abs=0.01)
    assert (noise**4).mean() == pytest.approx(3, abs=0.1)
    pixels = after[:, 0][hidden[:, 0] & hidden[:, 1]], after[:, 1][hidden[:, 0] & hidden[:, 1]]
    assert abs(np.corrcoef(*pixels)[0, 1]) < 0.02


def test_the_hash_is_that_of_all_other_draws():
    keys = np.array([0, 1, 2**53 - 1], dtype=np.uint64)
    steps = np.arange(1, 6, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    wanted = views._mix(keys[:, None] + steps)
    found = mscn.mix(torch.from_numpy(keys.astype(np.int64))[:, None] + mscn.WEYL * torch.arange(1, 6))
    assert np.array_equal(found.numpy().astype(np.uint64), wanted)


def test_a_mask_depends_on_seed_epoch_image_and_view_alone():
    config = replace(CONFIG, masked_views="both")
    _, whole, _ = masked(config)
    _, part, _ = masked(config, index=[2, 3])
    assert torch.equal(whole[2:] == view()[2:], part == view(2)) and not torch.equal(whole[2], whole[3])
    images = [torch.full((3, 64, 64), 100, dtype=torch.uint8)] * 4
    batch = views.augment(views.crop(images, np.arange(4), 0, config), 0, config)
    again = views.augment(views.crop(images[1:3], np.array([1, 2]), 0, config), 0, config)
    torch.testing.assert_close(batch.view1[1:3], again.view1)
    for other in (masked(config, epoch=1), masked(replace(config, seed=1)), masked(config, number=1)):
        assert not torch.equal(other[1], whole)


def test_the_second_view_is_masked_only_if_asked():
    assert not masked(CONFIG, number=1)[2].any()
    assert not masked(replace(CONFIG, high_pass_sigma=2.0), number=1)[2].any()
    assert masked(replace(CONFIG, masked_views="both"), number=1)[2].any()


def test_the_filter_takes_the_blur_away_before_the_mask():
    config = replace(CONFIG, high_pass_sigma=2.0)
    before, after, _ = masked(config)
    hidden = masked(CONFIG)[2]
    filtered = before - gaussian_blur(before, torch.full((4,), 2.0), reach=6)
    assert torch.equal(after[~hidden], filtered[~hidden]) and torch.equal(after[hidden], masked(CONFIG)[1][hidden])
    flat = torch.full((1, 3, 64, 64), 0.7)
    assert replace(config, mask_ratio=0.0).finish_view(flat, 0, 0, np.array([0])).abs().max() < 1e-6


def test_without_filter_and_mask_it_is_simclr_bit_for_bit(monkeypatch):
    plain = replace(simclr.PRESETS["demo"], batch_size=4)
    config = replace(mscn.PRESETS["demo"], batch_size=4, mask_ratio=0.0, high_pass_sigma=0.0)
    images = [torch.randint(0, 255, (3, 40, 48), dtype=torch.uint8)] * 4
    found = []
    for method, given in ((simclr, plain), (mscn, config)):
        torch.manual_seed(0)
        batch = views.augment(views.crop(images, np.arange(4), 0, given), 0, given)
        out = method.build(given)(batch)
        found.append((batch.view1, batch.view2, out.loss))
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(*found, strict=True))


def test_the_loader_gives_the_same_views_with_any_number_of_workers():
    class Noise:
        def __len__(self):
            return 8

        def __getitem__(self, index):
            return Sample(torch.full((3, 40, 48), 20 * index, dtype=torch.uint8), index, {})

    config = replace(CONFIG, img_size=32, epochs=1, high_pass_sigma=3.0)
    one, two = (
        [views.augment(step.micro[0], step.epoch, config).view1 for step in loader.steps_from(Noise(), 0, 4, config, n)]
        for n in (0, 2)
    )
    assert len(one) == 2 and all(torch.equal(mine, other) for mine, other in zip(one, two, strict=True))


def test_its_row_says_that_the_sizes_are_ours(tmp_path, capsys):
    world = toy.World(
        **{"unlabelled_per_class": 1, "train_per_class": 3, "val_per_class": 2, "list_per_class": 1},
        **{"shifted_per_class": 1, "corrupted_per_class": 1},
    )
    root = toy.make(tmp_path, world)
    saved = train.initialize(replace(mscn.PRESETS["demo"], block="bottleneck", width_per_group=4), tmp_path / "run")
    assert REMARK in str(conversion.convert(saved, tmp_path / "encoder.safetensors"))
    export.export(encoder.load(tmp_path / "encoder.safetensors"), "torchvision", tmp_path / "resnet.pth")
    conversion.convert(tmp_path / "resnet.pth", tmp_path / "again.safetensors")
    for name in ("encoder", "again"):
        assert encoder.load(tmp_path / f"{name}.safetensors").spec.remark.endswith(REMARK)
    content = torch.load(saved, weights_only=True)
    content["config"]["remark"] = "a\x1b[31mred\x1b]0;title\x07 word"  # of a file from elsewhere
    torch.save(content, tmp_path / "hostile.pth")
    assert "\x1b" not in str(conversion.convert(tmp_path / "hostile.pth", tmp_path / "hostile.safetensors"))
    command = ["--ckpt", f"ours={saved}", "--data-root", str(root), "--tasks", "knn", "--preset", "demo"]
    command += ["--device", "cpu", "--workers", "0", "--out", str(tmp_path / "out")]
    assert run_all.main(command) == 0
    assert f"ours: pretrained {REMARK}" in (tmp_path / "out/table.md").read_text()
    (entry,) = [json.loads(path.read_text()) for path in (tmp_path / "out/records").glob("*.json")]
    assert entry["encoder_source"]["remark"].endswith(REMARK)
