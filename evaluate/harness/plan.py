"""The nodes of the table: which task runs with which settings, and what it needs.

``NODES`` lists what must run for the table, dearest first, so that two processes end together.
"""

import dataclasses
import importlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from evaluate.runtime.errors import UserError
from evaluate.runtime.settings import configure as configure_task


@dataclass(frozen=True)
class Node:
    """One run of one task on one encoder."""

    name: str
    task: str  # a module of evaluate/
    overrides: tuple[tuple[str, str], ...] = ()
    needs: str | None = None  # the node that must end before
    extra: bool = False  # no column of the paper: runs only when it is asked for by name


NODES = (
    Node("detection_coco", "detection", (("dataset", "coco"),)),
    Node("detection_lvis", "detection", (("dataset", "lvis"),)),
    Node("detection_voc", "detection", (("dataset", "voc"),), extra=True),
    Node("segmentation", "segmentation"),
    Node("finetune", "finetune"),
    Node("linear_probe", "linear_probe", (("views", "augmented"),)),
    Node("linear_fast", "linear_probe", (("views", "cached"),), extra=True),
    Node("sweep", "sweep", extra=True),
    Node("few_shot", "few_shot"),
    Node("knn", "knn"),
    Node("robustness", "robustness", needs="finetune"),
)


def module_of(task: str) -> Any:
    """The module of a task; raises UserError naming the legal ones."""
    tasks = list(dict.fromkeys(node.task for node in NODES))
    if task not in tasks:
        raise UserError(f"there is no task {task!r}; the tasks are {', '.join(tasks)}")
    return importlib.import_module(f"evaluate.{task}")


def node_of(task: str, config: Any) -> str:
    """The name of the node that a task with this config fills: "detection" with dataset "lvis" is detection_lvis."""
    return next(node.name for node in NODES if node.task == task and all(getattr(config, name) == value for name, value in node.overrides))


def choose(names: Sequence[str]) -> tuple[Node, ...]:
    """Nodes by name or by task ("detection" is both of its nodes); all but the extra ones for no names. A node brings what it needs.

    Raises UserError listing the legal names.
    """
    legal = {node.name for node in NODES} | {node.task for node in NODES}
    unknown = [name for name in names if name not in legal]
    if unknown:
        raise UserError(f"there is no task {unknown[0]!r}; the tasks are {', '.join(sorted(legal))}")
    chosen = {node.name for node in NODES if (not names or node.task in names) and not node.extra or node.name in names}
    chosen |= {node.needs for node in NODES if node.name in chosen and node.needs}
    return tuple(node for node in NODES if node.name in chosen)


def configure(nodes: Sequence[Node], preset: str, overrides: dict[str, dict[str, str]]) -> dict[str, Any]:
    """The config of each node by its name. Raises UserError for an override of an unknown task or setting."""
    tasks = {node.task for node in nodes} | {node.name for node in nodes}
    for task in overrides:
        if task not in tasks:
            given = f"{task}." if task else "a setting without its task"
            raise UserError(f"--set {given}: write TASK.NAME=VALUE with one of {', '.join(sorted(tasks))}")
    configs = {}
    for node in nodes:
        module = module_of(node.task)
        values = {**dict(node.overrides), **overrides.get(node.task, {}), **overrides.get(node.name, {})}
        configs[node.name] = configure_task(module, preset, values)[1]
    return configs


def paper_config(name: str) -> Any:
    """The paper preset of a node, with what the node itself sets."""
    node = next(node for node in NODES if node.name == name)
    return configure([node], "paper", {})[name]


def as_json(config: Any) -> dict[str, Any]:
    """A config as JSON gives it back: tuples as lists."""
    return json.loads(json.dumps(dataclasses.asdict(config)))
