"""The nodes of the table: which task runs with which settings, and what it needs.

``NODES`` lists what must run for the table, dearest first, so that two processes end together. ``of_sets`` makes the
nodes of other labelled sets.
"""

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from evaluate.data.identity import DataIdentities
from evaluate.data.sets import COLUMN_METRICS, LabelledSet
from evaluate.encoder.spec import EncoderSpec
from evaluate.runtime.errors import UserError
from evaluate.runtime.settings import Settings, override

ALL = "all"  # of --tasks: the paper's columns and those of the sets


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
    images: LabelledSet | None = None
    """What is measured instead of ImageNet."""
    preset: str = "paper"
    """The preset that is this column's protocol."""
    heading: str = ""
    """Of the column that a labelled set brings along."""

    @property
    def column(self) -> dict[str, str]:
        """What a record says of a column that a labelled set brings along; {} for those of ``results.columns``."""
        if self.images is None:
            return {}
        return {
            "heading": self.heading,
            "metric": COLUMN_METRICS[self.images.metric],
            "group": self.images.title,
            "sets": self.images.source,
        }

    @property
    def needs(self) -> tuple[str, ...]:
        """The nodes that must end before."""
        return tuple(dict.fromkeys(node for node, _ in self.inputs.values()))


NODES = (
    Node("detection_coco", "detection", {"dataset": "coco"}),
    Node("detection_lvis", "detection", {"dataset": "lvis"}),
    Node("detection_voc", "detection", {"dataset": "voc"}, extra=True),
    Node("segmentation", "segmentation"),
    *(
        Node(f"linear_segmentation{ms}{voc}", "linear_segmentation", {"setup": setup, "dataset": dataset}, extra=True)
        for ms, setup in (("_ms", "multi_scale"), ("", "linear"))
        for voc, dataset in (("", "ade20k"), ("_voc", "voc2012"))
    ),
    Node("knn_segmentation", "knn_segmentation", {"dataset": "ade20k"}, extra=True),
    Node("knn_segmentation_voc", "knn_segmentation", {"dataset": "voc2012"}, extra=True),
    Node("finetune", "finetune"),
    Node("linear_probe", "linear_probe", {"views": "augmented"}),
    Node("linear_fast", "linear_probe", {"views": "cached"}, extra=True),
    Node("sweep", "sweep", extra=True),
    Node("few_shot", "few_shot"),
    Node("knn", "knn"),
    Node("robustness", "robustness", inputs={"classifier": ("finetune", "classifier.safetensors")}),
)
# the tasks whose forward passes --compile takes; mm* trains the others
COMPILED = ("finetune", "linear_probe", "sweep", "few_shot", "knn", "robustness")
OF_SETS = {  # by the task's name in a TOML file: the module, its preset and what its heading ends with; dearest first
    "finetune": ("finetune", "small_set", "FT"),
    "linear": ("linear_probe", "small_set", "LIN"),
    "few_shot": ("few_shot", "small_set", "few-shot"),
    "knn": ("knn", "paper", "kNN"),
}


def of_sets(sets: Sequence[LabelledSet]) -> tuple[Node, ...]:
    """The nodes of labelled sets: one for each task of each, called SET.TASK."""
    return tuple(
        Node(f"{one.name}.{kind}", task, images=one, preset=preset, heading=f"{one.title} {word}")
        for kind, (task, preset, word) in OF_SETS.items()
        for one in sets
        if kind in one.tasks
    )


def of_set(task: str, one: LabelledSet) -> Node:
    """The node that a module of evaluate/ fills on a labelled set. Raises UserError where it measures none."""
    kind = next((kind for kind, (module, *_) in OF_SETS.items() if module == task), None)
    found = [node for node in of_sets([one]) if node.task == task]
    if not found:
        legal = ", ".join(OF_SETS[name][0] for name in one.tasks)
        raise UserError(
            f"{task} is not measured on {one.name}, but {legal}" + (f" (task {kind} in its file)" if kind else "")
        )
    return found[0]


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
    """The data sets below the data root that a node reads, those that it may do without among them."""
    if node.images:
        return ()
    module = module_of(node.task)
    optional = module.reads_if_there(config) if hasattr(module, "reads_if_there") else ()
    return (*module.reads(config), *optional)


