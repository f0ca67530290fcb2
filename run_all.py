"""From a checkpoint to the paper's whole table.

    uv run run_all.py                                    the demo: data, two checkpoints and every column, made here in minutes
    uv run run_all.py --ckpt FILE --data-root DIR        any checkpoint on the real data sets, by the paper's protocols
    uv run run_all.py --ckpt FILE --data-root DIR --dry-run

Each task is a process of its own and leaves one record; the table is rendered again after each. Run again, it does only what is
missing. Exit status: 0 all done or skipped with a reason, 1 a task failed, 2 bad input.
"""

import argparse
import os
import sys
from pathlib import Path

from evaluate import plan
from evaluate.data import layouts
from evaluate.errors import UserError
from evaluate.launch import local
from evaluate.task import EXIT_SKIPPED, make_folder, split_overrides
from results import record, tables

PYTHON = sys.executable


def main(argv: list[str] | None = None) -> int:
    """Parses, plans, runs, renders; returns the exit status."""
    arguments = parse(argv)
    try:
        return run(arguments)
    except UserError as error:
        print(f"run_all.py: {error}", file=sys.stderr)
        return 2


def run(arguments: argparse.Namespace) -> int:
    """The whole of it. Raises UserError on bad input, before anything runs."""
    demo = not arguments.ckpt
    nodes = plan.choose([name for name in arguments.tasks.split(",") if name])
    preset = arguments.preset or ("demo" if demo else "paper")
    configs = plan.configure(nodes, preset, split_overrides(arguments.set))
    checkpoints = {path.stem: path for path in arguments.ckpt}
    if len(checkpoints) < len(arguments.ckpt):
        raise UserError("two checkpoints have the same file name; rename one, since it names the row of the table")
    for path in arguments.ckpt:
        if not path.exists():
            raise UserError(f"there is no checkpoint {path}; give the path of an existing file")
    if not demo and not arguments.data_root:
        raise UserError("--ckpt needs --data-root, the folder that holds imagenet/, coco/, … (README, data layout)")
    if demo and arguments.dry_run:
        checkpoints = {name: arguments.out / "pretrain" / name / "checkpoint.pth" for name in ("siameseim", "random")}
        return dry_run(checkpoints, nodes, configs)
    if arguments.dry_run:
        return dry_run(checkpoints, nodes, configs)

    out = make_folder(arguments.out)
    data_root = layouts.root(arguments.data_root) if arguments.data_root else make_toy_world(out)
    shared = plan.Run(out, data_root, configs, arguments.seed, arguments.limit)
    jobs = demo_jobs(out, data_root, checkpoints) if demo else []
    for name, path in checkpoints.items():
        jobs += encoder_jobs(name, path, nodes, shared, preset, arguments, tuple(checkpoints))
    gpus = visible_gpus(arguments.device)
    local.run(jobs, slots=arguments.jobs or len(gpus) or min(2, os.cpu_count() or 1), gpus=gpus)

    print(f"\n{tables.render(out, list(checkpoints), record.read_all(out / 'records'))}")
    for first, second in zip(checkpoints, list(checkpoints)[1:], strict=False):
        print(tables.paired(out, first, second))
    print("tables: " + ", ".join(str(out / f"table.{kind}") for kind in ("csv", "tex", "md", "html")))
    print("seconds: " + ", ".join(f"{job.name} {job.seconds:.0f}" for job in jobs if job.seconds))
    failed = [job for job in jobs if job.status not in (0, EXIT_SKIPPED)]
    for job in failed:
        print(f"{job.name} failed: {local.last_line(job.log)} (log: {job.log})", file=sys.stderr)
    return int(bool(failed))


def make_toy_world(out: Path) -> Path:
    """The demo's data, made once."""
    from evaluate.data import toy

    print("toy world: making it, or taking the one that stands", flush=True)
    return toy.make(out / "data")


