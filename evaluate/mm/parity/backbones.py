"""The backbones beside detectron2's and mmseg's: ViTDet, its pyramid, mmseg's MAE backbone and Feature2Pyramid."""

import re
from types import SimpleNamespace
from typing import Any, cast

import mmdet.models  # noqa: F401  (registers what recipes name by text)
import numpy as np
import torch
from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.registry import MODELS, DefaultScope
from mmseg.models.necks import Feature2Pyramid
from torch import Tensor, nn

from evaluate.encoder.model import Encoder, build
from evaluate.encoder.spec import EncoderSpec
from evaluate.mm import detector, optimizer
from evaluate.mm.backbones.layers import resize_pos_embed
from evaluate.mm.backbones.segmentation import SegmentationBackbone
from evaluate.mm.backbones.vitdet import SimpleFeaturePyramid, ViTDetBackbone
from evaluate.mm.parity.names import detectron2_name, mmseg_name
from evaluate.mm.parity.samples import EXACT, FLOAT32, Result, difference_at_samples, image, recorded_weight


def _eps(config: dict[str, Any]) -> float:
    """LayerNorm's epsilon: ``norm_eps``, or what mmseg's files have in words: "LN eps 1e-6"."""
    return config.get("norm_eps") or float(config.get("norm_cfg", "1e-6").split()[-1])


def _sizes(config: dict[str, Any], width: str, depth: str, heads: str) -> dict[str, Any]:
    """Our constructor's arguments from a recorded config, and the names that it has for three of them."""
    return {
        "patch_size": config["patch_size"],
        "width": config[width],
        "depth": config[depth],
        "heads": config[heads],
        "hidden": round(config["mlp_ratio"] * config[width]),
        "eps": _eps(config),
        "activation": "gelu",
        "pre_norm": False,
        "patch_bias": True,
        "drop_path": 0.0,
    }


def detector_without_values(cfg: Config, spec: EncoderSpec, classes: int) -> BaseModel:
    """A recipe's detector for an encoder of this spec, on the meta device."""
    detector.fill_encoder(cfg, cast(Encoder, SimpleNamespace(spec=spec, model=build(spec))))
    detector.fill_classes(cfg, [1] * classes)
    with DefaultScope.overwrite_default_scope("mmdet"), torch.device("meta"):
        return MODELS.build(cfg.model)


def _vitdet(config: dict[str, Any], positions: int) -> ViTDetBackbone:
    windowed = config["window_block_indexes"]
    return ViTDetBackbone(
        **_sizes(config, "embed_dim", "depth", "num_heads"),
        layer_scale=False,
        positions=positions,
        img_size=config["img_size"],
        window=config["window_size"],
        global_indices=tuple(i for i in range(config["depth"]) if i not in windowed),
    ).eval()


def vitdet_backbone(content: dict[str, Any], device: str) -> Result:
    """Every block's output, and the last map."""
    result: Result = {}
    for case in content["cases"]:
        backbone = _vitdet(case["config"], case["parameters"]["pos_embed"]["shape"][1])
        state = {name: recorded_weight(entry) for name, entry in case["parameters"].items()}
        if not case["config"]["use_rel_pos"]:  # ours always has the tables; zeros are the same
            state.update(
                {name: torch.zeros_like(value) for name, value in backbone.state_dict().items() if ".rel_pos_" in name}
            )
        backbone.load_state_dict(state)
        with torch.no_grad():
            outputs = backbone.to(device).forward_blocks(image(case["input"], device))
        named = {"patch_embed": outputs[0], **{f"block{i}": x for i, x in enumerate(outputs[1:])}}
        for name, entry in case["intermediate"].items():
            result[f"{case['name']}: {name}"] = difference_at_samples(named[name], entry), FLOAT32
        result[f"{case['name']}: last_feat"] = (
            difference_at_samples(outputs[-1].permute(0, 3, 1, 2), case["last_feat"]),
            FLOAT32,
        )
    return result


