"""Compares this package with numbers that detectron2 and mmseg gave, in files of the forms under tests/golden/dense/.

    python -m evaluate.mm.parity FILE.json [FILE.json ...]

Prints the largest difference of each compared value; exit status 1 if one is above its bound.
"""

import argparse
import json
import re
import sys
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from evaluate.mm import losses, optimizer, sampler, transforms
from evaluate.mm.attention import resize_pos_embed
from evaluate.mm.parity_heads import roi_heads
from evaluate.mm.reference_names import detectron2_name, mmseg_name
from evaluate.mm.segmentation_backbone import SegmentationBackbone
from evaluate.mm.vitdet import SimpleFeaturePyramid, ViTDetBackbone
from evaluate.runtime.errors import UserError

FLOAT32, EXACT = 5e-5, 1e-9
Result = dict[str, tuple[float, float]]  # name: (largest difference, bound)


def drawn(entry: dict[str, Any]) -> Tensor:
    """A weight from its recipe (seed key, offset, scale). Raises UserError if the generator does not give the recorded values."""
    generator = torch.Generator().manual_seed(zlib.crc32(entry["seed_key"].encode()))
    value = entry["offset"] + entry["scale"] * torch.randn(entry["shape"], generator=generator)
    if "first3" in entry and not np.allclose(value.flatten()[:3].tolist(), entry["first3"][: value.numel()], atol=1e-6):
        raise UserError(f"torch's generator does not give the recorded values of {entry['seed_key']}; compare with torch 2.13")
    return value


def image(entry: dict[str, Any]) -> Tensor:
    """The input picture by its formula."""
    b, c, i, j = np.ogrid[: entry["batch"], : entry["channels"], : entry["height"], : entry["width"]]
    value = np.sin(0.11 * i + 0.07 * (c + 1) * j + 0.5 * b) + 0.5 * np.cos(0.0013 * i * j + c + b)
    return torch.from_numpy(value.astype(np.float32))


def samples(tensor: Tensor, entry: dict[str, Any]) -> float:
    """Largest difference at the recorded positions and of the mean absolute value; infinite if the shape differs."""
    if list(tensor.shape) != entry["shape"]:
        return float("inf")
    flat = tensor.detach().double().flatten()
    at = (flat[entry["sample_index"]] - torch.tensor(entry["sample_value"], dtype=torch.float64)).abs().max()
    return max(float(at), abs(float(flat.abs().sum()) - entry["abs_sum"]) / flat.numel())


def _eps(config: dict[str, Any]) -> float:
    """``norm_eps``, or what mmseg's files have in words: "LN eps 1e-6"."""
    return config.get("norm_eps") or float(config.get("norm_cfg", "1e-6").split()[-1])


def _sizes(config: dict[str, Any], width: str, depth: str, heads: str) -> dict[str, Any]:
    return {
        "patch_size": config["patch_size"], "width": config[width], "depth": config[depth], "heads": config[heads],
        "hidden": round(config["mlp_ratio"] * config[width]), "eps": _eps(config), "activation": "gelu",
        "pre_norm": False, "patch_bias": True,
        "drop_path": 0.0,
    }  # fmt: skip


def _vitdet(config: dict[str, Any], positions: int) -> ViTDetBackbone:
    windowed = config["window_block_indexes"]
    return ViTDetBackbone(
        **_sizes(config, "embed_dim", "depth", "num_heads"), layer_scale=False, positions=positions, img_size=config["img_size"],
        window=config["window_size"], global_indices=tuple(i for i in range(config["depth"]) if i not in windowed),
    ).eval()  # fmt: skip


def vitdet_backbone(content: dict[str, Any]) -> Result:
    """Every block's output, and the last map."""
    result: Result = {}
    for case in content["cases"]:
        backbone = _vitdet(case["config"], case["parameters"]["pos_embed"]["shape"][1])
        state = {name: drawn(entry) for name, entry in case["parameters"].items()}
        if not case["config"]["use_rel_pos"]:  # ours always has the tables; zeros are the same
            state.update({name: torch.zeros_like(value) for name, value in backbone.state_dict().items() if ".rel_pos_" in name})
        backbone.load_state_dict(state)
        with torch.no_grad():
            outputs = backbone.forward_blocks(image(case["input"]))
        named = {"patch_embed": outputs[0], **{f"block{i}": x for i, x in enumerate(outputs[1:])}}
        for name, entry in case["intermediate"].items():
            result[f"{case['name']}: {name}"] = samples(named[name], entry), FLOAT32
        result[f"{case['name']}: last_feat"] = samples(outputs[-1].permute(0, 3, 1, 2), case["last_feat"]), FLOAT32
    return result


