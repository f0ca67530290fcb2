"""The nodes of the table: which task runs with which settings, and what it needs.

``NODES`` lists what must run for the table, dearest first, so that two processes end together.
"""

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from evaluate.encoder.spec import EncoderSpec
from evaluate.runtime.errors import UserError
from evaluate.runtime.settings import Settings, override


@dataclass(frozen=True)
class Node:
    """One run of one task on one encoder."""

    name: str
    task: str
    """A module of evaluate/."""
    overrides: Mapping[str, str] = field(default_factory=dict)
    """Settings that make this node of the task."""
    inputs: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    """Files that the task takes from others, by name: the node that makes each, and its name in that node's folder."""
    extra: bool = False
    """No column of the paper: runs only when it is asked for by name."""

    @property
    def needs(self) -> tuple[str, ...]:
        """The nodes that must end before."""
        return tuple(dict.fromkeys(node for node, _ in self.inputs.values()))


NODES = (
    Node("detection_coco", "detection", {"dataset": "coco"}),
    Node("detection_lvis", "detection", {"dataset": "lvis"}),
    Node("detection_voc", "detection", {"dataset": "voc"}, extra=True),
    Node("segmentation", "segmentation"),
    Node("linear_segmentation", "linear_segmentation", extra=True),
    Node("knn_segmentation", "knn_segmentation", extra=True),
    Node("finetune", "finetune"),
    Node("linear_probe", "linear_probe", {"views": "augmented"}),
    Node("linear_fast", "linear_probe", {"views": "cached"}, extra=True),
    Node("sweep", "sweep", extra=True),
    Node("few_shot", "few_shot"),
    Node("knn", "knn"),
    Node("robustness", "robustness", inputs={"classifier": ("finetune", "classifier.safetensors")}),
)


def module_of(task: str) -> Any:
    """The module of a task; raises UserError naming the legal ones."""
    tasks = list(dict.fromkeys(node.task for node in NODES))
    if task not in tasks:
        raise UserError(f"there is no task {task!r}; the tasks are {', '.join(tasks)}")
    return importlib.import_module(f"evaluate.{task}")


def node_of(task: str, config: Settings) -> Node:
    """The node that a task with this config fills: "detection" with dataset "lvis" is detection_lvis."""
    for node in NODES:
        if node.task == task and all(getattr(config, name) == value for name, value in node.overrides.items()):
            return node
    raise UserError(f"no node of evaluate/harness/plan.py is {task} with these settings; add one to NODES")


def data_sets(node: Node, config: Settings) -> tuple[str, ...]:
    """The data sets that a node reads, those that it may do without among them."""
    module = module_of(node.task)
    optional = module.reads_if_there(config) if hasattr(module, "reads_if_there") else ()
    return (*module.reads(config), *optional)


def draws(node: Node, config: Settings) -> bool:
    """Whether a task draws something at random, and so gives another number with another seed."""
    module = module_of(node.task)
    return module.draws(config) if hasattr(module, "draws") else True


def task_name(row: str, node: str, seed: int | None = None) -> str:
    """What the task of a row is called in logs and plans; ``seed``: one of further seeds."""
    return f"{row}/{node}" if seed is None else f"{row}/{node} seed {seed}"


def choose(names: Sequence[str]) -> tuple[Node, ...]:
    """Nodes by name or by task ("detection" is both of its nodes); all but the extra ones for no names. A node brings
    what it needs.

    Raises UserError listing the legal names.
    """
    legal = {node.name for node in NODES} | {node.task for node in NODES}
    unknown = [name for name in names if name not in legal]
    if unknown:
        raise UserError(f"there is no task {unknown[0]!r}; the tasks are {', '.join(sorted(legal))}")
    chosen = {node.name for node in NODES if (not names or node.task in names) and not node.extra or node.name in names}
    chosen |= {need for node in NODES if node.name in chosen for need in node.needs}
    return tuple(node for node in NODES if node.name in chosen)


def from_preset(module: Any, preset: str) -> Settings:
    """A preset of a task. Raises UserError listing the presets that there are."""
    if preset not in module.PRESETS:
        raise UserError(
            f"there is no preset {preset!r} of {module.__name__}; the presets are {', '.join(module.PRESETS)}"
        )
    return module.PRESETS[preset]


def recommended(node: Node, spec: EncoderSpec | None) -> str:
    """The preset that is the protocol of an encoder's method for a column of the paper; "" where there is none."""
    module = module_of(node.task)
    return module.recommended(spec) if spec and not node.extra and hasattr(module, "recommended") else ""


def is_recommended(node: Node, preset: str) -> str:
    """Says that a node has such a preset."""
    return f"{node.name} by the protocol of the encoder's method (preset {preset}); --preset paper is SiameseIM's"


def configure(
    nodes: Sequence[Node],
    preset: str | None,
    overrides: Mapping[str, Mapping[str, str]],
    spec: EncoderSpec | None = None,
) -> dict[str, tuple[str, Settings]]:
    """The preset's name and the config of each node, by the node's name; ``TASK.preset=NAME`` chooses another preset
    for one task. With no preset it is the one that the method of the encoder ``spec`` recommends, else the paper's.

    Raises UserError for an override of an unknown task or setting, or an illegal value.
    """
    tasks = {node.task for node in nodes} | {node.name for node in nodes}
    for task in overrides:
        if task not in tasks:
            given = f"{task}." if task else "a setting without its task"
            raise UserError(f"--set {given}: write TASK.NAME=VALUE, where TASK is one of {', '.join(sorted(tasks))}")
    configs = {}
    for node in nodes:
        values = {**node.overrides, **overrides.get(node.task, {}), **overrides.get(node.name, {})}
        name = values.pop("preset", None) or preset or recommended(node, spec) or "paper"
        configs[node.name] = (name, override(from_preset(module_of(node.task), name), values))
    return configs


def for_encoders(
    nodes: Sequence[Node], preset: str | None, overrides: Mapping[str, Mapping[str, str]]
) -> Callable[[EncoderSpec | None], Mapping[str, tuple[str, Settings]]]:
    """``configure`` for any encoder; those with the same recommendations share one result."""
    known: dict[tuple[str, ...], Mapping[str, tuple[str, Settings]]] = {}

    def of_encoder(spec: EncoderSpec | None) -> Mapping[str, tuple[str, Settings]]:
        own = tuple(recommended(node, spec) for node in nodes)
        if own not in known:
            known[own] = configure(nodes, preset, overrides, spec)
        return known[own]

    return of_encoder


def paper_config(node: Node) -> Settings:
    """The paper preset of a node, with what the node itself sets."""
    return configure([node], "paper", {})[node.name][1]
