"""The demo: which encoders it pretrains, and with which settings it measures them.

On the toy world, which it makes itself, everything takes minutes. On the images of a data root it pretrains for as long
as it is told to, on small copies of them.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from evaluate.harness.plan import Node
from evaluate.harness.pretraining import SIDE, START

TOY = {"siameseim": "demo", "mae": "mae_demo", "random": f"demo{START}"}  # row: preset of pretrain.train
PHOTOGRAPHS = {"siameseim": "small", "mae": "mae_small", "random": f"small{START}"}
MINUTES = 60.0  # of each pretraining

# How a task's demo preset, made for 32 pixels and a minute, differs on photographs.
SIZES = {"img_size": "48", "resize": "56"}
SETTINGS: dict[str, dict[str, str]] = {
    "finetune": {**SIZES, "epochs": "10"},
    "linear_probe": {**SIZES, "epochs": "30", "warmup_epochs": "3"},
    "linear_fast": SIZES,
    "sweep": SIZES,
    "few_shot": SIZES,
    "knn": SIZES,
    "detection": {"image_size": "192", "iterations": "600"},
    "segmentation": {"crop": "128", "iterations": "600"},
}


def with_settings(nodes: Sequence[Node], given: Mapping[str, Mapping[str, str]]) -> dict[str, dict[str, str]]:
    """What the user sets by ``--set``, and below it what the demo sets on photographs."""
    tasks = {node.task for node in nodes} | {node.name for node in nodes}
    own = {task: values for task, values in SETTINGS.items() if task in tasks}
    return {task: {**own.get(task, {}), **given.get(task, {})} for task in {**own, **given}}


def plan(data_root: Path, minutes: float | None) -> str:
    """What is going to be done, in a sentence."""
    if not minutes:
        return "demo: the toy world, three encoders and every column, in minutes"
    first, second, _ = TOY
    return (
        f"demo on {data_root}: small copies of the images ({SIDE} px), then about {minutes:g} minutes of pretraining "
        f"each for {first} and {second} at 48 px (--minutes), then every column whose data are there"
    )
