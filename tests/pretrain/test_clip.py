"""CLIP beside its step (test_methods.py): its scale, its warm-up, its captions, its towers."""

import dataclasses
import math
import sys

import pytest
import torch

from evaluate.runtime.errors import UserError
from pretrain.data.views import Batch
from pretrain.methods import clip, configure
from pretrain.optimizer import learning_rate
from pretrain.vit import set_grad_checkpointing


def test_clips_scale_stays_within_its_bounds():
    model = clip.build(dataclasses.replace(clip.PRESETS["demo"], vocab_size=50))
    for given, kept in ((5.0, math.log(100)), (-0.1, 0.0), (2.5, 2.5)):
        model.towers.logit_scale.data.fill_(given)
        model.after_step(1, 2)
        assert model.towers.logit_scale.item() == pytest.approx(kept)


def test_clips_warm_up_is_in_steps_of_its_paper():
    """2000 of the steps of 400 million pairs; the first has a share of the rate already."""
    steps = 400_000_000 // 32768
    rates = [learning_rate(step / steps, clip.PAPER, 1 / steps) for step in (0, 999, 1999)]
    assert rates == pytest.approx([5e-4 / 2000, 5e-4 / 2, 5e-4], rel=1e-4)


def test_clips_blocks_compute_again_to_the_same_bits():
    config = dataclasses.replace(clip.PRESETS["demo"], depth=1, text_depth=1)
    text = torch.from_numpy(config.tokens(["red dots", "blue stripes"]))
    batch = Batch(torch.randn(2, 3, 32, 32), None, None, None, torch.arange(2), text=text)
    found = []
    for frugal in (False, True):
        torch.manual_seed(0)
        model = clip.build(config).train()
        if frugal:
            set_grad_checkpointing(model)
            assert model.towers.transformer.grad_checkpointing and model.towers.visual.transformer.grad_checkpointing
        model(batch).loss.backward()
        found.append([parameter.grad for parameter in model.parameters()])
    assert all(torch.equal(plain, again) for plain, again in zip(*found, strict=True))


def test_a_caption_is_lower_cased_cut_and_filled_up():
    found = dataclasses.replace(clip.PRESETS["demo"], context_length=6).tokens(["Red DOTS", "red dots", "a " * 9])
    start, end = 49406, 49407
    assert (
        found.shape == (3, 6) and (found[0] == found[1]).all() and found[0, [0, 3, 4, 5]].tolist() == [start, end, 0, 0]
    )
    assert found[2, 0] == start and found[2, -1] == end and (found[2, 1:-1] == found[2, 1]).all()
    with pytest.raises(UserError, match="vocab_size 50 is below the tokenizer's 49408"):
        dataclasses.replace(clip.PRESETS["demo"], vocab_size=50).tokens([""])


def test_heads_that_do_not_divide_the_text_tower_are_named():
    with pytest.raises(UserError, match="text_heads 5 does not divide text_width 48"):
        configure("clip_demo", ["text_heads=5"])
    assert configure("clip_demo", ["text_width=30", "text_heads=5"]).text_width == 30


def test_a_package_that_is_absent_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(UserError, match="clip needs the package open_clip_torch, .*uv sync --extra clip adds it"):
        clip.build(clip.PRESETS["demo"])
