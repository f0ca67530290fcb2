"""What the name of an architecture says: timm's model of that name is built on the meta device and read out.

Nothing is downloaded. An architecture that computes what the canonical encoder cannot is refused.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import timm
import torch
from timm.layers import QuickGELU
from torch import nn

from evaluate.encoder.spec import MAX_BLOCKS, MAX_HEADS, MAX_SIDE, MAX_WIDTH, is_number
from evaluate.runtime.errors import UserError

# arguments of timm's models that change nothing but what is read out below, and the largest value of each
MODEL_ARGUMENTS = {
    "depth": MAX_BLOCKS,
    "embed_dim": MAX_WIDTH,
    "num_heads": MAX_HEADS,
    "img_size": MAX_SIDE,
    "patch_size": 512,
    "mlp_ratio": 64,
    "reg_tokens": 1024,
    "init_values": 10,
    "num_classes": 10**6,
    "cardinality": 1024,
    "base_width": 4096,
}
SWITCHES = (
    "qkv_bias",
    "class_token",
    "no_embed_class",
    "pre_norm",
    "final_norm",
    "fc_norm",
    "use_fc_norm",
    "dynamic_img_size",
    "dynamic_img_pad",
    "use_abs_pos_emb",
    "use_rel_pos_bias",
    "use_shared_rel_pos_bias",
    "reg_tokens",
    "img_size",
    "init_values",
    "qk_norm",
    "scale_attn_norm",
)
WORDS = ("global_pool", "act_layer", "norm_layer", "pos_embed", "block_fn", "weight_init")
IGNORED_ARGUMENTS = (
    "drop_rate",
    "drop_path_rate",
    "pos_drop_rate",
    "patch_drop_rate",
    "proj_drop_rate",
    "attn_drop_rate",
    "fix_init",
    "features_only",
)
# what the encoder's own model is made of; a named architecture with anything else computes other features
PARTS = {
    "VisionTransformer",
    "Beit",
    "ResNet",
    "PatchEmbed",
    "Block",
    "Attention",
    "Mlp",
    "LayerNorm",
    "LayerScale",
    "GELU",
    "QuickGELU",
    "Identity",
    "Dropout",
    "DropPath",
    "PatchDropout",
    "Linear",
    "Conv2d",
    "Sequential",
    "ModuleList",
    "BatchNorm2d",
    "ReLU",
    "MaxPool2d",
    "Bottleneck",
    "BasicBlock",
    "SelectAdaptivePool2d",
    "AdaptiveAvgPool2d",
    "FastAdaptiveAvgPool",
    "Flatten",
    "RelativePositionBias",
}


@dataclass(frozen=True)
class Architecture:
    """What follows from the name of an architecture, by field of ``EncoderSpec``."""

    name: str
    """Without the tag of its weights."""
    implied: dict[str, Any]
    """What it computes with."""
    shape: dict[str, Any]
    """Sizes that the tensors must have; of a ResNet ``layers`` alone."""


def read_out(name: str, arguments: Mapping[str, Any], place: str, family: str, what: str) -> Architecture:
    """Builds on the meta device what timm builds for a name, and reads it out.

    Args:
        name: as timm knows it, with or without the tag of its weights.
        arguments: of the model, as a config.json gives them.
        place: where the name stands.
        family: "vit" or "resnet".
        what: the file, for errors.

    Raises:
        UserError: timm has no such architecture, or it computes what this encoder cannot.
    """
    name, _, tag = name.partition(".")
    if not timm.is_model(name):
        raise UserError(
            f"{what}: {place} says {name!r}, which timm {timm.__version__} does not know; move config.json away and "
            f"give what it says with --assume"
        )
    try:
        with torch.device("meta"):
            model: Any = timm.create_model(  # torch takes every attribute of a module for a tensor or a module
                f"{name}.{tag}" if tag else name, pretrained=False, **_arguments(arguments, name, what)
            )
    except UserError:
        raise
    except Exception as error:  # timm raises almost anything for arguments that do not fit
        raise UserError(
            f"{what}: timm cannot build {name} with the model_args of config.json "
            f"({str(error).splitlines()[0][:120] if str(error) else type(error).__name__})"
        ) from error
    parts = {
        type(module).__name__
        for key, module in model.named_modules()
        if not key.startswith(("head", "fc", "global_pool"))
    }
    odd = sorted(parts - PARTS)
    if odd or type(model).__name__ not in (("ResNet",) if family == "resnet" else ("VisionTransformer", "Beit")):
        raise UserError(
            f"{what}: {place} says {name}, a {type(model).__name__}{' with ' + ', '.join(odd[:4]) if odd else ''}; "
            f"supported are plain ViTs, BEiT and ResNets"
        )

    cfg = model.pretrained_cfg
    implied: dict[str, Any] = {"mean": tuple(map(float, cfg["mean"])), "std": tuple(map(float, cfg["std"]))}
    if family == "resnet":
        counts = tuple(len(getattr(model, f"layer{stage}")) for stage in range(1, 5))
        return Architecture(name, {**implied, "batch_norm_eps": model.bn1.eps}, {"layers": counts})
    block = model.blocks[0]
    if isinstance(block.mlp.act, nn.GELU) and block.mlp.act.approximate != "none":
        raise UserError(
            f"{what}: {place} says {name}, whose GELU is approximated by tanh; gelu and quick_gelu are supported"
        )
    implied |= {
        "num_heads": block.attn.num_heads,
        "layer_norm_eps": block.norm1.eps,
        "activation": "quick_gelu" if isinstance(block.mlp.act, QuickGELU) else "gelu",
        "pooling": "mean" if str(getattr(model, "global_pool", "token")).startswith("avg") else "cls",
    }
    patch = model.patch_embed.patch_size[0]
    return Architecture(name, implied, {"embed_dim": model.embed_dim, "depth": len(model.blocks), "patch_size": patch})


def _arguments(given: Mapping[str, Any], name: str, what: str) -> dict[str, Any]:
    """The arguments of a model that may be handed on: plain values of bounded size."""
    accepted = {}
    for key, value in given.items():
        if key in IGNORED_ARGUMENTS or key == "num_classes":
            continue
        number = key in MODEL_ARGUMENTS and is_number(value) and 0 <= value <= MODEL_ARGUMENTS[key]
        switch = key in SWITCHES and isinstance(value, bool | type(None))
        word = key in WORDS and isinstance(value, str) and len(value) < 40
        sizes = (
            key == "layers"
            and isinstance(value, list)
            and len(value) == 4
            and all(type(v) is int and 0 < v <= MAX_BLOCKS for v in value)
        )
        pair = (
            key == "img_size"
            and isinstance(value, list)
            and len(value) == 2
            and value[0] == value[1]
            and type(value[0]) is int
            and 0 < value[0] <= MAX_SIDE
        )
        if not (number or switch or word or sizes or pair):
            raise UserError(
                f"{what}: config.json's model_args say {key} {json.dumps(value)[:60]} for {name}, which is not "
                f"supported"
            )
        accepted[key] = tuple(value) if isinstance(value, list) else value
    return accepted
