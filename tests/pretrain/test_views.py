"""Crops, masks and colours; and where the geometry says a target token lies."""

from dataclasses import replace
from random import Random

import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as TF
from torch.utils.data._utils.pin_memory import pin_memory
from torchvision.transforms import v2

from evaluate.runtime import precision
from pretrain.data import augment, views
from pretrain.data.images import Sample
from pretrain.data.loader import Draws, Loaded
from pretrain.geometry import relative_geometry, relative_positions
from pretrain.methods import swav
from pretrain.methods.siameseim import DEMO, PAPER


@pytest.mark.parametrize("config", [PAPER, DEMO], ids=["paper", "demo"])
def test_masks_hide_exactly_the_stated_number_in_blocks(config):
    masks = np.stack(
        [views.block_mask(config.grid_size, config.num_masked, config.min_block, Random(i)) for i in range(50)]
    )
    assert (masks.sum(1) == config.num_masked).all()
    assert len({mask.tobytes() for mask in masks}) > 40
    if config is PAPER:  # cells of a block have masked neighbors far more often than single cells would
        grids = masks.reshape(-1, 14, 14)
        both = (grids[:, :, 1:] & grids[:, :, :-1]).mean()
        assert both > 0.47 > (118 / 196) ** 2


def test_crops_follow_torchvisions_distribution():
    draws = views.uniforms(0, 0, np.arange(4000), 4 * views.CROP_TRIES)
    ours = views.crop_boxes(draws, np.full(4000, 375), np.full(4000, 500), (0.08, 1.0)).astype(float)
    torch.manual_seed(0)
    image = torch.zeros(1, 375, 500)
    theirs = np.array(
        [list(v2.RandomResizedCrop.make_params(v2.RandomResizedCrop(224), [image]).values())[:4] for _ in range(4000)],
        float,
    )
    for column in range(4):
        for quantile in (0.1, 0.5, 0.9):
            a, b = np.quantile(ours[:, column], quantile), np.quantile(theirs[:, column], quantile)
            assert abs(a - b) < 0.05 * 500, (column, quantile, a, b)
    assert (ours[:, 0] + ours[:, 2] <= 375).all() and (ours[:, 1] + ours[:, 3] <= 500).all()


def test_an_image_that_no_crop_fits_gives_the_centre():
    draws = np.ones((1, 4 * views.CROP_TRIES)) * 0.999
    box = views.crop_boxes(draws, np.array([10]), np.array([1000]), (1.0, 1.0))[0]
    assert box.tolist() == [0, 493, 10, 13]


def test_colour_operations_equal_torchvisions():
    images = torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    shift = torch.linspace(-0.5, 0.5, 6)
    torch.testing.assert_close(
        augment.shift_hue(images.clone(), shift),
        torch.stack([TF.adjust_hue(i, s.item()) for i, s in zip(images, shift, strict=True)]),
    )
    blurred = augment.gaussian_blur(images, torch.full((6,), 0.7), reach=3)
    torch.testing.assert_close(blurred[..., 3:5, 3:5], TF.gaussian_blur(images, [7, 7], [0.7, 0.7])[..., 3:5, 3:5])
    draws, order = (np.array([row]).repeat(6, 0) for row in ([0.9, 0.2, 0.7, 0.6], [0, 1, 2, 3]))
    expected = TF.adjust_brightness(images, 1 + 0.4 * 0.8)
    expected = TF.adjust_contrast(expected, 1 + 0.4 * -0.6)
    expected = TF.adjust_hue(TF.adjust_saturation(expected, 1 + 0.2 * 0.4), 0.1 * 0.2)
    ours = augment.color_jitter(images.clone(), draws, order, (0.4, 0.4, 0.2, 0.1), np.ones(6, dtype=bool))
    torch.testing.assert_close(ours, expected, atol=2e-4, rtol=0)  # torchvision rounds the luma weights


