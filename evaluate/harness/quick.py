"""``--quick``: what a checkpoint is worth within one GPU-hour or half an hour of a core.

The columns of frozen features cost one forward pass of each image, and tell most for it (``results.ranking``). On a
CPU the pass over ImageNet takes weeks, so as many images of each set are taken as half an hour of a core pays for. The
number is kept in OUT: rows that are added later are measured on the same images.
"""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path

from evaluate.data import layouts
from evaluate.encoder.spec import EncoderSpec
from evaluate.harness import asked, estimate, plan
from evaluate.harness.cost import VIT_B
from evaluate.runtime.errors import UserError
from evaluate.runtime.settings import split_overrides
from results import ranking
from results.atomic import atomic_write

TASKS = ("knn", "few_shot", "linear_fast")
GPU_BUDGET, CORE_BUDGET = "1h", "30m"
LIMITS = (500, 1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000, 200_000, 500_000)
FILE = "quick.json"  # below OUT


def fill_in(arguments: argparse.Namespace, gpus: int, specs: Mapping[str, EncoderSpec | None]) -> str:
    """Sets the tasks of a command line, and the budget or, on a CPU, the limit, as far as the user gave none; says what
    it chose.

    Args:
        gpus: how many may be used; 0 on a CPU.
        specs: by row, of its encoder; None where it is not known yet, when a ViT-B/16 is taken for it.

    Raises: UserError without a checkpoint.
    """
    if not arguments.ckpt or not arguments.data_root:
        raise UserError("--quick goes with --ckpt and --data-root: it is a quick look at a checkpoint")
    if arguments.sets:
        raise UserError("--quick is of ImageNet's columns; measure --sets without it, with --limit if need be")
    if arguments.probe:
        raise UserError("--quick chooses its images by the speed that OUT knows: first --dry-run --probe, then --quick")
    arguments.tasks = arguments.tasks or ",".join(TASKS)
    said = arguments.budget
    budget = arguments.budget or (GPU_BUDGET if gpus else CORE_BUDGET)
    if gpus or arguments.limit:
        arguments.budget = budget
    else:  # all of the tasks, on what the budget pays for
        arguments.limit = (None if said else _kept(arguments.out)) or _limit(
            arguments, estimate.hours_of(budget), specs
        )
        if arguments.limit and not arguments.dry_run:
            _keep(arguments.out, arguments.limit)
    if arguments.limit and not any(text.startswith("linear_fast.preset=") for text in arguments.set):
        if "linear_fast" in arguments.tasks.split(","):  # LIN's batch of 16,384 is a step an epoch of few images
            arguments.set.append("linear_fast.preset=small_set")
    tasks, kind = arguments.tasks.replace(",", ", "), "GPU" if gpus else "core"
    images = f"{arguments.limit:,} images of each set (--limit)" if arguments.limit else "all images"
    return f"--quick: {tasks} on {images}, for {budget} of a {kind} (--budget)"


def advice(architectures: set[str]) -> str:
    """What the published pretrainings say of how far the cheap columns can be trusted; "" where they say nothing."""
    return "\n".join(ranking.text(name) for name in sorted(architectures) if ranking.agreements(name))


def _limit(arguments: argparse.Namespace, budget: float, specs: Mapping[str, EncoderSpec | None]) -> int | None:
    """The most images of each set that so many hours of a core pay for, of LIMITS; None for all images.

    At most, since tasks that share a pass over the images are each counted with it.
    """
    nodes = plan.choose([name for name in arguments.tasks.split(",") if name])
    configs = plan.configure(nodes, arguments.preset, split_overrides(arguments.set))
    root, speed = layouts.root(arguments.data_root), estimate.kept(arguments.out, 0)
    rows = {row: spec or VIT_B for row, spec in specs.items()}

    def hours(limit: int | None) -> float:
        listed = estimate.plan(rows, nodes, configs, root, speed, limit, asked.more_seeds(arguments))
        return sum(one.hours for one in listed if one.to_do)

    if hours(None) <= budget:
        return None
    return max((limit for limit in LIMITS if hours(limit) <= budget), default=LIMITS[0])


def _kept(out: Path) -> int | None:
    """The limit of an earlier quick look with this OUT; None where there was none, or the file is damaged."""
    try:
        limit = json.loads((out / FILE).read_text())["limit"]
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return limit if type(limit) is int and limit > 0 else None


def _keep(out: Path, limit: int) -> None:
    out.mkdir(parents=True, exist_ok=True)
    with atomic_write(out / FILE) as written:
        written.write_text(json.dumps({"limit": limit}))
