"""The backbones compute the encoder's own features, load strictly, and take any size."""

import pytest
import torch

from evaluate.checkpoints.formats.beit import ROLES
from evaluate.checkpoints.reference import Semantics, Transformer
from evaluate.mm.backbones.resnet import ResNetBackbone, widths
from evaluate.mm.backbones.segmentation import SegmentationBackbone, out_blocks
from evaluate.mm.backbones.vitdet import ViTDetBackbone, from_windows, global_blocks, to_windows
from tests.factories import tiny_encoder, tiny_resnet

VARIANTS = {
    "plain": {},
    "clip": {"activation": "quick_gelu", "pre_norm": True, "layer_norm_eps": 1e-5},
    "layer scale": {"layer_scale": True},
    "no class token": {"class_token": False},
    "no bias": {"qkv_bias": False},
}


def as_map(patches: torch.Tensor, h: int, w: int) -> torch.Tensor:
    return patches.transpose(1, 2).unflatten(2, (h, w))


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
def test_segmentation_backbone_equals_the_encoder(changes: dict) -> None:
    encoder = tiny_encoder(**changes)
    backbone = SegmentationBackbone.from_spec(
        encoder.spec, encoder.model.state_dict(), img_size=(32, 32), out_indices=(0, 1, 2)
    ).eval()
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        for ours, theirs in zip(backbone(images), encoder.forward_blocks(images, 3), strict=True):
            assert (ours - as_map(theirs.patches, 4, 4)).abs().max() < 2e-5


@pytest.mark.parametrize("name", ["plain", "no class token"])
def test_beit_keeps_its_relative_bias_in_segmentation(name: str) -> None:
    encoder = tiny_encoder(rel_pos_bias=True, layer_scale=True, pos_embed=name == "plain", final_norm=False)
    state = encoder.model.state_dict()
    backbone = SegmentationBackbone.from_spec(encoder.spec, state, img_size=(32, 32), out_indices=(2,)).eval()
    images = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert (backbone(images)[0] - as_map(encoder.forward_tokens(images).patches, 4, 4)).abs().max() < 2e-5


def test_beit_keeps_its_relative_bias_in_detection() -> None:
    """One window over the picture; at another window the table is resized; and the bias makes a difference."""
    encoder = tiny_encoder(rel_pos_bias=True, layer_scale=True, pos_embed=False, class_token=True, final_norm=False)
    state = encoder.model.state_dict()
    image = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    backbone = ViTDetBackbone.from_spec(encoder.spec, state, img_size=32, window=4).eval()
    source = {key: value for key, value in state.items() if key != "cls_token"}
    reference = Transformer(source, ROLES, Semantics(encoder.spec.num_heads, encoder.spec.layer_norm_eps))
    with torch.no_grad():
        expected = reference.blocks(reference.embed(image, class_token=False))
        assert (backbone(image)[0] - as_map(expected, 4, 4)).abs().max() < 2e-5
        for block in backbone.blocks:
            block.attn.relative_position_bias_table.zero_()
        assert (backbone(image)[0] - as_map(expected, 4, 4)).abs().max() > 1e-2
    assert ViTDetBackbone.from_spec(encoder.spec, state, img_size=64, window=3)(torch.randn(1, 3, 64, 48))[0].shape == (
        1,
        48,
        8,
        6,
    )


@pytest.mark.parametrize(
    "changes",
    [{}, VARIANTS["clip"], {"layer_scale": True}, {"registers": 2}],
    ids=["plain", "clip", "scale", "registers"],
)
def test_vitdet_equals_the_encoder_without_class_token(changes: dict) -> None:
    """One window covers the picture and relative positions begin at zero: only the class token's absence matters."""
    encoder = tiny_encoder(**{**changes, "class_token": False, "registers": 0})
    state = encoder.model.state_dict()
    backbone = ViTDetBackbone.from_spec(encoder.spec, state, img_size=32, window=4).eval()
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert (backbone(images)[0] - as_map(encoder.forward_tokens(images).patches, 4, 4)).abs().max() < 2e-5
    with_tokens = tiny_encoder(**changes)
    loaded = ViTDetBackbone(**ViTDetBackbone.arguments(with_tokens.spec, with_tokens.model.state_dict())).load(
        with_tokens.spec, with_tokens.model.state_dict()
    )
    assert set(loaded["dropped"]) == {"cls_token", "norm.weight", "norm.bias"}
    assert all(".rel_pos_" in name for name in loaded["new"]) and len(loaded["new"]) == 6


@pytest.mark.parametrize("build", [ViTDetBackbone, SegmentationBackbone])
def test_strange_names_and_shapes_are_refused(build: type) -> None:
    encoder = tiny_encoder()
    state = encoder.model.state_dict()
    backbone = build(**build.arguments(encoder.spec, state))
    with pytest.raises(ValueError, match="blocks.9.strange"):
        backbone.load(encoder.spec, {**state, "blocks.9.strange": torch.zeros(1)})
    with pytest.raises(ValueError, match="blocks.1.mlp.fc1.bias"):
        backbone.load(encoder.spec, {name: value for name, value in state.items() if name != "blocks.1.mlp.fc1.bias"})
    with pytest.raises(ValueError, match="blocks.1.mlp.fc1.bias has shape"):
        backbone.load(encoder.spec, {**state, "blocks.1.mlp.fc1.bias": torch.zeros(3)})


@pytest.mark.parametrize("build", [ViTDetBackbone, SegmentationBackbone])
def test_any_size_trains_every_parameter(build: type) -> None:
    encoder = tiny_encoder()
    backbone = build.from_spec(encoder.spec, encoder.model.state_dict(), checkpointing=True).train()
    maps = backbone(torch.randn(2, 3, 53, 87))
    assert all(tuple(x.shape) == (2, 48, 7, 11) for x in maps)
    sum(x.square().sum() for x in maps).backward()
    idle = {name for name, parameter in backbone.named_parameters() if parameter.grad is None}
    assert idle == set()


def test_resnet_backbone_equals_the_encoder() -> None:
    encoder = tiny_resnet()
    backbone = ResNetBackbone(**ResNetBackbone.arguments(encoder.spec, encoder.model.state_dict()))
    backbone.load(encoder.spec, encoder.model.state_dict())
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        for ours, theirs in zip(backbone.eval()(images), encoder.eval().forward_blocks(images, 4), strict=True):
            assert torch.equal(ours, theirs.map)
    assert widths(encoder.spec) == [64, 128, 256, 512]


def test_windows_come_back() -> None:
    x = torch.randn(2, 7, 11, 3)
    windows = to_windows(x, 4)
    assert windows.shape == (2 * 2 * 3, 4, 4, 3)
    assert torch.equal(from_windows(windows, 7, 11), x)


def test_chosen_blocks() -> None:
    assert global_blocks(12) == (2, 5, 8, 11) and global_blocks(24) == (5, 11, 17, 23)
    assert (
        global_blocks(3)[-1] == 2
        and out_blocks(12) == (3, 5, 7, 11)
        and len(out_blocks(3)) == 4
        and out_blocks(3)[-1] == 2
    )
