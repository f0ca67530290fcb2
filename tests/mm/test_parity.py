"""Our numbers are detectron2's and mmseg's, and the command that says so can say no."""

import json
from pathlib import Path

import pytest
import torch

from evaluate.mm.backbones.segmentation import SegmentationBackbone
from evaluate.mm.parity import __main__, backbones, heads
from evaluate.mm.parity.names import mmseg_name

GOLDEN = Path(__file__).parents[1] / "golden" / "dense"


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("*.json")), ids=lambda path: path.stem)
def test_reference_numbers(path: Path) -> None:
    result = __main__.compare(path)
    assert result and not {name: pair for name, pair in result.items() if not pair[0] <= pair[1]}


@pytest.mark.parametrize("name", ["vitdet_backbone", "simple_feature_pyramid", "mmseg_mae_backbone", "roi_heads"])
def test_networks_compute_on_the_device_that_is_asked_for(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """``meta`` stands for a GPU: it holds no values, and refuses tensors of the CPU beside its own."""
    seen = []
    for module in (backbones, heads):
        monkeypatch.setattr(module, "difference_at_samples", lambda tensor, _: seen.append(tensor.device.type) or 0.0)
    __main__.compare(GOLDEN / f"{name}.json", "meta")
    assert set(seen) == {"meta"}


def test_a_changed_number_is_noticed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = json.loads((GOLDEN / "vitdet_backbone.json").read_text())
    content["cases"] = content["cases"][1:]
    content["cases"][0]["last_feat"]["sample_value"][0] += 1e-3
    path = tmp_path / "changed.json"
    path.write_text(json.dumps(content))
    assert __main__.main([str(path)]) == 1
    assert "last_feat" in capsys.readouterr().out


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"cases": [{"name": "x"}]}'])
def test_a_file_of_no_known_form_is_refused(tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "odd.json"
    path.write_text(text)
    assert __main__.main([str(path)]) == 2
    assert "odd.json" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("side", "width", "depth", "heads"), [(64, 48, 4, 3), pytest.param(512, 192, 12, 3, id="512 pixels")]
)
def test_the_segmentation_backbone_is_mmsegs_mae(side: int, width: int, depth: int, heads: int) -> None:
    """The installed class with drawn weights, live, beside ours with the same ones: equal to 1e-4 in every map."""
    from mmseg.models.backbones import MAE

    indices = (3, 5, 7, 11) if depth == 12 else (0, 1, 2, 3)
    theirs = MAE(
        img_size=(side, side),
        patch_size=16,
        embed_dims=width,
        num_layers=depth,
        num_heads=heads,
        out_indices=indices,
        norm_cfg={"type": "LN", "eps": 1e-6},
        init_values=1.0,
    )
    theirs.eval()  # returns None there
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            centre = 1.0 if name.endswith(("ln1.weight", "ln2.weight")) or "gamma" in name else 0.0
            scale = 1.0 if "relative_position_bias_table" in name else 0.08
            parameter.copy_(centre + scale * torch.randn(parameter.shape, generator=generator))
    ours = SegmentationBackbone(
        patch_size=16,
        width=width,
        depth=depth,
        heads=heads,
        hidden=4 * width,
        eps=1e-6,
        activation="gelu",
        pre_norm=False,
        patch_bias=True,
        class_token=True,
        class_position=True,
        img_size=(side, side),
        out_indices=indices,
        drop_path=0.0,
    ).eval()
    ours.load_state_dict(
        {mmseg_name(n): v for n, v in theirs.state_dict().items() if not n.endswith("relative_position_index")}
    )
    images = torch.randn(1, 3, side, side, generator=generator)
    with torch.no_grad():
        for left, right in zip(ours(images), theirs(images), strict=True):
            assert left.std() > 0.5 and (left - right).abs().max() < 1e-4
        table = ours.blocks[0].attn.relative_position_bias_table
        table[0], table[-1] = table[-1].clone(), table[0].clone()
        assert (ours(images)[0] - theirs(images)[0]).abs().max() > 1e-4, "the bias table makes no difference"
