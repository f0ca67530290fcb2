"""Region heads beside detectron2's: names and shapes of RPN, box and mask heads, anchors, levels, deltas, outputs."""

import math
import re
from typing import Any

import numpy as np
import torch
from mmdet.models.task_modules.coders import DeltaXYWHBBoxCoder
from mmdet.models.task_modules.prior_generators import AnchorGenerator
from mmengine.model import BaseModel
from mmengine.registry import MODELS, DefaultScope
from torch import Tensor, nn

from evaluate.encoder.spec import EncoderSpec
from evaluate.mm.parity.backbones import detector_without_values
from evaluate.mm.parity.names import detectron2_name
from evaluate.mm.parity.samples import FLOAT32, SAME, Result, difference_at_samples, recorded_weight
from evaluate.mm.recipes import read_recipe
from evaluate.runtime.errors import UserError

PARTS = {
    "backbone_net": "backbone.",
    "pyramid": "neck.",
    "rpn": "rpn_head.",
    "box_head": "roi_head.bbox_head.",
    "mask_head": "roi_head.mask_head.",
}
PIXELS = 1e-4  # a bound


def our_name(name: str) -> str:
    """Our name of a parameter of detectron2's detector; in the cascade a stage's number comes first."""
    match = re.match(r"(roi_heads\.box_(?:head|predictor)\.)(\d+)\.", name)
    if not match:
        return detectron2_name(name)
    return detectron2_name(match[1] + name[match.end() :]).replace("bbox_head.", f"bbox_head.{match[2]}.", 1)