def identities_of(known: DataIdentities, node: Node, config: Settings) -> dict[str, str]:
    """The identities of all that a node reads, by part."""
    return node.images.identities(known) if node.images else known.of_sets(data_sets(node, config))


def draws(node: Node, config: Settings) -> bool:
    """Whether a task draws something at random, and so gives another number with another seed."""
    module = module_of(node.task)
    return module.draws(config) if hasattr(module, "draws") else True


def task_name(row: str, node: str, seed: int | None = None) -> str:
    """What the task of a row is called in logs and plans; ``seed``: one of further seeds."""
    return f"{row}/{node}" if seed is None else f"{row}/{node} seed {seed}"


def choose(names: Sequence[str], own: Sequence[Node] = ()) -> tuple[Node, ...]:
    """Nodes by name or by task ("detection" is both of its nodes), those of a labelled set also by its name. A node
    brings what it needs.

    Args:
        names: none stands for the nodes of labelled sets where there are such, else for all but the extra ones; ALL for
            both.
        own: the nodes of labelled sets.

    Raises UserError listing the legal names.
    """
    nodes = (*NODES, *own)
    legal = {name for node in nodes for name in (node.task, *_names(node))} | {ALL}
    unknown = [name for name in names if name not in legal]
    if unknown:
        raise UserError(f"there is no task {unknown[0]!r}; the tasks are {', '.join(sorted(legal))}")
    if own and not names:
        return tuple(own)
    every = not names or ALL in names
    chosen = {
        node.name for node in nodes if (every or node.task in names) and not node.extra or _names(node) & {*names}
    }
    chosen |= {need for node in nodes if node.name in chosen for need in node.needs}
    return tuple(node for node in nodes if node.name in chosen)


def _names(node: Node) -> set[str]:
    """By which a node is asked for, besides its task's where it is an extra one."""
    own = {node.images.name} if node.images else set()
    return {node.name, *own} if node.extra else {node.name, node.task, *own}


def settable(node: Node) -> tuple[str, ...]:
    """The names under which ``--set NAME.setting=value`` is for a node; the last one wins."""
    return (node.task, node.images.name, node.name) if node.images else (node.task, node.name)


def from_preset(module: Any, preset: str) -> Settings:
    """A preset of a task. Raises UserError listing the presets that there are."""
    if preset not in module.PRESETS:
        raise UserError(
            f"there is no preset {preset!r} of {module.__name__}; the presets are {', '.join(module.PRESETS)}"
        )
    return module.PRESETS[preset]


def recommended(node: Node, spec: EncoderSpec | None) -> str:
    """The preset that is the protocol of an encoder's method for a column of the paper; "" where there is none."""
    module, own = module_of(node.task), node.extra or node.images
    return module.recommended(spec) if spec and not own and hasattr(module, "recommended") else ""


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
    tasks = {name for node in nodes for name in settable(node)}
    for task in overrides:
        if task not in tasks:
            given = f"{task}." if task else "a setting without its task"
            raise UserError(f"--set {given}: write TASK.NAME=VALUE, where TASK is one of {', '.join(sorted(tasks))}")
    configs = {}
    for node in nodes:
        values = dict(node.overrides)
        for given in settable(node):
            for name in node.overrides.keys() & overrides.get(given, {}).keys():
                _check_own(node, given, name, overrides[given][name])
            values |= overrides.get(given, {})
        name = values.pop("preset", "") or preset or recommended(node, spec) or node.preset
        configs[node.name] = (name, override(from_preset(module_of(node.task), name), values))
    return configs


def _check_own(node: Node, given: str, name: str, value: str) -> None:
    """Raises UserError where a user's value is not that by which a node is itself: another node has it, or none."""
    if value != node.overrides[name]:
        other = next((one.name for one in NODES if {**node.overrides, name: value} == dict(one.overrides)), "")
        asked = f"; ask for it with --tasks {other}" if other else ""
        raise UserError(
            f"--set {given}.{name}={value}: {node.name} is measured with {name}={node.overrides[name]}{asked}"
        )


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
    """The preset that is a node's protocol, with what the node itself sets."""
    return configure([node], node.preset, {})[node.name][1]
