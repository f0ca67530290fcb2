"""The backbones compute the encoder's own features, load strictly, and take any size."""

import itertools

import pytest
import torch

from evaluate.checkpoints.formats.beit import ROLES
from evaluate.checkpoints.formats.table import VIT_ROLES
from evaluate.checkpoints.reference import Semantics, SourceViT
from evaluate.encoder.spec import EncoderSpec
from evaluate.mm.backbones.resnet import ResNetBackbone, widths
from evaluate.mm.backbones.segmentation import SegmentationBackbone, out_blocks
from evaluate.mm.backbones.vitdet import Attention, ViTDetBackbone, from_windows, global_blocks, to_windows
from tests.factories import MEAN, STD, tiny_encoder, tiny_resnet

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
    reference = SourceViT(source, ROLES, Semantics(encoder.spec.num_heads, encoder.spec.layer_norm_eps))
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
    [{}, VARIANTS["clip"], {"layer_scale": True}],
    ids=["plain", "clip", "scale"],
)
def test_vitdet_equals_the_encoder_without_class_token(changes: dict) -> None:
    """One window covers the picture and relative positions begin at zero: only the class token's absence matters."""
    encoder = tiny_encoder(**{**changes, "class_token": False})
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


FIELDS = {  # each field's values, whose combinations are all that a spec can say of the way to the patch tokens
    "class_token": (True, False),
    "registers": (0, 3),
    "pos_embed": (True, False),
    "pos_embed_prefix": (True, False),
    "pre_norm": (False, True),
    "layer_scale": (False, True),
    "qkv_bias": (True, False),
    "rel_pos_bias": (False, True),
    "activation": ("gelu", "quick_gelu"),
    "norm": ("final_norm", "fc_norm", "none"),
    "patch_size": (8, 14),
}
# every seventh: 7 divides no number of values, so all values of all pairs of fields meet
COMBINATIONS = [dict(zip(FIELDS, values, strict=True)) for values in itertools.product(*FIELDS.values())][::7]


@pytest.mark.parametrize("build", [ViTDetBackbone, SegmentationBackbone])
def test_no_field_of_a_spec_is_lost_on_the_way_into_a_dense_backbone(build: type) -> None:
    """Whatever a spec may say, the patch tokens are the encoder's; in detection, without a class token that stands
    alone.
    """
    refused = 0
    for fields in COMBINATIONS:
        norm, side = fields["norm"], 3 * fields["patch_size"]
        norms = {name: name == norm for name in ("final_norm", "fc_norm")}
        changes = {**{key: value for key, value in fields.items() if key != "norm"}, **norms, "img_size": side}
        try:
            EncoderSpec("vit", 12, 2, MEAN, STD, num_heads=2, **changes).check()
        except ValueError as error:
            assert "as BEiT has them" in str(error)
            refused += 1
            continue
        encoder = tiny_encoder(embed_dim=12, depth=2, num_heads=2, **changes)
        spec, state = encoder.spec, encoder.model.state_dict()
        image = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(1))
        sizes = {"img_size": side, "window": 3} if build is ViTDetBackbone else {"img_size": (side, side)}
        with torch.no_grad():
            found = build.from_spec(spec, state, **sizes).eval()(image)[-1]
            expected = encoder.forward_tokens(image).patches
            if build is ViTDetBackbone and spec.class_token and not spec.registers:
                semantics = Semantics(spec.num_heads, spec.layer_norm_eps, spec.activation)
                reference = SourceViT(state, ROLES if spec.rel_pos_bias else VIT_ROLES, semantics)
                expected = reference.blocks(reference.embed(image, class_token=False))
        assert (found - as_map(expected, 3, 3)).abs().max() < 1e-4, fields
    assert 0 < refused < len(COMBINATIONS) / 2


def test_windows_of_detection_see_the_prefix_tokens_and_these_see_everything() -> None:
    """Beside a loop over the windows: a patch attends to its window, to zeros that pad it, and to the prefix tokens."""
    torch.manual_seed(0)
    attention = Attention(12, 2, window=3, table_size=3).eval()
    attention.rel_pos_h.data.normal_(), attention.rel_pos_w.data.normal_()
    x, (h, w), prefix = torch.randn(2, 2 + 4 * 5, 12), (4, 5), 2
    with torch.no_grad():
        found = attention(x, (h, w))
        patches = x[:, prefix:].unflatten(1, (h, w))
        query, key, value = attention.qkv(x).unflatten(2, (3, 2, 6)).permute(2, 0, 3, 1, 4)
        scores = query[:, :, :prefix] @ key.transpose(2, 3) / 6**0.5
        tokens = attention.proj((scores.softmax(3) @ value).transpose(1, 2).flatten(2))
        assert torch.allclose(found[:, :prefix], tokens, atol=1e-5)
        expected = torch.zeros_like(patches)
        for top, left in itertools.product((0, 3), (0, 3)):
            window = torch.zeros(2, 3, 3, 12)
            inside = patches[:, top : top + 3, left : left + 3]
            window[:, : inside.shape[1], : inside.shape[2]] = inside
            seen = torch.cat([x[:, :prefix], window.flatten(1, 2)], 1)
            query, key, value = attention.qkv(seen).unflatten(2, (3, 2, 6)).permute(2, 0, 3, 1, 4)
            scores = query @ key.transpose(2, 3) / 6**0.5
            for a, b in itertools.product(range(9), range(9)):
                row, column = a // 3 - b // 3 + 2, a % 3 - b % 3 + 2
                relative = attention.rel_pos_h[row] + attention.rel_pos_w[column]
                scores[:, :, prefix + a, prefix + b] += query[:, :, prefix + a] @ relative
            out = attention.proj((scores.softmax(3) @ value).transpose(1, 2).flatten(2))[:, prefix:]
            expected[:, top : top + 3, left : left + 3] = out.unflatten(1, (3, 3))[
                :, : inside.shape[1], : inside.shape[2]
            ]
        assert torch.allclose(found[:, prefix:], expected.flatten(1, 2), atol=1e-5)


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


@pytest.mark.parametrize("registers", [0, 2])
@pytest.mark.parametrize("build", [ViTDetBackbone, SegmentationBackbone])
def test_any_size_trains_every_parameter(build: type, registers: int) -> None:
    encoder = tiny_encoder(registers=registers)
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