def backbone_size(width: int, patch: int, parameters: int) -> tuple[int, int]:
    """(blocks, heads) of a ViTDet backbone by its number of parameters; 197 positions, window 14, 1024 pixels.

    Raises:
        UserError: there is none.
    """
    for heads in sorted({width // 64, 16, 12, 8, 6, 4, 3, 2, 1} - {0}, reverse=True):
        for depth in range(8, 65):
            tables = 2 * width // heads * ((depth - 4) * 27 + 4 * (2 * (1024 // patch) - 1))
            if (3 * patch**2 + 1 + 197) * width + depth * (12 * width**2 + 13 * width) + tables == parameters:
                return depth, heads
    problem = f"no ViTDet backbone of width {width} has {parameters} parameters"
    raise UserError(f"{problem}; the reference file is damaged or of another detector")


def detector(recipe: str, content: dict[str, Any]) -> BaseModel:
    """A recipe's detector of the recorded classes and widths, without values (on the meta device)."""
    cfg = read_recipe(recipe)
    width = content["pyramid"]["backbone.simfp_2.0.weight"][0]
    channels = content["box_head"]["roi_heads.box_head.conv1.weight"][0]
    patch = content["anchors"]["strides"][2]
    depth, heads = backbone_size(width, patch, content["num_parameters"]["backbone_net"])
    cfg.model.neck.out_channels = channels
    cfg.model.rpn_head.update(in_channels=channels, feat_channels=channels)
    for part in ("bbox", "mask"):
        cfg.model.roi_head[f"{part}_roi_extractor"].out_channels = channels
        cfg.model.roi_head[f"{part}_head"].update(in_channels=channels, conv_out_channels=channels)
    cfg.model.roi_head.bbox_head.fc_out_channels = content["box_head"]["roi_heads.box_head.fc1.weight"][0]
    spec = EncoderSpec(
        family="vit",
        embed_dim=width,
        depth=depth,
        num_heads=heads,
        patch_size=patch,
        img_size=14 * patch,
        layer_norm_eps=content["torch_layernorm_eps"][0],
        class_token=True,
        mean=(0.0,) * 3,
        std=(1.0,) * 3,
    )
    return detector_without_values(cfg, spec, content["mask_head"]["roi_heads.mask_head.predictor.weight"][0])


def roi_heads(content: dict[str, Any], device: str) -> Result:
    """All comparisons of a file of this form."""
    plain, cascade = (
        detector("mask_rcnn_vitdet_100ep_coco", content),
        detector("cascade_mask_rcnn_vitdet_100ep_coco", content),
    )
    shared = {**content["pyramid"], **content["rpn"], **content["mask_head"]}
    result: Result = {}
    for name, model, own, total in (
        ("Mask R-CNN", plain, {**content["box_head"], **content["box_predictor"]}, content["num_parameters"]["total"]),
        ("Cascade", cascade, content["cascade"], content["cascade_num_parameters"]),
    ):
        ours = {key: list(value.shape) for key, value in model.named_parameters() if not key.startswith("backbone.")}
        theirs = {our_name(key): shape for key, shape in {**shared, **own}.items()}
        result[f"{name}: names or shapes that differ"] = (
            float(sum(ours.get(k) != theirs.get(k) for k in set(ours) | set(theirs))),
            SAME,
        )
        result[f"{name}: parameters"] = float(abs(sum(value.numel() for value in model.parameters()) - total)), SAME
        eps = {
            module.eps
            for key, module in model.named_modules()
            if hasattr(module, "eps") and not key.startswith("backbone.")
        }
        result[f"{name}: eps of the norms"] = float(eps != set(content["channel_norm_eps"])), SAME
    for part, prefix in PARTS.items():
        count = sum(value.numel() for name, value in plain.named_parameters() if name.startswith(prefix))
        result[f"parameters of {part}"] = float(abs(count - content["num_parameters"][part])), SAME
    result.update(_pooling(plain, content))
    result.update(_anchors(plain, content["anchors"]))
    result.update(_deltas(content["box_deltas"]))
    result.update(_forward(content["small_forward"], device))
    return result


def _pooling(model: BaseModel, content: dict[str, Any]) -> Result:
    """How regions are cut out, and from which level."""
    result: Result = {}
    for name in ("box", "mask"):
        extractor = getattr(model.roi_head, f"{'bbox' if name == 'box' else name}_roi_extractor")
        expected, layer = content[f"{name}_pooler"], extractor.roi_layers[0]
        ours = (layer.output_size, layer.sampling_ratio, layer.aligned)
        wrong = ours != ((expected["output_size"],) * 2, expected["sampling_ratio"], "aligned=True" in expected["type"])
        scales = [layer.spatial_scale for layer in extractor.roi_layers]
        result[f"{name} pooler"] = float(wrong or scales != expected.get("scales", scales)), SAME
    boxes = torch.tensor(content["roi_level_assignment"]["boxes_xyxy"])
    levels = model.roi_head.bbox_roi_extractor.map_roi_levels(
        torch.cat([boxes.new_zeros(len(boxes), 1), boxes], 1), 4
    ).tolist()
    recorded = content["roi_level_assignment"]["level_index_p2_is_0"]
    return {
        **result,
        "levels of regions that differ": (float(sum(a != b for a, b in zip(levels, recorded, strict=True))), SAME),
    }


def _anchors(model: BaseModel, content: dict[str, Any]) -> Result:
    """Anchors around a point and over two small grids."""
    ours = model.rpn_head.prior_generator  # on the meta device, so the same is made anew
    generator = AnchorGenerator([stride[0] for stride in ours.strides], ours.ratios.tolist(), ours.scales.tolist())
    pairs = [(base, content["cell_anchors_xyxy"][level]) for level, base in enumerate(generator.base_anchors)]
    for level, rows, columns in ((0, 2, 3), (1, 1, 2)):
        key = next(key for key in content if key.startswith(f"grid_anchors_level{level}"))
        pairs.append((generator.single_level_grid_priors((rows, columns), level, device="cpu"), content[key]))
    return {"anchors": (max(_difference(ours, theirs) for ours, theirs in pairs), PIXELS)}


def _deltas(content: dict[str, Any]) -> Result:
    """Boxes to deltas and back, by the weights of each stage, and the largest change of size."""
    result: Result = {}
    for name, case in content.items():
        if name == "scale_clamp":
            wide = DeltaXYWHBBoxCoder().decode(
                torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.tensor([[0.0, 0.0, 99.0, 0.0]])
            )
            result["scale clamp"] = abs(math.log(float(wide[0, 2] - wide[0, 0])) - case), 1e-5
            continue
        coder = DeltaXYWHBBoxCoder(target_stds=[1 / weight for weight in case["weights"]])
        source, target = torch.tensor(case["src"]), torch.tensor(case["target"])
        result[f"deltas {name}"] = _difference(coder.encode(source, target), case["deltas"]), 1e-5
        result[f"boxes {name}"] = (
            _difference(coder.decode(source, torch.tensor(case["deltas"])), case["target"]),
            PIXELS,
        )
    return result


def _forward(content: dict[str, Any], device: str) -> Result:
    """The box head's features and the mask head's logits, small."""
    roi_head = read_recipe("mask_rcnn_vitdet_100ep_coco").model.roi_head
    result: Result = {}
    for name, config in (("box_head", roi_head.bbox_head), ("mask_head", roi_head.mask_head)):
        case = content[name]
        batch, channels, height, width = case["input"]["shape"]
        parameters = {
            our_name(f"roi_heads.{name}.{key}").split("_head.", 2)[2]: recorded_weight(entry)
            for key, entry in case["parameters"].items()
        }
        config.update(in_channels=channels, conv_out_channels=channels, num_classes=case["output"]["shape"][1])
        if name == "box_head":
            config.update(fc_out_channels=case["output"]["shape"][1])
        with DefaultScope.overwrite_default_scope("mmdet"):
            head = MODELS.build(config).eval()
        if name == "box_head":
            head.fc_cls, head.fc_reg = nn.Identity(), nn.Identity()
        head.load_state_dict(parameters, strict=True)
        n, c, i, j = np.ogrid[:batch, :channels, :height, :width]
        images = torch.from_numpy(np.sin(0.9 * i + 0.4 * j * (1 + c / channels) + 0.7 * c + 1.3 * n).astype(np.float32))
        with torch.no_grad():
            output = head.to(device)(images.to(device))
        result[f"{name}'s output"] = (
            difference_at_samples(output[0] if name == "box_head" else output, case["output"]),
            FLOAT32,
        )
    return result


def _difference(ours: Tensor, theirs: list[Any]) -> float:
    """The largest difference from a nested list."""
    return float((ours.double() - torch.tensor(theirs, dtype=torch.float64)).abs().max())
