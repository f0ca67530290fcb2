"""MoCo-v3, ViT and ResNet-50: {"state_dict": base_encoder.*, momentum_encoder.*, predictor.*}, ours in "model"; the
official scripts take the base.

Its ViT-S has 12 heads of 32 channels, unlike everyone else's. The stored sine-cosine positions are rows-first: loaded,
never made again.
"""

from evaluate.checkpoints.formats.table import (
    RESNET_ROLES,
    VIT_ROLES,
    Branch,
    Format,
    drop,
    resnet_rows,
    vit_rows,
    with_prefix,
)

HEADS = drop(r"predictor\..+", r"(base|momentum)_encoder\.(head|fc)\..+")


def moco_v3_heads(width: int) -> int:
    """12 heads for ViT-S and ViT-B, 16 for ViT-L and ViT-H (its vits.py)."""
    return {384: 12, 768: 12, 1024: 16, 1280: 16}.get(width, max(1, width // 64))


def _branch(own: str, other: str, family: str) -> Branch:
    rows, roles = (vit_rows, VIT_ROLES) if family == "vit" else (resnet_rows, RESNET_ROLES)
    unused = tuple((pattern, None) for pattern, _ in rows(other.replace(".", r"\.")))
    return Branch((*rows(own.replace(".", r"\.")), *unused, *HEADS), with_prefix(own, roles))


def _branches(family: str) -> dict[str, Branch]:
    base, momentum = "base_encoder.", "momentum_encoder."
    return {"base": _branch(base, momentum, family), "momentum": _branch(momentum, base, family)}


FORMATS = (
    Format(
        name="moco_v3_vit",
        description="MoCo-v3 ViT training checkpoint",
        family="vit",
        state_dict_paths=("state_dict", "model"),
        required_keys=(r"base_encoder\.blocks\.\d+\.attn\.qkv\.weight",),
        branches=_branches("vit"),
        num_heads=moco_v3_heads,
    ),
    Format(
        name="moco_v3_resnet",
        description="MoCo-v3 ResNet-50 training checkpoint",
        family="resnet",
        state_dict_paths=("state_dict", "model"),
        required_keys=(r"base_encoder\.conv1\.weight",),
        branches=_branches("resnet"),
        pooling="mean",
    ),
)
