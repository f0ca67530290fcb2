"""The encoder file: what is stored is what is computed, and what has no passing certificate is refused."""

import dataclasses
import json
import zlib
from pathlib import Path

import pytest
import torch

from evaluate import encoder
from evaluate.checkpoints import conversion
from evaluate.checkpoints.certificate import fixed_image
from evaluate.encoder.interpolation import resample_pos_embed
from evaluate.runtime.errors import UserError
from tests.factories import mae_state

PROTOCOLS = json.loads((Path(__file__).parents[1] / "golden" / "protocols.json").read_text())
GOLDEN = PROTOCOLS["pos_embed_interpolation"]["cases"]


@pytest.fixture
def file(tmp_path):
    torch.save({"model": mae_state(), "epoch": 4}, tmp_path / "mae.pth")
    conversion.convert(tmp_path / "mae.pth", tmp_path / "encoder.safetensors")
    return tmp_path / "encoder.safetensors"


def test_spec_and_features(file) -> None:
    loaded = encoder.load(file)
    spec = loaded.spec
    assert (spec.img_size, spec.patch_size, spec.embed_dim, spec.depth, spec.num_heads) == (32, 8, 128, 3, 2)
    assert loaded.spec.epoch == 4 and loaded.spec.source_format == "mae" and not loaded.training
    image = fixed_image(32)
    with torch.no_grad():
        timm_tokens = loaded.model.forward_features(image)  # norm applied
        tokens = loaded.forward_tokens(image)
        blocks = loaded.forward_blocks(image, 2)
    assert torch.allclose(loaded.model.norm(tokens.cls), timm_tokens[:, 0], atol=1e-5)
    assert torch.allclose(loaded.model.norm(tokens.patches), timm_tokens[:, 1:], atol=1e-5)
    assert len(blocks) == 2 and torch.equal(blocks[-1].patches, tokens.patches)
    assert not torch.equal(blocks[0].patches, tokens.patches)
    assert torch.equal(tokens.pooled("cls"), tokens.cls) and torch.equal(tokens.pooled("mean"), tokens.patches.mean(1))


def test_other_image_sizes_change_nothing_but_the_grid(file) -> None:
    loaded = encoder.load(file)
    tokens = loaded.forward_tokens(torch.randn(2, 3, 48, 64))
    assert tokens.patches.shape == (2, 48, 128)
    with pytest.raises(ValueError, match="multiple"):
        loaded.forward_tokens(torch.randn(1, 3, 33, 32))


def test_fingerprint_depends_on_tensors_and_semantics_only() -> None:
    spec = encoder.EncoderSpec("vit", 8, 1, (0.0,) * 3, (1.0,) * 3, num_heads=1)
    state = {"a": torch.zeros(3)}
    first = encoder.fingerprint(spec, state)
    replace = dataclasses.replace
    assert encoder.fingerprint(replace(spec, source_sha256="x", branch="y", epoch=1), state) == first
    assert encoder.fingerprint(replace(spec, layer_norm_eps=1e-5), state) != first
    assert encoder.fingerprint(replace(spec, mean=(0.5,) * 3), state) != first
    assert encoder.fingerprint(spec, {"a": torch.tensor([0.0, 0.0, 1e-7])}) != first


def test_refused_without_a_certificate_of_its_own(file) -> None:
    certificate = encoder.certificate_path(file)
    content = json.loads(certificate.read_text())
    certificate.write_text(json.dumps({**content, "passed": False}))
    with pytest.raises(UserError, match="did not pass"):
        encoder.load(file)
    certificate.write_text("{")
    with pytest.raises(UserError, match="damaged"):
        encoder.load(file)
    certificate.unlink()
    with pytest.raises(UserError, match="no certificate"):
        encoder.load(file)
    certificate.write_text(json.dumps(content))
    loaded = encoder.load(file)
    state = loaded.model.state_dict()
    state["norm.bias"] = state["norm.bias"] + 1e-6
    encoder.save(file, state, loaded.spec)
    with pytest.raises(UserError, match="another encoder"):
        encoder.load(file)


def test_a_file_that_is_no_encoder_names_the_command_that_makes_one(tmp_path, file) -> None:
    with pytest.raises(UserError, match="python -m evaluate.convert .*mae.pth"):
        encoder.load(tmp_path / "mae.pth")


@pytest.mark.parametrize("case", GOLDEN, ids=lambda case: f"{case['source_grid']} to {case['target_grid']}")
def test_interpolation_as_published(case) -> None:
    key, rows = f"interp/{case['source_grid']}", case["source_grid"] ** 2 + 1
    table = torch.randn(1, rows, case["width"], generator=torch.Generator().manual_seed(zlib.crc32(key.encode())))
    result = resample_pos_embed(table, (case["target_grid"],) * 2)
    assert result.norm().item() == pytest.approx(case["norm"], rel=1e-6)
    assert torch.allclose(result.flatten()[case["index"]], torch.tensor(case["value"]), atol=1e-5)


def test_dino_interpolates_by_its_own_scale_factor() -> None:
    table = torch.randn(1, 17, 3, generator=torch.Generator().manual_seed(0))
    plain, dino = (resample_pos_embed(table, (7, 6), method=method) for method in ("bicubic", "dino"))
    assert dino.shape == plain.shape == (1, 43, 3)
    assert 1e-3 < (plain - dino).abs().max() < 1.0
    assert torch.equal(resample_pos_embed(table, (4, 4), method="dino"), table)
    with pytest.raises(ValueError, match="square"):
        resample_pos_embed(table[:, :16], (5, 5))


def test_a_number_too_large_for_a_float_is_refused_as_any_other(file) -> None:
    spec = dataclasses.replace(encoder.read_spec(file), layer_norm_eps=10**400)
    with pytest.raises(ValueError, match="layer_norm_eps"):
        spec.check()


@pytest.mark.parametrize(
    ("shape", "name"),
    [
        ({"embed_dim": 768, "depth": 12, "num_heads": 12}, "ViT-B/16"),
        ({"embed_dim": 1024, "depth": 24, "num_heads": 16, "patch_size": 14}, "ViT-L/14"),
        ({"embed_dim": 384, "depth": 12, "num_heads": 6}, "ViT-S/16"),
        ({"embed_dim": 384, "depth": 12, "num_heads": 12}, "ViT-S/16 (12 heads)"),
        ({"embed_dim": 64, "depth": 3, "num_heads": 4, "patch_size": 4}, "ViT (width 64, depth 3, 4 heads)/4"),
        ({"family": "resnet", "block": "bottleneck", "layers": (3, 4, 6, 3)}, "ResNet-50"),
        (
            {"family": "resnet", "block": "bottleneck", "layers": (3, 4, 6, 3), "cardinality": 32, "base_width": 4},
            "ResNet-50 (cardinality 32, base width 4)",
        ),
        ({"family": "resnet", "block": "basic", "layers": (1, 1, 1, 1)}, "ResNet-(basic, 1-1-1-1)"),
    ],
)
def test_an_architecture_has_the_name_of_the_papers(shape: dict, name: str) -> None:
    spec = encoder.EncoderSpec(
        **{"family": "vit", "embed_dim": 2048, "depth": 16, "mean": (0.5,) * 3, "std": (0.5,) * 3, **shape}
    )
    assert spec.architecture == name
