"""From a checkpoint to the paper's whole table.

    uv run run_all.py                                    the demo: data, two checkpoints and every column, made here in minutes
    uv run run_all.py --ckpt FILE --data-root DIR        any checkpoint on the real data sets, by the paper's protocols
    uv run run_all.py --ckpt FILE --data-root DIR --dry-run

Each task is a process of its own and leaves one record; the table is rendered again after each. Run again, it does only what is
missing. Exit status: 0 all done or skipped with a reason, 1 a task failed, 2 bad input.
"""

import argparse
import itertools
import os
import sys
from collections.abc import Mapping
from pathlib import Path

from evaluate.data import layouts
from evaluate.harness import executor, jobs, plan, suite
from evaluate.runtime.cli import EXIT_SKIPPED, at_least_one, at_least_zero, loading_processes, make_folder
from evaluate.runtime.errors import UserError
from evaluate.runtime.settings import Settings, split_overrides
from results import tables


def main(argv: list[str] | None = None) -> int:
    """Parses, plans, runs, renders; returns the exit status."""
    arguments = parse(argv)
    try:
        return run(arguments)
    except (UserError, ValueError) as error:  # ValueError: a file among the records that is none
        print(f"run_all.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("run_all.py: stopped; the same command goes on from here", file=sys.stderr)
        return 130


def run(arguments: argparse.Namespace) -> int:
    """The whole of it. Raises UserError on bad input, before anything runs."""
    demo = not (arguments.ckpt or arguments.check_data or arguments.calibrate)
    nodes = plan.choose([name for name in arguments.tasks.split(",") if name])
    preset = arguments.preset or ("demo" if demo else "paper")
    configs = plan.configure(nodes, preset, split_overrides(arguments.set))
    checkpoints = {row: jobs.demo_checkpoint(arguments.out, row) for row in jobs.DEMO} if demo else named(arguments.ckpt)
    if not demo and not arguments.data_root:
        raise UserError("--ckpt, --check-data and --calibrate need --data-root, the folder that holds imagenet/, coco/, … (README, data layout)")
    if arguments.dry_run:
        return dry_run(checkpoints, nodes, configs)
    if arguments.check_data or arguments.calibrate:
        return examine(arguments, nodes, configs)

    out = make_folder(arguments.out)
    data_root = layouts.root(arguments.data_root) if arguments.data_root else make_toy_world(out)
    where = {name: getattr(arguments, name) for name in ("seed", "limit", "device", "branch")}
    shared = suite.Suite(out, data_root, configs, **where)
    work = jobs.pretraining(out, data_root) if demo else []
    for row, path in checkpoints.items():
        work += jobs.measuring(row, path, nodes, shared, tuple(checkpoints), after=(f"{row}/pretrain",) if demo else ())
    gpus = [] if all(job.is_done() for job in work) else visible_gpus(arguments.device)  # counting them takes torch
    slots = arguments.jobs or len(gpus) or min(2, os.cpu_count() or 1)
    shared.workers = loading_processes(arguments.workers, "cuda" if gpus else "cpu", slots)
    executor.run(work, slots=slots, gpus=gpus)
    return report(shared, list(checkpoints), nodes, work)


def report(run: suite.Suite, rows: list[str], nodes: tuple[plan.Node, ...], work: list[executor.Job]) -> int:
    """Prints the table, where it lies, the time of each part and what failed; the exit status."""
    out = run.out
    entries = run.entries(rows, nodes)
    print(f"\n{tables.render(out, rows, entries)}")
    for first, second in itertools.combinations(rows, 2):
        print(tables.paired(out, entries, first, second))
    print("tables: " + ", ".join(str(out / f"table.{kind}") for kind in ("csv", "tex", "md", "html")))
    print("seconds: " + ", ".join(f"{job.name} {job.seconds:.0f}" for job in work if job.seconds))
    failed = [job for job in work if job.status not in (0, EXIT_SKIPPED)]
    for job in failed:
        print(f"{job.name} failed: {executor.last_line(job.log)} (log: {job.log})", file=sys.stderr)
    return int(bool(failed))


def named(paths: list[Path]) -> dict[str, Path]:
    """Checkpoints by the name of their row. Raises UserError for an absent one, or two of one name."""
    for path in paths:
        if not path.exists():
            raise UserError(f"there is no checkpoint {path}; give the path of an existing file")
    if len({path.stem for path in paths}) < len(paths):
        raise UserError("two checkpoints have the same file name; rename one, since it names the row of the table")
    return {path.stem: path for path in paths}


def make_toy_world(out: Path) -> Path:
    """The demo's data, made once."""
    from evaluate.data import toy

    print("toy world: making it, or taking the one that stands", flush=True)
    return toy.make(out / "data")


def dry_run(checkpoints: dict[str, Path], nodes: tuple[plan.Node, ...], configs: Mapping[str, tuple[str, Settings]]) -> int:
    """Prints what would run."""
    for name, path in checkpoints.items():
        for node in nodes:
            preset, config = configs[node.name]
            print(f"{name} ({path}): {node.name} ({preset}): {config}")
    return 0


def examine(arguments: argparse.Namespace, nodes: tuple[plan.Node, ...], configs: Mapping[str, tuple[str, Settings]]) -> int:
    """Looks at the data before hours are spent on them: what the tasks read, or whether a released checkpoint gives its accuracy."""
    from evaluate import calibrate
    from evaluate.data import check

    root = layouts.root(arguments.data_root)
    if arguments.calibrate:
        options = ["--data-root", str(root), "--device", arguments.device, "--out", str(arguments.out)]
        options += ["--workers", str(arguments.workers)] if arguments.workers is not None else []
        return calibrate.main(["--ckpt", str(arguments.calibrate), *options])
    return check.report(root, [name for node in nodes for name in plan.data_sets(node, configs[node.name][1])])


def visible_gpus(device: str) -> list[int]:
    """GPUs that tasks may take, one each."""
    import torch

    return list(range(torch.cuda.device_count())) if device != "cpu" else []


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="run_all.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--ckpt", type=Path, nargs="+", default=[], help="checkpoints of any known format, a row of the table each (default: the demo)"
    )
    parser.add_argument(
        "--data-root", type=Path, help="folder that holds imagenet/, coco/, lvis/, ade20k/, imagenet-a/ … (default: a toy world)"
    )
    parser.add_argument("--out", type=Path, default=Path("out"), help="records, logs and tables go here (default: out)")
    parser.add_argument("--tasks", default="", help=f"comma-separated, of {', '.join(node.name for node in plan.NODES)} (default: all)")
    parser.add_argument("--preset", choices=("paper", "demo"), help="default: paper with --ckpt, demo without")
    parser.add_argument(
        "--set", action="append", default=[], metavar="TASK.NAME=VALUE", help="override a setting, for example finetune.epochs=50"
    )
    parser.add_argument("--branch", help="which encoder of the checkpoints to take, for example target")
    parser.add_argument("--limit", type=at_least_one, help="read at most so many images of each set; the cells are marked")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda (default: auto)")
    parser.add_argument("--jobs", type=at_least_one, help="tasks at a time (default: one a GPU, or two on a CPU)")
    parser.add_argument("--workers", type=at_least_zero, help="data loading processes a task (default: the cores shared by the GPUs, none on a CPU)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--check-data", action="store_true", help="verify counts, classes and some images of every set that is read, and stop")
    parser.add_argument("--calibrate", type=Path, metavar="FINETUNED", help="does this data give a released fine-tuned checkpoint its accuracy?")
    parser.add_argument("--dry-run", action="store_true", help="print the plan and stop")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