def simple_feature_pyramid(content: dict[str, Any], device: str) -> Result:
    """p2 to p6. The file names its backbone by key only; the scales are those of the backbone file's first case."""
    result: Result = {}
    for case in content["cases"]:
        config = case["backbone_config"]
        positions = (config["pretrain_img_size"] // config["patch_size"]) ** 2 + int(config["pretrain_use_cls_token"])
        backbone = _vitdet(config, positions)
        backbone.load_state_dict(
            {name: _backbone_weight(name, value, case) for name, value in backbone.state_dict().items()}
        )
        pyramid = SimpleFeaturePyramid(config["embed_dim"], case["pyramid_config"]["out_channels"])
        pyramid.load_state_dict(
            {
                detectron2_name("backbone." + n).removeprefix("neck."): recorded_weight(e)
                for n, e in case["parameters"].items()
            }
        )
        with torch.no_grad():
            outputs = pyramid.to(device)(backbone.to(device)(image(case["input"], device)))
        for name, output in zip(("p2", "p3", "p4", "p5", "p6"), outputs, strict=True):
            result[f"{case['name']}: {name}"] = difference_at_samples(output, case["outputs"][name]), FLOAT32
    return result


def _backbone_weight(name: str, value: Tensor, case: dict[str, Any]) -> Tensor:
    """The scales of vitdet_backbone.json by kind of parameter."""
    offset, scale = 0.0, 0.02
    if re.search(r"norm\d\.weight$", name):
        offset, scale = 1.0, 0.1
    elif ".rel_pos_" in name:
        scale = case["rel_pos_scale"]
    elif name.endswith(("qkv.weight", "fc1.weight")):
        scale = 0.15
    elif name.endswith("attn.proj.weight"):
        scale = 0.05
    elif name == "patch_embed.proj.weight":
        scale = 0.002
    return recorded_weight(
        {"seed_key": case["seed_prefix"] + name, "shape": list(value.shape), "offset": offset, "scale": scale}
    )


def mmseg_mae_backbone(content: dict[str, Any], device: str) -> Result:
    """Maps, resized position embedding, layer decay, and mmseg's own Feature2Pyramid, which the recipe uses."""
    result: Result = {}
    for case in content["cases"]:
        config = case["config"]
        backbone = SegmentationBackbone(
            **_sizes(config, "embed_dims", "num_layers", "num_heads"),
            class_token=True,
            class_position=True,
            img_size=tuple(config["img_size"]),
            out_indices=tuple(config["out_indices"]),
            final_norm=config["final_norm"],
        ).eval()
        entries = {mmseg_name(n): e for n, e in case["parameters"].items() if not n.endswith("relative_position_index")}
        backbone.load_state_dict({name: recorded_weight(entry) for name, entry in entries.items()})
        with torch.no_grad():
            outputs = backbone.to(device)(image(case["input"], device))
        for output, entry in zip(outputs, case["outputs"], strict=True):
            result[f"{case['name']}: layer {entry['layer']}"] = difference_at_samples(output, entry), FLOAT32
    for case in content.get("pos_embed_resize", {}).get("cases", ()):
        source = recorded_weight(
            {"seed_key": case["source_seed_key"], "shape": case["source_shape"], "offset": 0.0, "scale": case["scale"]}
        )
        side = round((case["result"]["shape"][1] - 1) ** 0.5)
        prefix, patches = resize_pos_embed(source.to(device), True, (side, side))
        assert prefix is not None  # these have a class token
        resized = torch.cat([prefix, patches.flatten(1, 2)], 1)
        result[f"position embedding from {source.shape[1]} rows"] = (
            difference_at_samples(resized, case["result"]),
            FLOAT32,
        )
    decay = content.get("layer_decay")
    if decay:
        scale = weight = 0.0
        for name, (expected, weight_decay) in decay["parameters"].items():
            ours = "backbone." + mmseg_name(name.removeprefix("backbone.")) if name.startswith("backbone.") else name
            scale = max(
                scale, abs(optimizer.multiplier(ours, decay["decay_rate"], decay["num_layers"], "mmseg") - expected)
            )
            # the recorded library tells by axes and name; what has one axis in it has one here
            axes = 1 if re.search(r"gamma|norm|bias$", ours) else 2
            parameter = nn.Parameter(torch.zeros([1] * axes))
            our_decay = optimizer.weight_decay_of(
                ours, nn.Module(), parameter, decay["optimizer"]["weight_decay"], "mmseg"
            )
            weight = max(weight, abs(our_decay - weight_decay))
        result["learning-rate factors"] = scale, EXACT
        result["weight decays"] = weight, EXACT
    if "feature2pyramid" in content:
        result.update(_feature2pyramid(content["feature2pyramid"], device))
    return result


def _feature2pyramid(case: dict[str, Any], device: str) -> Result:
    """The neck of the segmentation recipe is mmseg's own; this guards against a change of it."""
    neck = Feature2Pyramid(case["config"]["embed_dim"], case["config"]["rescales"], norm_cfg={"type": "BN"}).eval()
    state = {
        name: recorded_weight(case["parameters"][name])
        for name in neck.state_dict()
        if not name.endswith("num_batches_tracked")
    }
    neck.load_state_dict({**neck.state_dict(), **state})
    width = case["config"]["embed_dim"]
    h, w = case["outputs"][case["config"]["rescales"].index(1)]["shape"][2:]
    k, c, i, j = np.ogrid[:4, :width, :h, :w]
    maps = torch.from_numpy(np.sin(0.9 * i + 0.4 * j * (1 + c / width) + 0.7 * c + 0.6 * k).astype(np.float32)).to(
        device
    )
    with torch.no_grad():
        outputs = neck.to(device)([x[None] for x in maps])
    return {
        f"Feature2Pyramid {k}": (difference_at_samples(x, e), FLOAT32)
        for k, (x, e) in enumerate(zip(outputs, case["outputs"], strict=True))
    }
