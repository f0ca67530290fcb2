"""The plan of a run before it spends anything: for each task images, GPU-hours, GPUs, and what already stands.

A time is the number of operations and of images over the speed that ``--probe`` has measured on this machine, or over
an assumed one, which the plan says.
"""

import itertools
import json
import math
import os
import shutil
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from evaluate.data import layouts
from evaluate.data.published_counts import ADE20K, FURTHER, INSTANCES, SHIFTED, TRAIN, VAL, VOC, VOC2012, VOC2012_OWN
from evaluate.data.sets import LabelledSet
from evaluate.encoder.memory import GIB
from evaluate.encoder.spec import EncoderSpec
from evaluate.harness import cost
from evaluate.harness.plan import Node, draws, module_of, task_name
from evaluate.runtime.env import Env
from evaluate.runtime.errors import Skip, UserError
from evaluate.runtime.settings import Settings
from results.atomic import atomic_write

SPEED = "speed.json"  # below OUT: what --probe has measured
PROCESS = 0.7  # GiB of a task on a CPU before its arithmetic, which takes twice what a GPU's 16 bits do
BEYOND = "beyond the budget"
UNITS = {"m": 1 / 60, "h": 1.0, "d": 24.0}
PUBLISHED = {
    "imagenet/train": TRAIN,
    "imagenet/val": VAL,
    **{name.replace("_", "-"): count for name, count in SHIFTED.items()},
    **{layouts.LAYOUTS[name][0]: images for name, (images, _) in FURTHER.items()},
    cost.CORRUPTED: VAL,
    "coco/val2017": INSTANCES["coco"][1]["val"],
    **{f"ade20k/images/{split}": images for split, images in ADE20K.items()},
    "VOCdevkit": VOC["test"],
    **dict(zip(cost.LABELLED["voc2012"][0], (VOC2012_OWN, VOC2012["training"]), strict=True)),
    cost.LABELLED["voc2012"][1]: VOC2012["validation"],
}


@dataclass(frozen=True)
class Speed:
    """What one GPU (or the CPU's slot) does."""

    gflops: float
    """10^9 operations of an encoder's products a second, forwards and backwards."""
    images: float
    """Images read, decoded and cut a second, by all loading processes of a task."""
    startup: float
    """Seconds from the start of a task to its first image."""
    gpu: bool
    """Whether it is a GPU's."""
    source: str
    """In words."""

    def hours(self, work: cost.Cost) -> float:
        """Of a task alone on one GPU. A GPU computes while the next images are read."""
        return (self.startup + max(work.gflop / self.gflops, work.images / self.images)) / 3600


# 40 % of an H100's 790 TFLOP/s in 16 bits; 16 cores that cut 450 images a second each
H100 = Speed(320e3, 7200.0, 30.0, True, "assumed: an H100 at 320 TFLOP/s; --probe measures this machine")
CORE = Speed(40.0, 300.0, 5.0, False, "assumed: a core at 40 GFLOP/s; --probe measures this machine")


@dataclass(frozen=True)
class Planned:
    """One task of one row."""

    row: str
    node: Node
    work: cost.Cost
    hours: float
    """GPU-hours: on one GPU."""
    state: str = ""
    """"stands", or why it is not going to run; "" for what is to be done."""
    gpus: int = 1
    """How many it gets."""
    seed: int | None = None
    """One of further seeds."""

    @property
    def name(self) -> str:
        """As its job is called."""
        return task_name(self.row, self.node.name, self.seed)

    @property
    def to_do(self) -> bool:
        """Whether it costs anything."""
        return not self.state


def counter(data_root: Path | None, limit: int | None) -> cost.Count:
    """The number of images of a part of a data root: the published one where it is packed or has its 1,000 classes, or
    without a data root.
    """
    known: dict[str, int] = {}

    def count(part: str) -> int:
        if part not in known:
            found = _count(data_root, part) if data_root else PUBLISHED[part]
            known[part] = min(found, limit) if limit else found
        return known[part]

    return count


def counter_of_set(images: LabelledSet, limit: int | None) -> cost.Count:
    """As ``counter``, of a labelled set, whose train and val stand for ImageNet's; none where it is absent."""
    known: dict[str, int] = {}

    def count(part: str) -> int:
        if part not in known:
            try:
                images.require()
                found = images.count(part.rpartition("/")[2])
            except Skip:
                found = 0
            known[part] = min(found, limit) if limit else found
        return known[part]

    return count


