"""Parameter groups of fine-tuning: a learning rate that falls with depth, and no weight decay on vectors."""

import re
from collections.abc import Collection, Mapping
from typing import Any

from torch import nn

INPUT_NAMES = ("cls_token", "reg_token", "pos_embed", "patch_embed", "norm_pre")
NEVER_DECAYED = ("cls_token", "reg_token", "pos_embed", "relative_position_bias_table")  # by the last part of the name


def layer_of(name: str, depth: int) -> int:
    """0 before the blocks, i + 1 for block i, ``depth + 1`` for the rest (norm, head, and all of a ResNet)."""
    block = re.match(r"blocks\.(\d+)\.", name)
    if block:
        return int(block.group(1)) + 1
    return 0 if name.split(".")[0] in INPUT_NAMES else depth + 1


def parameter_groups(
    named: list[tuple[str, nn.Parameter]],
    depth: int,
    rate: float,
    weight_decay: float,
    layers: Mapping[str, int] | None = None,
    never_decayed: Collection[str] = (),
) -> list[dict[str, Any]]:
    """AdamW groups with ``scale`` = rate ** (depth + 1 - layer), which multiplies the schedule's rate at every step.

    Parameters without gradient are left out. Weight decay is 0 for vectors, biases, extra tokens and positions
    (absolute, and BEiT's relative).
    Source: ``util/lr_decay.py`` of MAE and SiameseIM.

    Args:
        layers: by name, where it does not follow from a ViT's names; what is not there is in the last, ``depth + 1``.
        never_decayed: names of further tensors.
    """
    groups: dict[tuple[int, float], dict[str, Any]] = {}
    for name, parameter in named:
        if not parameter.requires_grad:
            continue
        layer = layer_of(name, depth) if layers is None else layers.get(name, depth + 1)
        spared = parameter.ndim <= 1 or name.split(".")[-1] in NEVER_DECAYED or name in never_decayed
        decay = 0.0 if spared else weight_decay
        group = groups.setdefault(
            (layer, decay), {"params": [], "names": [], "weight_decay": decay, "scale": rate ** (depth + 1 - layer)}
        )
        group["params"].append(parameter)
        group["names"].append(name)
    return list(groups.values())