def test_jitter_in_each_of_its_orders_equals_torchvisions_one_image_after_the_other():
    """All orders in one batch, between images that are left as they are."""
    random = np.random.default_rng(0)
    orders = random.permutation(np.repeat(augment.JITTER_ORDERS, 5, axis=0))
    draws, chosen = random.random((len(orders), 4)), random.random(len(orders)) < 0.7
    assert len(np.unique(orders[chosen], axis=0)) == 24
    images = torch.rand(len(orders), 3, 8, 8, generator=torch.Generator().manual_seed(0))
    images[:5, 1:] = images[:5, :1]  # gray ones have no hue
    strength = (0.4, 0.4, 0.2, 0.1)
    ours = augment.color_jitter(images.clone(), draws, orders, strength, chosen)
    assert torch.equal(ours[~chosen], images[~chosen])
    operations = (TF.adjust_brightness, TF.adjust_contrast, TF.adjust_saturation, TF.adjust_hue)
    for row in np.flatnonzero(chosen):
        expected = images[row]
        for number in orders[row]:
            amount = strength[number] * (2 * draws[row, number] - 1)
            expected = operations[number](expected, amount if number == 3 else 1 + amount)
        torch.testing.assert_close(ours[row], expected, atol=2e-4, rtol=0)  # torchvision rounds the luma weights


def test_an_image_is_augmented_alike_in_any_batch_and_differently_in_each_epoch():
    images = [
        torch.randint(0, 255, (3, 40, 48), dtype=torch.uint8, generator=torch.Generator().manual_seed(i))
        for i in range(6)
    ]
    whole = views.augment(views.crop(images, np.arange(6), 3, DEMO), 3, DEMO)
    part = views.augment(views.crop(images[4:], np.array([4, 5]), 3, DEMO), 3, DEMO)
    assert whole.noise is None  # MAE's; test_mae.py
    for name in ("view1", "view2", "mask"):
        torch.testing.assert_close(getattr(whole, name)[4:], getattr(part, name))
    other = views.augment(views.crop(images, np.arange(6), 4, DEMO), 4, DEMO)
    assert not torch.equal(whole.view1, other.view1)


def test_small_views_are_alike_in_any_batch_and_leave_the_large_ones_as_they_are():
    images = [
        torch.randint(0, 255, (3, 40, 48), dtype=torch.uint8, generator=torch.Generator().manual_seed(i))
        for i in range(6)
    ]
    config = swav.PRESETS["demo"]
    whole = views.augment(views.crop(images, np.arange(6), 3, config), 3, config)
    part = views.augment(views.crop(images[4:], np.array([4, 5]), 3, config), 3, config)
    assert whole.small.shape == (6, 2, 3, 24, 24)
    torch.testing.assert_close(whole.small[4:], part.small)
    assert not torch.equal(whole.small[:, 0], whole.small[:, 1])
    without = replace(config, small_views=0)
    large = views.augment(views.crop(images, np.arange(6), 3, without), 3, without)
    assert large.small is None and torch.equal(large.view1, whole.view1) and torch.equal(large.view2, whole.view2)


def test_small_views_see_their_share_of_the_image():
    """On an image whose pixel values are its coordinates: the area between a crop's ends, and how often it is
    flipped."""
    rows, columns = torch.meshgrid(torch.arange(200), torch.arange(200), indexing="ij")
    image = torch.stack([rows, columns, torch.zeros_like(rows)]).to(torch.uint8)
    config = replace(swav.PAPER, small_views=3, img_size=8)
    small = views.crop([image] * 300, np.arange(300), 0, config).small.flatten(0, 1).float()
    down = small[:, 0, -1].mean(-1) - small[:, 0, 0].mean(-1)
    across = small[:, 1, :, -1].mean(-1) - small[:, 1, :, 0].mean(-1)
    share = down * across.abs() / (200 - 1) ** 2
    assert 0.045 < share.min() < 0.06 and 0.13 < share.max() < 0.145
    assert share.mean() == pytest.approx(0.095, abs=0.004)
    assert (across < 0).float().mean() == pytest.approx(0.5, abs=0.06)


