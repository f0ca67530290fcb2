"""The counted operations of a forward pass, against torch's own count of the operators that run."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from evaluate.encoder.flops import forward_gflop
from evaluate.encoder.model import build
from evaluate.encoder.spec import EncoderSpec

COLORS = {"mean": (0.5,) * 3, "std": (0.25,) * 3}


@pytest.mark.parametrize(
    ("spec", "side"),
    [
        (EncoderSpec("vit", 96, 3, **COLORS, num_heads=3, class_token=True), 224),
        (EncoderSpec("vit", 64, 2, **COLORS, num_heads=2, patch_size=14, img_size=98, registers=4), 98),
        (EncoderSpec("resnet", 2048, 16, **COLORS, patch_size=32, layers=(3, 4, 6, 3), block="bottleneck"), 64),
        (EncoderSpec("resnet", 512, 8, **COLORS, patch_size=32, layers=(2, 2, 2, 2), block="basic"), 64),
        (
            EncoderSpec(
                "resnet", 2048, 4, **COLORS, patch_size=32, layers=(1,) * 4, block="bottleneck", cardinality=32,
                base_width=4,
            ),
            64,
        ),
    ],
)  # fmt: skip
def test_as_many_operations_as_torch_counts(spec: EncoderSpec, side: int) -> None:
    model = build(spec).eval()
    with torch.no_grad(), torch.device("meta"), FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, 3, side, side, device="meta"))
    assert forward_gflop(spec, side) == pytest.approx(counter.get_total_flops() / 1e9, rel=1e-3)


def test_of_a_vit_b_as_its_papers_say() -> None:
    """35 GFLOP at 224 pixels (17.5 billion products), counted on a pretended GPU."""
    spec = EncoderSpec("vit", 768, 12, **COLORS, num_heads=12, class_token=True)
    assert forward_gflop(spec, 224) == pytest.approx(35.1, abs=0.1)
