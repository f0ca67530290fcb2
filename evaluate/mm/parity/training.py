"""What trains a detector beside detectron2: federated loss, repeat factors, jitter, layer decay, schedules."""

import warnings
from math import isqrt
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.registry import PARAM_SCHEDULERS
from torch import nn

from evaluate.encoder.spec import EncoderSpec
from evaluate.mm import losses, optimizer, sampler, transforms
from evaluate.mm.parity.backbones import detector_without_values
from evaluate.mm.parity.names import detectron2_name
from evaluate.mm.parity.samples import EXACT, Result
from evaluate.mm.recipes import read_recipe


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
        result[f"{case['name']}: loss"] = abs(float(loss.detach()) - case["loss"]), 1e-6 * max(1.0, case["loss"])
        if "grad" in case:
            (gradient,) = torch.autograd.grad(loss, logits)
            worst = (gradient - torch.tensor(case["grad"], dtype=torch.float64)).abs().max()
            result[f"{case['name']}: grad"] = float(worst), 1e-7
        if kept is not None:
            counts = case["image_counts"]
            if isinstance(counts, str):
                counts = [1 + (37 * k * k + 11 * k) % 5000 for k in range(classes)]
            ours = losses.kept_classes(
                labels, torch.tensor(counts, dtype=torch.float32) ** 0.5, case["fed_loss_num_classes"]
            ).tolist()
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
            result[f"{name}: epoch size"] = (
                abs(float(np.mean(sizes)) - expected["epoch_size_mean"]),
                6 * spread / epochs**0.5 + EXACT,
            )
    return result


def large_scale_jitter(content: dict[str, Any]) -> Result:
    """Sizes, offsets, boxes, test sizes and the resampler."""
    worst: dict[str, float] = {}

    def note(name: str, ours: Any, expected: Any) -> None:
        worst[name] = max(
            worst.get(name, 0.0), float(np.abs(np.asarray(ours, float) - np.asarray(expected, float)).max())
        )

    target = content["target"]
    for case in content["cases"] + content.get("half_way_offsets", []):
        height, width = case["height"], case["width"]
        size = transforms.jittered_size(height, width, case["scale_draw"], target)
        note("resized size", size, (case["resized_height"], case["resized_width"]))
        top, left = transforms.crop_offset(*size, target, case["crop_draw"])
        note("crop offset", (top, left), (case["crop_y0"], case["crop_x0"]))
        note(
            "output size",
            (min(size[0] - top, target), min(size[1] - left, target)),
            (case["output_height"], case["output_width"]),
        )
        x1, y1, x2, y2 = case["box_xyxy_in"]
        box = np.array([[x1, y1], [x2, y2]]) * [size[1] / width, size[0] / height]
        note("box after resize", box.ravel(), case["box_after_resize"])
        note("box after crop", (box - [left, top]).ravel(), case["box_after_crop_unclipped"])
        sample = {
            "img": np.zeros((height, width, 3), np.uint8),
            "polygons": [[np.array(case["polygon_in"]).ravel()]],
            "labels": [0],
        }
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
    """Learning-rate factor, weight decay and shape of all parameters of our COCO recipe with a ViT-B; schedules."""
    settings = content["optimizer"]
    rate, layers = settings["lr_decay_rate"], settings["num_layers"]
    names = content["function_on_single_names"]
    result = {
        "rule on single names": (max(abs(optimizer.multiplier(n, rate, layers) - v) for n, v in names.items()), EXACT)
    }
    expected = {detectron2_name(name): (row[0], row[2], row[4]) for name, row in content["parameters"].items()}
    model = recorded_model(read_recipe("mask_rcnn_vitdet_100ep_coco"), {name: row[2] for name, row in expected.items()})
    shapes = {name: list(p.shape) for name, p in model.named_parameters()}
    groups = optimizer.parameter_groups(model, settings["lr"], settings["weight_decay"], rate, layers, "detectron2")
    ours = {
        name: (group["lr_scale"], group["weight_decay"], shapes[name]) for group in groups for name in group["names"]
    }
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


def recorded_model(recipe: Config, shapes: dict[str, list[int]]) -> nn.Module:
    """The recipe's detector of the sizes that the recorded shapes have, without values (on the meta device)."""
    block = "backbone.blocks.{}.attn.rel_pos_h"
    depth = len([name for name in shapes if name.endswith("attn.rel_pos_h")])
    width, _, patch, _ = shapes["backbone.patch_embed.proj.weight"]
    tables = [shapes[block.format(index)] for index in range(depth)]
    window = (min(length for length, _ in tables) + 1) // 2
    longest = (max(length for length, _ in tables) + 1) // 2
    positions = shapes["backbone.pos_embed"][1]
    side = isqrt(positions)
    spec = EncoderSpec(
        family="vit",
        embed_dim=width,
        depth=depth,
        num_heads=width // tables[0][1],
        patch_size=patch,
        img_size=side * patch,
        mlp_ratio=shapes["backbone.blocks.0.mlp.fc1.weight"][0] / width,
        class_token=positions > side**2,
        mean=(0.0,) * 3,
        std=(1.0,) * 3,
    )
    global_indices = [index for index in range(depth) if tables[index][0] != 2 * window - 1]
    recipe.model.backbone.update(window=window, img_size=longest * patch, global_indices=global_indices)
    return detector_without_values(recipe, spec, shapes["roi_head.bbox_head.fc_cls.weight"][0] - 1)


def schedule_multipliers(schedulers: list[dict[str, Any]], iterations: list[int]) -> dict[int, float]:
    """Learning-rate factor of a recipe's schedule at some iterations, by mmengine's own schedulers."""
    sgd = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    built = [PARAM_SCHEDULERS.build({**scheduler, "optimizer": sgd}) for scheduler in schedulers]
    wanted, factors = set(iterations), dict[int, float]()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the optimizer made no step
        for iteration in range(max(iterations) + 1):
            if iteration in wanted:
                factors[iteration] = sgd.param_groups[0]["lr"]
            for scheduler in built:
                scheduler.step()
    return factors
