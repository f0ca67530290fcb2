"""A linear head on a frozen encoder: what it sees, what is trained, and one step by hand."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mmengine.optim import build_optim_wrapper
from mmseg.models.decode_heads import FCNHead
from PIL import Image

from evaluate import linear_segmentation
from evaluate.mm import hooks
from evaluate.mm.datasets import SegmentationSet
from evaluate.mm.transforms import LoadLabels, LoadPicture
from evaluate.runtime.env import Env
from evaluate.runtime.errors import Skip
from tests.factories import tiny_encoder, tiny_resnet
from tests.linear_heads import batch, built, recipe


@pytest.mark.parametrize("changes", [{}, {"registers": 2}, {"class_token": False}, {"patch_size": 14, "img_size": 56}])
def test_the_head_sees_the_encoders_own_patch_tokens_after_its_last_norm(changes: dict) -> None:
    encoder = tiny_encoder(**changes)
    cfg = recipe(encoder)
    side = encoder.spec.img_size
    cfg.model.backbone.img_size = (side, side)
    model = built(encoder, cfg)
    images = torch.randn(2, 3, side, side)
    (tokens,) = model.backbone(images)
    with torch.no_grad():
        whole = encoder.model.forward_features(images)  # timm's, normalized
    expected = whole[:, -tokens.shape[2] * tokens.shape[3] :].transpose(1, 2).reshape(tokens.shape)
    assert torch.allclose(tokens, expected, atol=1e-5)


def test_a_step_is_batch_norm_a_linear_layer_and_adamw() -> None:
    """By hand from the tokens on; and the same logits and loss as mmsegmentation's own head without convolutions."""
    encoder = tiny_encoder()
    cfg = recipe(encoder, "linear_vit_40k_ade20k")
    cfg.model.backbone.img_size = (64, 64)
    model = built(encoder, cfg).double()
    images, samples = batch(64)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        (tokens,) = model.backbone(images.double())
    weight, bias = (before[f"decode_head.conv_seg.{name}"].clone().requires_grad_() for name in ("weight", "bias"))
    scale, shift = (before[f"decode_head.norm.{name}"].clone().requires_grad_() for name in ("weight", "bias"))
    normalized = F.batch_norm(tokens, None, None, scale, shift, training=True, eps=1e-5)
    logits = F.interpolate(F.conv2d(normalized, weight, bias), size=(64, 64), mode="bilinear", align_corners=False)
    labels = torch.cat([sample.gt_sem_seg.data for sample in samples])
    # mmseg's default: the mean goes over all pixels, those without a class among them
    expected = F.cross_entropy(logits, labels, ignore_index=255, reduction="sum") / labels.numel()
    losses = model.loss(images.double(), samples)
    assert set(losses) == {"decode.loss_ce", "decode.acc_seg"}
    assert losses["decode.loss_ce"].item() == pytest.approx(expected.item(), rel=1e-6)

    own = {name: value for name, value in cfg.model.decode_head.items() if name != "type"}
    theirs = FCNHead(**{**own, "num_convs": 0, "concat_input": False}).double()
    theirs.conv_seg.load_state_dict(model.decode_head.conv_seg.state_dict())
    assert theirs.loss((normalized.detach(),), samples, {})["loss_ce"].item() == pytest.approx(
        expected.item(), rel=1e-6
    )

    by_hand = torch.optim.AdamW([scale, shift, weight, bias], lr=1e-3, betas=(0.9, 0.999), weight_decay=1e-4)
    expected.backward()
    by_hand.step()
    wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    wrapper.update_params(losses["decode.loss_ce"])
    after = model.state_dict()
    for name, value in (
        ("conv_seg.weight", weight),
        ("conv_seg.bias", bias),
        ("norm.weight", scale),
        ("norm.bias", shift),
    ):
        assert torch.allclose(after[f"decode_head.{name}"], value, rtol=0, atol=1e-7), name
        assert not torch.equal(after[f"decode_head.{name}"], before[f"decode_head.{name}"]), name
    untouched = [name for name in before if name.startswith("backbone.")]
    assert untouched and all(torch.equal(after[name], before[name]) for name in untouched)


def test_the_encoder_is_not_trained_by_a_run(world: Path, tmp_path: Path) -> None:
    encoder, seen = tiny_encoder(), []
    hooks.Progress.after_train = lambda self, runner: seen.append(runner.model.backbone.state_dict())
    try:
        config = dataclasses.replace(linear_segmentation.PRESETS["demo"], iterations=3)
        env = Env(world, tmp_path, limit=4)
        result = linear_segmentation.run(encoder, config, env)
    finally:
        del hooks.Progress.after_train
    theirs = encoder.model.state_dict()
    kept = [name for name in seen[0] if name in theirs and name != "pos_embed"]  # the last is resized to the crop
    assert len(kept) > 20 and all(torch.equal(seen[0][name], theirs[name]) for name in kept)
    assert set(result) == {"miou", "aacc"} and env.notes["protocol"]["iterations"] == 3


def test_a_resnet_has_no_patch_tokens(world: Path, tmp_path: Path) -> None:
    with pytest.raises(Skip, match="this encoder is no ViT"):
        linear_segmentation.run(tiny_resnet(), linear_segmentation.PRESETS["demo"], Env(world, tmp_path))


def test_voc_is_trained_and_tested_with_its_background_as_a_class(world: Path, tmp_path: Path) -> None:
    config = dataclasses.replace(linear_segmentation.PRESETS["demo"], dataset="voc2012", iterations=2)
    env = Env(world, tmp_path)
    assert set(linear_segmentation.run(tiny_encoder(), config, env)) == {"miou", "aacc"}
    assert env.notes["images_evaluated"] == {"voc2012": 3}
    assert env.notes["sizes"] == {
        "voc2012_training": {"images": 8, "classes": 21},
        "voc2012_validation": {"images": 3, "classes": 21},
    }
    steps = [LoadPicture(), LoadLabels()]
    data = SegmentationSet(str(world / "VOCdevkit/VOC2012"), "training", steps, data="voc2012")
    assert data.metainfo["classes"][0] == "background" and len(data) == 8
    for sample in data:
        name = Path(sample["img_path"]).stem
        of_toy = np.asarray(Image.open(world / f"ade20k/annotations/training/{name}.png"))
        assert np.array_equal(sample["gt_seg_map"], np.choose(of_toy, [255, 1, 2, 3, 4, 5, 6, 0]))