def absent(node: Node, config: Settings, data_root: Path | None) -> str:
    """The name of a set that a node lacks; "" where it has all."""
    if node.images:
        try:
            node.images.require()
        except Skip:
            return node.images.name
        return ""
    missing = layouts.absent(data_root, module_of(node.task).reads(config)) if data_root else {}
    return min(missing, default="")


def _count(data_root: Path, part: str) -> int:
    folder, published = data_root / part, PUBLISHED[part]
    if layouts.locate(data_root, part) is None:
        return 0
    if part == cost.CORRUPTED and folder.is_dir():
        folder /= "1"  # one of its severities
    if folder.suffix == ".txt" and folder.is_file():  # a list of names
        return len(folder.read_bytes().split())
    if not folder.is_dir():
        return published
    with os.scandir(folder) as listed:
        entries = list(listed)
    below = [entry for entry in entries if entry.is_dir()]
    if len(below) >= 1000:
        return published
    return len(entries) - len(below) + sum(len(os.listdir(entry.path)) for entry in below)


def plan(
    rows: Mapping[str, EncoderSpec | None],
    nodes: Sequence[Node],
    configs: Mapping[str, tuple[str, Settings]],
    data_root: Path | None,
    speed: Speed,
    limit: int | None = None,
    more_seeds: Sequence[int] = (),
    stands: Collection[str] = (),
) -> list[Planned]:
    """What each row's tasks cost, in the order in which they run.

    Args:
        rows: the specs of their encoders; None before the conversion, when a ViT-B/16 is taken for it.
        stands: the tasks, ROW/NODE, that need not run.
    """
    count, planned = counter(data_root, limit), []
    for row, spec in rows.items():
        for seed, node in itertools.product((None, *more_seeds), nodes):
            if seed is not None and not draws(node, configs[node.name][1]):
                continue
            module, config = module_of(node.task), configs[node.name][1]
            work = module.cost(config, spec or cost.VIT_B, counter_of_set(node.images, limit) if node.images else count)
            missing = absent(node, config, data_root)
            state = "stands" if task_name(row, node.name, seed) in stands else f"no {missing}" if missing else ""
            planned.append(Planned(row, node, work, speed.hours(work), state, seed=seed))
    return planned


def of_task(
    module: Any, config: Settings, spec: EncoderSpec, env: Env, out: Path, processes: int = 1
) -> dict[str, float | str]:
    """What a record says of a task's estimate: seconds on this device by so many processes, of which speed, and, where
    it is known, the bytes of memory of each.
    """
    gpu = env.device.startswith("cuda")
    speed = kept(out, int(gpu))
    count = counter_of_set(env.images, env.limit) if env.images else counter(env.data_root, env.limit)
    work = module.cost(config, spec, count)
    memory = _memory(work, gpu)
    known = {} if math.isnan(memory) else {"memory": round(memory * GIB)}
    return {"seconds": round(3600 * speed.hours(work) / processes, 1), "source": speed.source, **known}


def _memory(work: cost.Cost, gpu: bool) -> float:
    """GiB that a process takes at most, of a GPU or of the machine; NaN where it is not known."""
    return work.memory if gpu else PROCESS + 2 * work.memory


def allocate(planned: Sequence[Planned], gpus: int) -> list[Planned]:
    """The plan with as many GPUs for each task that is to be done as let all end soonest."""
    to_do = [one for one in planned if one.to_do]
    chosen = iter(cost.share_out([one.hours for one in to_do], [one.work.gpus for one in to_do], gpus))
    return [replace(one, gpus=next(chosen)) if one.to_do else one for one in planned]


