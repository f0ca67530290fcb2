"""What --export hands over is the encoder that was trained."""

from dataclasses import replace

import pytest
import torch

from evaluate import encoder, linear_probe
from evaluate.checkpoints import conversion
from pretrain import train
from pretrain.methods import METHODS, configure, method_of
from tests.pretrain.runs import write_captions, write_images

TINY = ["epochs=1", "warmup_epochs=0.5", "batch_size=8"]
TINY_VIT = ["embed_dim=24", "num_heads=2", "depth=1"]
TINY_DECODER = ["decoder_embed_dim=24", "decoder_num_heads=2"]
TINY_RESNET = ["block=bottleneck", "width_per_group=4"]
DEMOS = {  # preset: its settings, and the format that its file has
    "demo": (TINY_VIT + TINY_DECODER, "siameseim"),
    "mae_demo": (TINY_VIT + TINY_DECODER, "mae"),
    "simsiam_demo": (TINY_RESNET, "simsiam"),
    "moco_v3_vit_demo": (TINY_VIT, "moco_v3_vit"),
    "moco_v3_resnet_demo": (TINY_RESNET, "moco_v3_resnet"),
    "byol_demo": (TINY_RESNET, "solo_learn"),
    "simclr_demo": (TINY_RESNET, "solo_learn"),
    "moco_v1_demo": ([*TINY_RESNET, "bn_group=4"], "moco"),
    "moco_v2_demo": ([*TINY_RESNET, "bn_group=4"], "moco"),
    "swav_demo": (TINY_RESNET, "swav"),
    "clip_demo": (TINY_VIT, "open_clip"),
    "mscn_demo": (TINY_RESNET, "solo_learn"),
}
PROBES = {  # the presets of evaluate.linear_probe that are their papers' protocols
    "simsiam_demo": "simsiam",
    "moco_v3_vit_demo": "moco_v3_vit",
    "moco_v3_resnet_demo": "moco_v3",
    "moco_v1_demo": "moco",
    "moco_v2_demo": "moco",
}


def test_every_method_is_here():
    assert set(PROBES.values()) <= set(linear_probe.PRESETS)
    assert [configure(preset).method for preset in DEMOS] == list(METHODS)


@pytest.mark.parametrize("preset", DEMOS)
def test_the_exported_encoder_has_the_trained_features(tmp_path, preset, capsys):
    images = write_images(tmp_path / "images", 8)
    images = write_captions(images) if configure(preset).needs_captions else images
    sizes, source_format = DEMOS[preset]
    sets = [part for setting in TINY + sizes for part in ("--set", setting)]
    command = ["--preset", preset, "--data", str(images), "--out", str(tmp_path / "out"), "--device", "cpu", "--export"]
    assert train.main([*command, *sets]) == 0
    config = configure(preset, TINY + sizes)
    weights = torch.load(tmp_path / "out/export" / f"{config.method}.pth", weights_only=True)
    assert "optimizer" not in weights and weights["epoch"] == 1
    method = method_of(config)
    model = method.build(config).eval()
    model.load_state_dict(method.from_official(weights["model"], list(model.state_dict())))
    exported = encoder.load(tmp_path / "out/export/encoder.safetensors")
    assert (exported.spec.source_format, exported.spec.mean, exported.spec.std) == (
        source_format,
        config.mean,
        config.std,
    )
    assert not exported.spec.assumed
    images = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        tokens = exported.forward_tokens(images)
        if exported.spec.final_norm:  # the features end with it, the encoder file's forward before it
            tokens = replace(tokens, cls=exported.model.norm(tokens.cls), patches=exported.model.norm(tokens.patches))
        expected = tokens.pooled("cls" if config.method in ("moco_v3_vit", "clip") else "mean")
        assert torch.allclose(model.features(images), expected, atol=1e-5)
    assert "certificate" in capsys.readouterr().out
    assert linear_probe.recommended(exported.spec) == PROBES.get(preset, "")


@pytest.mark.parametrize(("quick", "activation"), [("true", "quick_gelu"), ("false", "gelu")])
def test_a_clip_says_which_gelu_it_has(tmp_path, quick, activation):
    settings = [*TINY_VIT, f"quick_gelu={quick}"]
    saved = train.initialize(configure("clip_demo", settings), tmp_path)
    conversion.convert(saved, tmp_path / "encoder.safetensors")
    spec = encoder.load(tmp_path / "encoder.safetensors").spec
    assert spec.activation == activation and not spec.assumed