def test_relative_positions_point_at_the_pixels_that_the_target_sees():
    """On an image whose pixel values are its coordinates: the position given to each cell of view 2 is where view 1 has
    that pixel."""
    height, width = 150, 230
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    image = torch.stack([rows, columns, torch.zeros_like(rows)]).to(torch.uint8)
    config = replace(DEMO, img_size=64, crop_scale=(0.2, 0.9), num_masked=30)
    index = np.arange(96)
    crops = views.crop([image] * len(index), index, 0, config)
    geometry = relative_geometry(crops.crop1, crops.crop2, crops.flipped1, crops.flipped2, crops.image_width)
    y, x = relative_positions(geometry, config.grid_size)
    patch, side = config.patch_size, config.grid_size
    seen1, seen2 = (
        view[:, :2].float().unfold(2, patch, patch).unfold(3, patch, patch).mean((-1, -2))
        for view in (crops.view1, crops.view2)
    )
    checked = {(first, second): 0 for first in (False, True) for second in (False, True)}
    for i in range(len(index)):
        # Only cells between the centres of view 1's first and last cells: beyond them view 1 has nothing to compare
        # with.
        inside = (y[i] > 0) & (y[i] < side - 1) & (x[i] > 0) & (x[i] < side - 1)
        if not inside.any():
            continue
        # Bilinear look-up of view 1's own coordinates at the stated positions.
        grid = torch.stack([x[i] / (side - 1) * 2 - 1, y[i] / (side - 1) * 2 - 1], -1)[None, None]
        found = torch.nn.functional.grid_sample(seen1[i : i + 1], grid, align_corners=True)[0, :, 0]
        error = (found - seen2[i].flatten(1)).abs()[:, inside].max()
        assert error < 1.0, (i, error)  # pixels of 150 x 230; a wrong flip, side or scale is off by tens
        checked[bool(crops.flipped1[i]), bool(crops.flipped2[i])] += int(inside.sum())
    assert min(checked.values()) > 200, checked


@pytest.mark.parametrize("name", ["bicubic", "bilinear"])
def test_a_crop_is_resized_as_torchvision_does(name):
    image = torch.randint(0, 255, (3, 90, 110), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    config = replace(DEMO, interpolation=name, flip_probability=0.0)
    crops = views.crop([image], np.arange(1), 0, config)
    box, size = crops.crop1[0].tolist(), [config.img_size] * 2
    modes = {
        mode: v2.functional.resized_crop(image, *box, size, v2.InterpolationMode(mode))
        for mode in ("bicubic", "bilinear")
    }
    gaps = {mode: (crops.view1[0].int() - view.int()).abs().max() for mode, view in modes.items()}
    assert gaps[name] <= 1 < max(gaps.values()), gaps


def test_every_tensor_of_a_batch_is_pinned_for_the_gpu(monkeypatch):
    images = [Sample(torch.zeros(3, 40, 48, dtype=torch.uint8), index, {7: "damaged"}) for index in range(2)]
    pinned = []
    monkeypatch.setattr(
        torch.Tensor, "pin_memory", lambda tensor: pinned.append(tensor) or tensor
    )  # as without a GPU it cannot be
    loaded = pin_memory(Draws(images, DEMO)[0, [0, 1]])
    assert isinstance(loaded, Loaded) and loaded.damaged == {7: "damaged"}
    there = [tensor for tensor in loaded.crops if tensor is not None]
    assert len(there) == 9 and all(one is other for one, other in zip(pinned, there, strict=True))


def test_what_the_choices_are_made_from_stays_where_they_are_made():
    crops = views.crop([torch.zeros(3, 40, 48, dtype=torch.uint8)], np.arange(1), 0, DEMO).to("meta")
    there = {name for name, tensor in crops._asdict().items() if tensor is not None and tensor.device.type == "meta"}
    assert there == {"view1", "view2", "mask"}
    assert crops.index.device.type == crops.crop1.device.type == "cpu"


def test_a_gpu_may_not_shorten_the_products_of_colors(monkeypatch):
    """Not even in precision tf32, which goes on behind them."""
    seen = []
    matmul = torch.backends.cuda.matmul
    monkeypatch.setattr(views, "augment_images", lambda pixels, *_: seen.append(matmul.allow_tf32) or pixels.float())
    crops = views.crop([torch.zeros(3, 40, 48, dtype=torch.uint8)], np.arange(1), 0, DEMO)
    for allowed in (True, False):
        precision.allow_tf32(allowed)
        views.augment(crops, 0, DEMO)
        assert matmul.allow_tf32 == allowed
    assert seen == [False, False]
