"""The presets are the paper's numbers, and the encoders the field's."""

from dataclasses import replace

import pytest
import timm
import torch

from pretrain.config import MODELS
from pretrain.methods import configure, mae, siameseim
from pretrain.methods.siameseim import PAPER


@pytest.mark.parametrize("name", [name for name in MODELS if name.startswith("vit")])
@pytest.mark.parametrize(("preset", "method"), [("paper", siameseim), ("mae_paper", mae)])
def test_an_encoder_has_the_parameters_of_timms(name, preset, method):
    config = configure(preset, model=name)
    with torch.device("meta"):
        model = method.build(config)
        branch = model.online if preset == "paper" else model
        ours = (
            sum(p.numel() for part in (branch.patch_embed, branch.blocks) for p in part.parameters())
            + branch.cls_token.numel()
        )
        reference = timm.create_model(f"{name}_patch{config.patch_size}_224", num_classes=0)
    theirs = (
        sum(p.numel() for part in (reference.patch_embed, reference.blocks) for p in part.parameters())
        + reference.cls_token.numel()
    )
    assert ours == theirs
    if preset == "paper":
        assert 0.599 < config.num_masked / config.num_patches < 0.605
    else:
        assert config.num_visible / config.num_patches == 0.25


def test_the_papers_run():
    """SiameseIM's released script: 4096 images a step at 1e-3, 118 of 196 patches masked."""
    assert (PAPER.epochs, PAPER.batch_size, PAPER.warmup_epochs, PAPER.betas, PAPER.weight_decay) == (
        1600,
        4096,
        40,
        (0.9, 0.95),
        0.05,
    )
    assert (
        PAPER.lr == pytest.approx(1e-3)
        and PAPER.num_patches == 196
        and PAPER.clip_norm == 1
        and PAPER.precision == "fp16"
    )
    assert configure("paper_400") == configure("paper", ["epochs=400"])


def test_the_rate_follows_the_batch():
    assert configure("paper", ["batch_size=1024"]).lr == pytest.approx(2.5e-4)


def test_a_preset_on_top_of_another_changes_what_it_is_about():
    assert configure("demo+random_mask") == replace(siameseim.DEMO, mask="random")
    assert configure("paper_400+same_view_plain") == replace(
        PAPER, epochs=400, target_view="same", masked_view_colors=False
    )
    assert configure("demo+random_mask+global_loss", ["epochs=3"]) == replace(
        siameseim.DEMO, mask="random", dense_weight=0.0, global_weight=1.0, epochs=3
    )
