"""Which detector of mm_configs/ belongs to which encoder, and a recipe's plain numbers; imports nothing of mmengine."""

import ast
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from evaluate.runtime.errors import UserError

FOLDER = Path(__file__).parents[2] / "mm_configs"
RECIPES = {  # ``EncoderSpec.recipes``, setting, data set: file of mm_configs/
    ("vit", "paper", "coco"): "mask_rcnn_vitdet_100ep_coco",
    ("vit", "paper", "lvis"): "mask_rcnn_vitdet_100ep_lvis",
    ("vit", "demo", "coco"): "mask_rcnn_vitdet_demo_coco",
    ("vit", "demo", "lvis"): "mask_rcnn_vitdet_demo_lvis",
    ("resnet", "paper", "coco"): "mask_rcnn_resnet_fpn_1x_coco",
    ("resnet", "paper", "lvis"): "mask_rcnn_resnet_fpn_1x_lvis",
    ("resnet", "paper", "voc"): "faster_rcnn_resnet_c4_24k_voc",
    ("resnet", "demo", "coco"): "mask_rcnn_resnet_fpn_demo_coco",
    ("resnet", "demo", "lvis"): "mask_rcnn_resnet_fpn_demo_lvis",
    ("pyramid", "paper", "coco"): "mask_rcnn_pyramid_fpn_1x_coco",
    ("pyramid", "paper", "lvis"): "mask_rcnn_pyramid_fpn_1x_lvis",
    ("pyramid", "demo", "coco"): "mask_rcnn_resnet_fpn_demo_coco",
    ("pyramid", "demo", "lvis"): "mask_rcnn_resnet_fpn_demo_lvis",
}
OWN = {"vit": ("_vitdet_",), "resnet": ("_resnet_",), "pyramid": ("_pyramid_", "_resnet_fpn_")}  # parts of their names


def recipe_of(recipe: str, dataset: str, family: str) -> str:
    """The file of mm_configs/ for an encoder of this family; ``recipe`` is "paper", "demo" or a file's name.

    Raises:
        UserError: there is none, or another family's is asked for.
    """
    name = RECIPES.get((family, recipe, dataset), recipe)
    if name in {setting for _, setting, _ in RECIPES}:
        known = ", ".join(sorted({f"{setting} of {data}" for kind, setting, data in RECIPES if kind == family}))
        raise UserError(f"there is no {recipe} recipe of {dataset} for a {family} encoder; choose {known}")
    if not any(part in name for part in OWN[family]):
        remedy = f"choose one with {' or '.join(part.strip('_') for part in OWN[family])} in its name from mm_configs/"
        raise UserError(f"recipe {name} is not for a {family} encoder; {remedy}")
    return name


def segmenter_of(recipe: str, family: str) -> str:
    """The segmenter's file of mm_configs/; the demo's for a pyramid is that for ResNets."""
    if recipe == "paper":
        return f"upernet_{family}_160k_ade20k"
    return f"upernet_{'vit' if family == 'vit' else 'resnet'}_demo_ade20k"


@functools.cache
def recipe_numbers(name: str) -> dict[str, Any]:
    """The plain numbers of a recipe of mm_configs/ (``batch_size``, ``max_iters``, …), without importing the packages
    that it is for.
    """
    known: dict[str, Any] = {}
    for statement in ast.parse((FOLDER / f"{name}.py").read_text()).body:
        for line in statement.body if isinstance(statement, ast.With) else []:  # with read_base(): its bases
            if isinstance(line, ast.ImportFrom):
                known |= recipe_numbers(str(line.module))
        if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
            value = _number(statement.value, known)
            if value is not None:
                known[statement.targets[0].id] = value
    return known


def linear_of(recipe: str, setup: str) -> str:
    """The file of mm_configs/ of a linear head on a frozen ViT, whatever the data."""
    schedule = "40k" if recipe == "paper" else recipe
    return f"linear_vit_{'multi_scale_' if setup == 'multi_scale' else ''}{schedule}_ade20k"


def _number(node: ast.expr, known: Mapping[str, Any]) -> Any:
    """A constant, a name, what ``*`` and ``//`` make of them, or a tuple of such."""
    if isinstance(node, ast.Tuple):
        values = tuple(_number(part, known) for part in node.elts)
        return None if None in values else values
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        return node.value
    if isinstance(node, ast.Name):
        return known.get(node.id)
    if isinstance(node, ast.BinOp):
        left, right = _number(node.left, known), _number(node.right, known)
        if left is not None and right is not None:
            return left * right if isinstance(node.op, ast.Mult) else left // right
    return None
