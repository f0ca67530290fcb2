"""What --export hands over is the encoder that was trained."""

import numpy as np
import pytest
import torch
from PIL import Image

from evaluate import encoder
from pretrain import train
from pretrain.methods import configure, mae, siameseim

TINY = [
    "epochs=1",
    "warmup_epochs=0.5",
    "batch_size=8",
    "embed_dim=24",
    "num_heads=2",
    "depth=1",
    "decoder_embed_dim=24",
    "decoder_num_heads=2",
]


@pytest.mark.parametrize(("preset", "method"), [("demo", siameseim), ("mae_demo", mae)])
def test_the_exported_encoder_has_the_trained_features(tmp_path, preset, method, capsys):
    for i in range(8):
        (tmp_path / "images").mkdir(exist_ok=True)
        Image.fromarray(np.random.default_rng(i).integers(0, 255, (40, 40, 3), dtype=np.uint8)).save(
            tmp_path / "images" / f"{i}.png"
        )
    sets = [part for setting in TINY for part in ("--set", setting)]
    arguments = [
        "--preset",
        preset,
        "--data",
        str(tmp_path / "images"),
        "--out",
        str(tmp_path / "out"),
        "--device",
        "cpu",
        "--export",
        *sets,
    ]
    assert train.main(arguments) == 0
    weights = torch.load(tmp_path / "out/export" / f"{method.DEMO.method}.pth", weights_only=True)
    assert "optimizer" not in weights and weights["epoch"] == 1
    model = method.build(configure(preset, TINY)).eval()
    model.load_state_dict(method.from_official(weights["model"], list(model.state_dict())))
    exported = encoder.load(tmp_path / "out/export/encoder.safetensors")
    images = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        tokens = model.tokens(images)
        if method is mae:  # its tokens end with the norm, the encoder file's forward before it
            exported_tokens = exported.model.norm(exported.forward_tokens(images).patches)
        else:
            exported_tokens = exported.forward_tokens(images).patches
    assert torch.allclose(tokens[:, 1:], exported_tokens, atol=1e-5)
    assert "certificate" in capsys.readouterr().out.lower()