def within(planned: Sequence[Planned], budget: float) -> list[Planned]:
    """The plan with only as many tasks to do as ``budget`` GPU-hours pay for, the cheapest first, each with what it
    needs.
    """
    by_name = {one.name: one for one in planned if one.to_do}
    taken: set[str] = set()
    left = budget

    def with_needs(name: str) -> list[str]:
        own = by_name[name]
        needs = [task_name(own.row, need, own.seed) for need in own.node.needs]
        return [one for one in (*needs, name) if one in by_name and one not in taken]

    def price(name: str) -> float:
        return sum(by_name[one].hours for one in with_needs(name))

    while rest := [name for name in by_name if name not in taken]:
        cheapest = min(rest, key=price)
        if price(cheapest) > left:
            break
        left -= price(cheapest)
        taken.update(with_needs(cheapest))
    return [one if not one.to_do or one.name in taken else replace(one, state=BEYOND) for one in planned]


def hours_of(text: str) -> float:
    """GPU-hours from "8h", "30m", "2d" or a plain number of hours. Raises UserError for anything else."""
    number, unit = (text[:-1], text[-1:]) if text[-1:] in UNITS else (text, "h")
    try:
        hours = float(number) * UNITS[unit]
    except ValueError:
        hours = -1.0
    if not 0 < hours < float("inf"):
        raise UserError(f"--budget {text}: give GPU-hours above 0, as 8h, 30m or 2d")
    return hours


def table(planned: Sequence[Planned], gpus: int, speed: Speed, out: Path) -> str:
    """The plan as a person reads it; ``gpus`` is their number, 0 on a CPU."""
    kind = "GPU" if gpus else "core"
    head = ("task", "images", f"{kind}-hours", f"{kind}s", "hours", "memory GiB", "disk GiB", "")
    lines = [
        (
            one.name,
            f"{one.work.images:,}",
            _short(one.hours),
            str(one.gpus) if one.to_do else "-",
            _short(one.hours / one.gpus) if one.to_do else "-",
            _short(_memory(one.work, bool(gpus))),
            _short(one.work.disk + one.work.features),
            one.state,
        )
        for one in planned
    ]
    widths = [max(map(len, column)) for column in zip(head, *lines, strict=True)]
    text = [
        "  ".join(
            cell.ljust(width) if place in (0, len(head) - 1) else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in (head, *lines)
    ]
    to_do = [one for one in planned if one.to_do]
    end = cost.makespan([one.hours / one.gpus for one in to_do], [one.gpus for one in to_do], max(gpus, 1))
    total = sum(one.hours for one in to_do)
    machine = f"{gpus} GPUs" if gpus > 1 else f"one {kind}"
    text.append(f"to do: {_short(total)} {kind}-hours, {_short(end)} hours on {machine} ({speed.source})")
    text.append(_room(to_do, out))
    beyond = [one for one in planned if one.state == BEYOND]
    if beyond:
        left = ", ".join(f"{one.name} {_short(one.hours)}" for one in beyond)
        text.append(f"left out: {left} {kind}-hours; raise --budget")
    return "\n".join(text)


def _room(to_do: Sequence[Planned], out: Path) -> str:
    """The disk that is needed, and whether it is there: a row's tasks share its features."""
    features = [max(one.work.features for one in to_do if one.row == row) for row in {one.row for one in to_do}]
    needed = sum(one.work.disk for one in to_do) + sum(features)
    there = next(folder for folder in (out, *out.parents) if folder.is_dir())
    free = shutil.disk_usage(there).free / GIB
    short = "; that may be too little: choose an --out with more" if needed > free else ""
    return f"disk: at most {_short(needed)} GiB in {out}, where {_short(free)} are free{short}"


def _short(number: float) -> str:
    """With two digits that count; "?" for what is not known."""
    if number == 0 or math.isnan(number):
        return "0" if number == 0 else "?"
    return f"{number:.0f}" if number >= 10 else f"{number:.2g}" if number >= 0.01 else f"{number:.1g}"


def keep(speed: Speed, out: Path) -> None:
    """Writes what was measured below OUT."""
    with atomic_write(out / SPEED) as written:
        written.write_text(json.dumps(asdict(speed), indent=1))


def kept(out: Path, gpus: int) -> Speed:
    """The speed that was measured for this OUT, else an assumed one: of an H100, or of a core where there are no
    GPUs.
    """
    try:
        speed = Speed(**json.loads((out / SPEED).read_text()))
    except (OSError, ValueError, TypeError):
        speed = None
    if speed and speed.gpu == bool(gpus):
        return speed
    return H100 if gpus else CORE