def simple_feature_pyramid(content: dict[str, Any]) -> Result:
    """p2 to p6. The file's backbone is described by key only; its scales are those of the backbone file's first case."""
    result: Result = {}
    for case in content["cases"]:
        config = case["backbone_config"]
        positions = (config["pretrain_img_size"] // config["patch_size"]) ** 2 + int(config["pretrain_use_cls_token"])
        backbone = _vitdet(config, positions)
        backbone.load_state_dict({name: _backbone_weight(name, value, case) for name, value in backbone.state_dict().items()})
        pyramid = SimpleFeaturePyramid(config["embed_dim"], case["pyramid_config"]["out_channels"])
        pyramid.load_state_dict({detectron2_name("backbone." + n).removeprefix("neck."): drawn(e) for n, e in case["parameters"].items()})
        with torch.no_grad():
            outputs = pyramid(backbone(image(case["input"])))
        for name, output in zip(("p2", "p3", "p4", "p5", "p6"), outputs, strict=True):
            result[f"{case['name']}: {name}"] = samples(output, case["outputs"][name]), FLOAT32
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
    return drawn({"seed_key": case["seed_prefix"] + name, "shape": list(value.shape), "offset": offset, "scale": scale})


def federated(content: dict[str, Any]) -> Result:
    """Losses, gradients, the classes kept of those present, and how often each class is drawn."""
    result: Result = {}
    for case in content["cases"]:
        classes, labels = case["num_classes"], torch.tensor(case["gt_classes"], dtype=torch.long)
        n, c = np.ogrid[: len(labels), : classes + 1]
        logits = 2.5 * np.sin(1.7 * n + 0.9 * c + case["logit_formula"]["phase"]) + 0.3 * c / (classes + 1) - 1.0
        logits = torch.from_numpy(logits.astype(np.float32)).double().requires_grad_()
        kept = case["kept_classes_in_order"]
        loss = losses.federated_loss(logits, labels, None if kept is None else torch.tensor(kept, dtype=torch.long))
        loss.backward()
        result[f"{case['name']}: loss"] = abs(float(loss.detach()) - case["loss"]), 1e-6 * max(1.0, case["loss"])
        if "grad" in case:
            result[f"{case['name']}: grad"] = float((logits.grad - torch.tensor(case["grad"], dtype=torch.float64)).abs().max()), 1e-7
        if kept is not None:
            counts = case["image_counts"]
            if isinstance(counts, str):
                counts = [1 + (37 * k * k + 11 * k) % 5000 for k in range(classes)]
            ours = losses.kept_classes(labels, torch.tensor(counts, dtype=torch.float32) ** 0.5, case["fed_loss_num_classes"]).tolist()
            present = case["unique_gt"]
            wrong = ours[: len(present)] != present or len(set(ours)) != len(kept) or len(ours) != len(kept)
            result[f"{case['name']}: kept classes"] = float(wrong), 0.0
    for index, case in enumerate(content.get("inclusion", ())):
        labels, weights = torch.tensor(case["gt_classes"]), torch.tensor(case["class_weights"])
        generator, draws = torch.Generator().manual_seed(0), 5_000
        seen = torch.zeros(case["num_classes"] + 1)
        for _ in range(draws):
            seen[losses.kept_classes(labels, weights, case["fed_loss_num_classes"], generator)] += 1
        exact = torch.tensor(case["exact_inclusion_probability"])
        allowed = 4 * (exact * (1 - exact) / draws).clamp(min=0).sqrt() + 0.001
        excess = ((seen[: len(exact)] / draws - exact).abs() / allowed).max()
        result[f"inclusion {index}: difference over tolerance"] = float(excess), 1.0
    return result


def repeat_factors(content: dict[str, Any]) -> Result:
    """Factors, their sum, and the mean size of an epoch."""
    result: Result = {}
    for case in content["cases"]:
        categories = case.get("images_categories")
        if categories is None:
            special = {int(index): owned for index, owned in case["special_images"].items()}
            categories = [special.get(index, case["default_categories"]) for index in range(case["num_images"])]
        for threshold, expected in case["thresholds"].items():
            factors = sampler.repeat_factors(categories, float(threshold))
            name = f"{case['name']}, threshold {threshold}"
            recorded = dict(enumerate(expected["factors"])) if "factors" in expected else expected["factors_at"]
            result[f"{name}: factors"] = max(abs(float(factors[int(i)]) - value) for i, value in recorded.items()), 1e-5
            result[f"{name}: sum"] = abs(float(factors.double().sum()) - expected["sum"]), 1e-6 * expected["sum"]
            generator = torch.Generator().manual_seed(0)
            sizes = [len(sampler.stochastic_round(factors, generator)) for _ in range(200)]
            spread = float(((factors % 1) * (1 - factors % 1)).double().sum().sqrt())
            epochs = min(200, expected["epochs_simulated"])
            result[f"{name}: epoch size"] = abs(float(np.mean(sizes)) - expected["epoch_size_mean"]), 6 * spread / epochs**0.5 + EXACT
    return result


def large_scale_jitter(content: dict[str, Any]) -> Result:
    """Sizes, offsets, boxes, test sizes and the resampler."""
    worst: dict[str, float] = {}

    def note(name: str, ours: Any, expected: Any) -> None:
        worst[name] = max(worst.get(name, 0.0), float(np.abs(np.asarray(ours, float) - np.asarray(expected, float)).max()))

    target = content["target"]
    for case in content["cases"] + content.get("half_way_offsets", []):
        height, width = case["height"], case["width"]
        size = transforms.jittered_size(height, width, case["scale_draw"], target)
        note("resized size", size, (case["resized_height"], case["resized_width"]))
        top, left = transforms.crop_offset(*size, target, case["crop_draw"])
        note("crop offset", (top, left), (case["crop_y0"], case["crop_x0"]))
        note("output size", (min(size[0] - top, target), min(size[1] - left, target)), (case["output_height"], case["output_width"]))
        x1, y1, x2, y2 = case["box_xyxy_in"]
        box = np.array([[x1, y1], [x2, y2]]) * [size[1] / width, size[0] / height]
        note("box after resize", box.ravel(), case["box_after_resize"])
        note("box after crop", (box - [left, top]).ravel(), case["box_after_crop_unclipped"])
        sample = {"img": np.zeros((height, width, 3), np.uint8), "polygons": [[np.array(case["polygon_in"]).ravel()]], "labels": [0]}
        boxes = transforms.jitter(sample, target, False, case["scale_draw"], case["crop_draw"])["gt_bboxes"].tensor
        expected = case["polygon_box_after_crop"]
        if expected is not None and min(expected[2] - expected[0], expected[3] - expected[1]) > 1e-5:
            note("box of the cropped polygon", boxes[0] if len(boxes) else [np.inf] * 4, expected)
        elif len(boxes):
            note("box of the cropped polygon", [np.inf], [0])
    for height, width, new_height, new_width in content["test_resize"]["rows"]:
        note("test size", transforms.tested_size(height, width, target, target), (new_height, new_width))
    i, j = np.ogrid[:40, :60]
    first = np.floor((np.sin(0.9 * i + 0.35 * j) + 1) * 127.5).astype(np.uint8)
    picture = np.stack([first, 255 - first, first // 2], 2)
    for row in content["resampler"]["rows"]:
        resized = transforms.resize_image(picture, row["new_height"], row["new_width"]).astype(int)
        note("resampler", resized.sum((0, 1)), row["sum_per_channel"])
        note("resampler", resized[3, :24, 0], row["row3_channel0_first24"])
    bounds = {"box after resize": 1e-6, "box after crop": 1e-6, "box of the cropped polygon": 1e-3}
    return {name: (value, bounds.get(name, 0.0)) for name, value in worst.items()}


def lr_decay(content: dict[str, Any]) -> Result:
    """Learning-rate factor, weight decay and shape of every parameter of our own COCO recipe with a ViT-B, and the schedules."""
    from evaluate.mm.runner import read_recipe

    settings = content["optimizer"]
    rate, layers = settings["lr_decay_rate"], settings["num_layers"]
    names = content["function_on_single_names"]
    result = {"rule on single names": (max(abs(optimizer.multiplier(n, rate, layers) - v) for n, v in names.items()), EXACT)}
    expected = {detectron2_name(name): (row[0], row[2], row[4]) for name, row in content["parameters"].items()}
    model = recorded_model(read_recipe("mask_rcnn_vitdet_100ep_coco"), {name: row[2] for name, row in expected.items()})
    shapes = {name: list(p.shape) for name, p in model.named_parameters()}
    groups = optimizer.parameter_groups(model, settings["lr"], settings["weight_decay"], rate, layers, "detectron2")
    ours = {name: (group["lr_scale"], group["weight_decay"], shapes[name]) for group in groups for name in group["names"]}
    result["parameters that only one side has"] = float(len(set(ours) ^ set(expected))), 0.0
    both = set(ours) & set(expected)
    result["learning-rate factors"] = max(abs(ours[n][0] - expected[n][0]) for n in both), EXACT
    result["weight decays"] = max(abs(ours[n][1] - expected[n][1]) for n in both), EXACT
    result["shapes that differ"] = float(sum(ours[n][2] != expected[n][2] for n in both)), 0.0
    for dataset, schedule in content.get("schedule", {}).items():
        recipe = read_recipe(f"mask_rcnn_vitdet_100ep_{dataset}")
        if schedule["max_iter"] == recipe.train_cfg.max_iters:
            result[f"{dataset} rate"] = abs(recipe.optim_wrapper.optimizer.lr - schedule["lr"]), EXACT
        else:  # another length than the paper's: its warm-up and steps in our kind of schedule
            recipe.param_scheduler[0].update(start_factor=schedule["warmup_factor"], end=schedule["warmup_iters"] + 1)
            recipe.param_scheduler[1].update(milestones=schedule["milestones"])
        multipliers = schedule_multipliers(recipe.param_scheduler, sorted(int(i) for i in schedule["multiplier_at"]))
        worst = max(abs(multipliers[int(i)] - value) for i, value in schedule["multiplier_at"].items())
        result[f"{dataset} schedule"] = worst, 1e-9
    return result


def recorded_model(recipe: Any, shapes: dict[str, list[int]]) -> nn.Module:
    """The recipe's detector of the sizes that the recorded shapes have, without values (on the meta device)."""
    import mmdet.models  # noqa: F401
    from mmengine.registry import MODELS, DefaultScope

    block = "backbone.blocks.{}.attn.rel_pos_h"
    depth = len([name for name in shapes if name.endswith("attn.rel_pos_h")])
    width, _, patch, _ = shapes["backbone.patch_embed.proj.weight"]
    tables = [shapes[block.format(index)] for index in range(depth)]
    window = (min(length for length, _ in tables) + 1) // 2
    longest = (max(length for length, _ in tables) + 1) // 2
    model, strides = recipe.model, [patch // 4, patch // 2, patch, patch * 2, patch * 4]
    sizes = {
        "patch_size": patch, "embed_dim": width, "depth": depth, "num_heads": width // tables[0][1],
        "mlp_ratio": shapes["backbone.blocks.0.mlp.fc1.weight"][0] / width,
    }  # fmt: skip
    model.backbone.update(
        _sizes(sizes, "embed_dim", "depth", "num_heads"), layer_scale=False, positions=shapes["backbone.pos_embed"][1], window=window,
        img_size=longest * patch, global_indices=[index for index in range(depth) if tables[index][0] != 2 * window - 1],
    )  # fmt: skip
    model.data_preprocessor.update(mean=[0.0] * 3, std=[1.0] * 3)
    model.neck.in_channels = width
    model.rpn_head.anchor_generator.strides = strides
    model.roi_head.bbox_roi_extractor.featmap_strides = model.roi_head.mask_roi_extractor.featmap_strides = strides[:4]
    model.roi_head.bbox_head.num_classes = model.roi_head.mask_head.num_classes = shapes["roi_head.bbox_head.fc_cls.weight"][0] - 1
    with DefaultScope.overwrite_default_scope("mmdet"), torch.device("meta"):
        return MODELS.build(model)


def schedule_multipliers(schedulers: list[dict[str, Any]], iterations: list[int]) -> dict[int, float]:
    """Learning-rate factor of a recipe's schedule at some iterations, by mmengine's own schedulers."""
    from mmengine.registry import PARAM_SCHEDULERS

    sgd = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    built = [PARAM_SCHEDULERS.build({**scheduler, "optimizer": sgd}) for scheduler in schedulers]
    wanted, factors = set(iterations), {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the optimizer made no step
        for iteration in range(max(iterations) + 1):
            if iteration in wanted:
                factors[iteration] = sgd.param_groups[0]["lr"]
            for scheduler in built:
                scheduler.step()
    return factors


def mmseg_mae_backbone(content: dict[str, Any]) -> Result:
    """The maps, the resized position embedding, the layer decay and mmseg's own Feature2Pyramid, which the recipe uses."""
    result: Result = {}
    for case in content["cases"]:
        config = case["config"]
        backbone = SegmentationBackbone(
            **_sizes(config, "embed_dims", "num_layers", "num_heads"), class_token=True, class_position=True,
            img_size=tuple(config["img_size"]), out_indices=tuple(config["out_indices"]), final_norm=config["final_norm"],
        ).eval()  # fmt: skip
        entries = {mmseg_name(n): e for n, e in case["parameters"].items() if not n.endswith("relative_position_index")}
        backbone.load_state_dict({name: drawn(entry) for name, entry in entries.items()})
        with torch.no_grad():
            outputs = backbone(image(case["input"]))
        for output, entry in zip(outputs, case["outputs"], strict=True):
            result[f"{case['name']}: layer {entry['layer']}"] = samples(output, entry), FLOAT32
    for case in content.get("pos_embed_resize", {}).get("cases", ()):
        source = drawn({"seed_key": case["source_seed_key"], "shape": case["source_shape"], "offset": 0.0, "scale": case["scale"]})
        side = round((case["result"]["shape"][1] - 1) ** 0.5)
        prefix, patches = resize_pos_embed(source, True, (side, side))
        resized = torch.cat([prefix, patches.flatten(1, 2)], 1)
        result[f"position embedding from {source.shape[1]} rows"] = samples(resized, case["result"]), FLOAT32
    decay = content.get("layer_decay")
    if decay:
        scale = weight = 0.0
        for name, (expected, weight_decay) in decay["parameters"].items():
            ours = "backbone." + mmseg_name(name.removeprefix("backbone.")) if name.startswith("backbone.") else name
            scale = max(scale, abs(optimizer.multiplier(ours, decay["decay_rate"], decay["num_layers"], "mmseg") - expected))
            # the recorded library tells by axes and name; what has one axis in it has one here
            axes = 1 if re.search(r"gamma|norm|bias$", ours) else 2
            parameter = nn.Parameter(torch.zeros([1] * axes))
            found = optimizer.weight_decay_of(ours, nn.Module(), parameter, decay["optimizer"]["weight_decay"], "mmseg")
            weight = max(weight, abs(found - weight_decay))
        result["learning-rate factors"] = scale, EXACT
        result["weight decays"] = weight, EXACT
    if "feature2pyramid" in content:
        result.update(_feature2pyramid(content["feature2pyramid"]))
    return result


def _feature2pyramid(case: dict[str, Any]) -> Result:
    """The neck of the segmentation recipe is mmseg's own; this guards against a change of it."""
    from mmseg.models.necks import Feature2Pyramid

    neck = Feature2Pyramid(case["config"]["embed_dim"], case["config"]["rescales"], norm_cfg={"type": "BN"}).eval()
    state = {name: drawn(case["parameters"][name]) for name in neck.state_dict() if not name.endswith("num_batches_tracked")}
    neck.load_state_dict({**neck.state_dict(), **state})
    width = case["config"]["embed_dim"]
    h, w = case["outputs"][case["config"]["rescales"].index(1)]["shape"][2:]
    k, c, i, j = np.ogrid[:4, :width, :h, :w]
    maps = torch.from_numpy(np.sin(0.9 * i + 0.4 * j * (1 + c / width) + 0.7 * c + 0.6 * k).astype(np.float32))
    with torch.no_grad():
        outputs = neck([x[None] for x in maps])
    return {f"Feature2Pyramid {k}": (samples(x, e), FLOAT32) for k, (x, e) in enumerate(zip(outputs, case["outputs"], strict=True))}


FORMS = {  # a key that only this form has: the comparison
    "roi_level_assignment": roi_heads,
    "pyramid_config": simple_feature_pyramid, "last_feat": vitdet_backbone, "fed_loss_num_classes": federated,
    "function_on_single_names": lr_decay, "thresholds": repeat_factors, "test_resize": large_scale_jitter, "outputs": mmseg_mae_backbone,
}  # fmt: skip


def compare(path: Path) -> Result:
    """All comparisons of one file. Raises UserError if it is of no known form."""
    try:
        content = json.loads(Path(path).read_text())
        keys = set(content) | set((content.get("cases") or [{}])[0])
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise UserError(f"{path} cannot be read as reference numbers ({error}); give one like those in tests/golden/dense/") from error
    for key, form in FORMS.items():
        if key in keys:
            return form(content)
    raise UserError(f"{path} is of no known form; a file has one of the keys {', '.join(FORMS)}")


def main(argv: list[str] | None = None) -> int:
    """The command; returns the exit status (0 within bounds, 1 above one, 2 bad input)."""
    parser = argparse.ArgumentParser(prog="python -m evaluate.mm.parity", description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="+", type=Path)
    status = 0
    for path in parser.parse_args(argv).files:
        try:
            result = compare(path)
        except UserError as error:
            print(f"evaluate.mm.parity: {error}", file=sys.stderr)
            return 2
        for name, (difference, bound) in result.items():
            wrong = not difference <= bound
            status |= wrong
            print(f"{path.name}: {name}: {difference:.3g} (bound {bound:.3g}){' ABOVE' if wrong else ''}")
    return int(status)


if __name__ == "__main__":
    sys.exit(main())
