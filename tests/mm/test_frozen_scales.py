"""DINOv2's second linear setup: four layers side by side, and the mean over several scales, each by hand."""

import dataclasses
import json
from pathlib import Path

import mmcv
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mmengine.optim import build_optim_wrapper

from evaluate import linear_segmentation
from evaluate.encoder.model import Encoder
from evaluate.harness import cost, plan
from evaluate.mm import recipes
from evaluate.mm.multi_scale import MultiScale
from evaluate.mm.segmenter import multi_scale_loader, set_crop
from evaluate.runtime.env import Env
from evaluate.runtime.errors import Skip
from tests.factories import tiny_encoder
from tests.linear_heads import CLASSES, batch, built, recipe

NAME = "linear_vit_multi_scale_40k_ade20k"
SETTINGS = dataclasses.replace(linear_segmentation.PRESETS["demo"], setup="multi_scale", iterations=2)


def four_layers(encoder: Encoder, images: torch.Tensor) -> torch.Tensor:
    """(B, 4 D, h, w): the tokens after each of the last four blocks, each after the last norm."""
    model, grid = encoder.model, images.shape[-1] // encoder.spec.patch_size
    layers = encoder.forward_blocks(images.float(), 4)
    tokens = [model.norm(layer.patches) for layer in layers]
    return torch.cat(tokens, 2).transpose(1, 2).unflatten(2, (grid, grid))


def test_the_head_sees_four_layers_each_after_the_last_norm() -> None:
    encoder = tiny_encoder(depth=5)
    cfg = recipe(encoder, NAME)
    cfg.model.backbone.img_size = (32, 32)
    model = built(encoder, cfg)
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        maps = model.backbone(images)
        assert len(maps) == 4 and model.decode_head.norm.num_features == 4 * encoder.spec.embed_dim
        assert torch.allclose(torch.cat(maps, 1), four_layers(encoder, images), atol=1e-5)


def test_a_step_is_batch_norm_of_the_layers_side_by_side_and_one_linear_layer() -> None:
    encoder = tiny_encoder(depth=4)
    cfg = recipe(encoder, NAME)
    cfg.model.backbone.img_size = (64, 64)
    model = built(encoder, cfg).double()
    images, samples = batch(64)
    with torch.no_grad():
        tokens = torch.cat(model.backbone(images.double()), 1)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    names = ("norm.weight", "norm.bias", "conv_seg.weight", "conv_seg.bias")
    scale, shift, weight, bias = (before[f"decode_head.{name}"].clone().requires_grad_() for name in names)
    assert weight.shape == (CLASSES, 4 * 48, 1, 1)
    mean, variance = tokens.mean((0, 2, 3), keepdim=True), tokens.var((0, 2, 3), correction=0, keepdim=True)
    normalized = (tokens - mean) / (variance + 1e-5).sqrt() * scale[:, None, None] + shift[:, None, None]
    small = torch.einsum("kd,bdhw->bkhw", weight[:, :, 0, 0], normalized) + bias[:, None, None]
    logits = F.interpolate(small, size=(64, 64), mode="bilinear", align_corners=False)
    labels = torch.cat([sample.gt_sem_seg.data for sample in samples])
    expected = F.cross_entropy(logits, labels, ignore_index=255, reduction="sum") / labels.numel()
    loss = model.loss(images.double(), samples)["decode.loss_ce"]
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    by_hand = torch.optim.AdamW([scale, shift, weight, bias], lr=1e-3, betas=(0.9, 0.999), weight_decay=1e-4)
    expected.backward()
    by_hand.step()
    build_optim_wrapper(model, cfg.optim_wrapper).update_params(loss)
    for name, value in zip(names, (scale, shift, weight, bias), strict=True):
        after = model.state_dict()[f"decode_head.{name}"]
        assert torch.allclose(after, value, rtol=0, atol=1e-7), name
        assert not torch.equal(after, before[f"decode_head.{name}"]), name