def demo_jobs(out: Path, data_root: Path, checkpoints: dict[str, Path]) -> list[local.Job]:
    """Jobs that make the demo's checkpoints, which are added to ``checkpoints``: a pretrained encoder and its random start."""
    jobs = []
    for name, options in (("siameseim", []), ("random", ["--init-only"])):
        folder = out / "pretrain" / name
        checkpoints[name] = folder / "checkpoint.pth"
        command = [
            PYTHON,
            "-m",
            "pretrain.train",
            "--preset",
            "demo",
            "--data",
            str(data_root / "imagenet/train"),
            "--out",
            str(folder),
            *options,
        ]
        done = (lambda path: lambda: path.is_file())(folder / "finished" if not options else checkpoints[name])
        ended = (lambda path: lambda status: path.touch() if status == 0 else None)(folder / "finished")
        jobs.append(local.Job(f"{name}/pretrain", command, out / "logs" / f"{name}-pretrain.log", is_done=done, ended=ended))
    return jobs


def encoder_jobs(
    name: str, path: Path, nodes: tuple[plan.Node, ...], shared: plan.Run, preset: str, arguments: argparse.Namespace, rows: tuple[str, ...]
) -> list[local.Job]:
    """Convert one checkpoint, then every node on it; the table is rendered after each."""
    out, encoder = shared.out, shared.out / name / "encoder.safetensors"
    convert = [
        PYTHON,
        "-m",
        "evaluate.convert",
        str(path),
        "--out",
        str(encoder),
        *(["--branch", arguments.branch] if arguments.branch else []),
    ]
    before = () if arguments.ckpt else (f"{name}/pretrain",)
    converted = lambda: plan.is_converted(path, encoder, arguments.branch)  # noqa: E731
    jobs = [local.Job(f"{name}/convert", convert, out / "logs" / f"{name}-convert.log", before, converted)]
    for node in nodes:
        command = [PYTHON, "-m", f"evaluate.{node.task}", "--ckpt", str(encoder), "--data-root", str(shared.data_root), "--out", str(out)]
        command += ["--name", name, "--preset", preset, "--seed", str(arguments.seed), "--device", arguments.device]
        command += ["--workers", str(arguments.workers), *(["--limit", str(arguments.limit)] if arguments.limit else [])]
        command += [part for setting in shared.settings(node, arguments.set) for part in ("--set", setting)]
        if node.needs:
            command += ["--classifier", str(out / name / node.needs / "classifier.safetensors")]
        log = out / "logs" / f"{name}-{node.name}.log"

        def ended(status: int, node: plan.Node = node, log: Path = log) -> None:
            word = {0: "done", EXIT_SKIPPED: "skipped"}.get(status, "failed")
            reason = local.last_line(log) if status > 0 else f"its process ended with status {status}; its log is {log}"
            print(f"{name}/{node.name}: {word}{f': {reason}' if status else ''}", flush=True)
            if status and "\nrecord: " not in log.read_text(errors="replace"):
                unrun = record.without_run(name, node.name, word, reason, arguments.seed, arguments.limit)
                record.write(out / "records", unrun)
            tables.render(out, rows, record.read_all(out / "records"))

        needs = (f"{name}/convert", *([f"{name}/{node.needs}"] if node.needs else []))
        jobs.append(local.Job(f"{name}/{node.name}", command, log, needs, lambda node=node: shared.find(name, node) is not None, ended))
    return jobs


def dry_run(checkpoints: dict[str, Path], nodes: tuple[plan.Node, ...], configs: dict[str, object]) -> int:
    """Prints what would run."""
    for name, path in checkpoints.items():
        for node in nodes:
            print(f"{name} ({path}): {node.name}: {configs[node.name]}")
    return 0


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
    parser.add_argument("--limit", type=int, help="read at most so many images of each set; the cells are marked")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda (default: auto)")
    parser.add_argument("--jobs", type=int, help="tasks at a time (default: one a GPU, or two on a CPU)")
    parser.add_argument("--workers", type=int, default=0, help="data loading processes a task (default: 0)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dry-run", action="store_true", help="print the plan and stop")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
