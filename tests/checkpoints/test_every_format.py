"""Every format, as a tiny file made from what its roles say: recognized as itself alone, converted, certified, and
equal in features."""

import pytest
import torch

from evaluate import encoder
from evaluate.checkpoints import conversion, formats
from evaluate.checkpoints.certificate import fixed_image
from evaluate.checkpoints.reference import Semantics, SourceViT
from tests.checkpoints.tiny_files import PATCH, SIDE, checkpoint_of, tiny_vit


@pytest.mark.parametrize("known", formats.FORMATS, ids=lambda known: known.name)
def test_converts_with_the_right_features(known: formats.Format, tmp_path) -> None:
    file = tmp_path / "file.pth"
    torch.save(checkpoint_of(known), file)
    outputs = []
    for branch in known.branches:
        out = tmp_path / branch / "encoder.safetensors"
        asked = known.name if known.name == "simclr_converted" else None  # nothing in such a file tells it
        certificate = conversion.convert(file, out, branch=branch, format=asked)
        assert certificate.source_format == known.name
        dense = {name for name, check in certificate.checks.items() if "skipped" in check}
        assert all(check.get("passed", True) for check in certificate.checks.values())
        assert not dense or "dinov2" in known.name, "a framework was left out"
        assert len(certificate.checks) >= (4 if known.family == "vit" else 2)
        loaded = encoder.load(out)
        assert (loaded.spec.mean, loaded.spec.std) == known.normalization
        assert loaded.spec.layer_norm_eps == (1e-5 if loaded.spec.pre_norm else known.layer_norm_eps) or (
            known.family == "resnet"
        )
        features = loaded.forward_tokens(fixed_image(loaded.spec.img_size))
        outputs.append(features.pooled("mean"))
    if len(outputs) > 1 and None not in outputs:
        assert (outputs[0] - outputs[1]).abs().max() > 1e-3, "two branches gave the same features"


def test_reference_sees_a_swapped_query(tmp_path) -> None:
    """The reference is no copy of the name table: q and k exchanged under their names change it."""
    known = formats.by_name("hf_vit")
    roles = known.branches["encoder"].roles
    state = tiny_vit(known, dict(roles), 0)
    image = fixed_image(SIDE * PATCH)
    swapped = {**roles, "q": roles["k"], "k": roles["q"]}
    first, second = (
        reference.blocks(reference.embed(image))
        for reference in (SourceViT(state, r, Semantics(2, 1e-12)) for r in (roles, swapped))
    )
    assert (first - second).abs().max() > 1e-3