def slid(model, picture: torch.Tensor, side: int) -> torch.Tensor:
    """Logits (K, H, W) of a normalized picture: windows half their side apart, the last ones moved back inside; where
    several see a pixel, their mean.
    """
    height, width = picture.shape[1:]
    total, seen = torch.zeros(CLASSES, height, width), torch.zeros(height, width)
    for top in {min(step, max(height - side, 0)) for step in range(0, max(height - side // 2, 1), side // 2)}:
        for left in {min(step, max(width - side, 0)) for step in range(0, max(width - side // 2, 1), side // 2)}:
            place = slice(top, top + side), slice(left, left + side)
            window = picture[(slice(None), *place)]
            tokens = torch.cat(model.backbone(window[None]), 1)
            logits = model.decode_head.conv_seg(model.decode_head.norm(tokens))
            total[(slice(None), *place)] += F.interpolate(logits, window.shape[1:], mode="bilinear")[0]
            seen[place] += 1
    return total / seen


def test_several_scales_are_the_mean_probability_of_ten_views() -> None:
    encoder = tiny_encoder(depth=4)
    cfg = recipe(encoder, NAME)
    set_crop(cfg, 64)
    model = built(encoder, cfg).eval()
    model.decode_head.conv_seg.weight.data.mul_(100)  # probabilities that differ
    picture = np.random.default_rng(0).integers(0, 256, (48, 72, 3), np.uint8)
    described = {"img": picture, "img_path": "x", "ori_shape": (48, 72), "gt_seg_map": np.zeros((48, 72), np.uint8)}
    step = multi_scale_loader(cfg).dataset.pipeline[2]
    views = step.pop("type")(**step)({**described, "seg_fields": ["gt_seg_map"]})
    assert len(views["inputs"]) == 10
    mean, deviation = (255 * torch.tensor(values)[:, None, None] for values in (encoder.spec.mean, encoder.spec.std))
    total = torch.zeros(CLASSES, 48, 72)
    with torch.no_grad():
        (ours,) = MultiScale(model).test_step({key: [[value] for value in values] for key, values in views.items()})
        for ratio in (1.0, 1.32, 1.73, 2.28, 3.0):
            short = int(64 * ratio)
            image = mmcv.imrescale(picture, (short * 72 / 48, short))
            for mirrored in (False, True):
                shown = np.ascontiguousarray((image[:, ::-1] if mirrored else image)[..., ::-1])  # red first
                pixels = (torch.from_numpy(shown).permute(2, 0, 1) - mean) / deviation
                logits = slid(model, pixels, 64)
                logits = logits.flip(2) if mirrored else logits
                whole = F.interpolate(logits[None], (48, 72), mode="bilinear", align_corners=False)[0]
                total += whole.softmax(0) / 10
    assert torch.equal(ours.pred_sem_seg.data[0], total.argmax(0))
    assert len(total.argmax(0).unique()) > 1 and torch.allclose(total.sum(0), torch.ones(48, 72), atol=1e-5)


def test_the_recipe_has_the_published_numbers() -> None:
    cfg = recipes.read_recipe(NAME)
    assert (cfg.crop, tuple(cfg.ratios), cfg.model.test_cfg.stride) == (640, (1.0, 1.32, 1.73, 2.28, 3.0), (320, 320))
    resize = cfg.train_dataloader.dataset.pipeline[2]
    assert resize.ratio_range == (1.0, 3.0) and resize.scale == (99_999_999, 640)
    set_crop(cfg, 200)
    assert cfg.model.test_cfg.stride == (100, 100)
    first = recipes.read_recipe("linear_vit_40k_ade20k")
    set_crop(first, 200)
    assert first.model.test_cfg.stride == (133, 133)


def test_both_tests_are_in_the_record(world: Path, tmp_path: Path) -> None:
    env = Env(world, tmp_path, limit=3)
    result = linear_segmentation.run(tiny_encoder(depth=4), SETTINGS, env)
    assert set(result) == {"miou", "aacc", "miou_ms", "aacc_ms"}
    said = env.notes["protocol"]
    assert said["head"].endswith("4 layers") and said["test of the _ms metrics"] == "ratios [1.0, 1.5], mirrored"
    assert env.notes["images_evaluated"] == {"ade20k": 3} and json.dumps(said)
    with pytest.raises(Skip, match="the last 4 layers, and the encoder has 3"):
        linear_segmentation.run(tiny_encoder(), SETTINGS, Env(world, tmp_path / "other"))


def test_the_price_counts_the_windows_of_each_scale() -> None:
    """By hand, of pictures of 4 by 3: 1 x 2, 2 x 3, 3 x 4, 4 x 6 and 5 x 7 windows, each scale mirrored too."""
    nodes = {node.name: plan.paper_config(node) for node in plan.choose(["linear_segmentation_ms"])}
    price = linear_segmentation.cost(nodes["linear_segmentation_ms"], cost.VIT_B, lambda part: 2000)
    assert price.images == 40_000 * 16 + 2000 * (2 + 2 * (2 + 6 + 12 + 24 + 35))
    once = linear_segmentation.cost(linear_segmentation.Config(), cost.VIT_B, lambda part: 2000)
    assert price.memory - once.memory > 8, "a picture's logits at three times 640 px"
