"""The same table on a Slurm cluster: one job a task, submitted through submitit; Slurm queues, requeues and ends them.

A job runs ``run_all.py`` with this one's settings for one task of one row (``--part``), so that whatever belongs to a
machine is counted on the node. The same task of several rows is one array (``slurm_arrays``). OUT/slurm keeps the
numbers of the jobs, their scripts and their logs.
"""

import argparse
import os
import re
import shutil
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from evaluate.checkpoints import command_line
from evaluate.data import sets
from evaluate.harness.estimate import BEYOND, Planned
from evaluate.harness.executor import ROOT, Job
from evaluate.harness.plan import Node, choose, of_sets, settable, task_name
from evaluate.harness.slurm_arrays import TABLE, Task
from evaluate.runtime.errors import UserError

DATA = "data"  # the part that identifies the data for all others
GPUS = 8  # of a node, where --gpus does not say it
OWN = frozenset(
    "chdir dependency error export_file job_name kill_on_invalid_dep nodes no_requeue ntasks ntasks_per_node "
    "open_mode output parsable requeue signal test_only wait wrap".split()
)


def check(arguments: argparse.Namespace) -> None:
    """Raises UserError for options that do not go with ``--launch slurm``, and where there is no Slurm."""
    if arguments.slurm and not arguments.launch:
        raise UserError("--slurm goes with --launch slurm")
    if not arguments.launch:
        return
    if not arguments.ckpt:
        raise UserError("--launch slurm goes with --ckpt; run the demo on one machine and measure its checkpoints then")
    if arguments.probe:
        raise UserError("--probe measures this machine, not the nodes; run it on a node, with the same --out")
    if arguments.jobs:
        raise UserError("--jobs is of one machine; Slurm says how many run at a time (--gpus 1: one GPU for each task)")
    minutes_of(options(arguments.slurm).get("time"))
    if "%" in os.path.abspath(arguments.out):
        raise UserError("Slurm reads % in the name of a file as a pattern; choose an --out without it")
    missing = [name for name in ("sbatch", "srun", "squeue", "scontrol") if not shutil.which(name)]
    if missing and not arguments.dry_run:
        raise UserError(f"there is no {missing[0]} on PATH; run --launch slurm where jobs are submitted, a login node")


def options(texts: Sequence[str]) -> dict[str, str]:
    """sbatch's options from ``partition=a,time=4:00:00``, by name with underscores.

    Raises UserError for what is not NAME=VALUE, is given twice, or is set by each job itself.
    """
    said: dict[str, str] = {}
    for text in texts:
        for part in re.split(r",(?=[A-Za-z][\w-]*=)", text):  # a value may hold commas: nodelist=a,b
            matched = re.fullmatch(r"(?:--)?([a-z][a-z0-9_-]*)=([^\n]+)", part)
            if not matched:
                raise UserError(f"--slurm takes sbatch's options as NAME=VALUE,NAME=VALUE, not {part!r}")
            name, value = matched[1].replace("-", "_"), matched[2]
            if name in OWN:
                raise UserError(f"--slurm {name}: each job sets this itself; leave it out")
            if name in said:
                raise UserError(f"--slurm {name} is given twice; give it once")
            said[name] = value
    if not re.fullmatch(r"(%[1-9]\d*)?", said.get("array", "")):
        raise UserError(f"--slurm array={said['array']}: the elements follow from the rows; array=%N runs N at a time")
    for name in ("cpus_per_task", "cpus_per_gpu"):
        if not re.fullmatch(r"[1-9]\d*", said.get(name, "1")):
            raise UserError(f"--slurm {name}={said[name]}: a whole number from 1 on")
    return said


def minutes_of(limit: str | None) -> int:
    """The minutes of a time as sbatch reads it. Raises UserError without one, or for what is none."""
    if limit is None:
        raise UserError("--slurm needs time=…, the limit of each job, as 4:00:00; a task that reaches it goes on in it")
    matched = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", limit)
    if matched:
        days, *rest = matched.groups()
        first, second, third = (int(part or 0) for part in rest)
        if days is not None:
            minutes = int(days) * 1440 + first * 60 + second
        elif rest[2] is not None:
            minutes = first * 60 + second
        else:
            minutes = first
        if minutes:
            return minutes
    raise UserError(f"--slurm time={limit}: write minutes, H:MM:SS or D-H:MM:SS, of a minute or more")


def shared(arguments: argparse.Namespace) -> list[str]:
    """The options that the command lines of all jobs have."""
    root = os.path.abspath(sets.root(arguments.data_root, arguments.sets))
    fixed = {"data-root": root, "out": os.path.abspath(arguments.out), "task-timeout": arguments.task_timeout}
    fixed |= {name: getattr(arguments, name) for name in ("seed", "preset", "limit", "workers", "log")}
    fixed |= {name: getattr(arguments, name) for name in command_line.TEXTS}
    line = [f"--{name}={value}" for name, value in fixed.items() if value is not None]
    if arguments.sets:
        line += ["--sets", *(os.path.abspath(text) if ".toml" in text else text for text in arguments.sets)]
    flags = [name for name in ("verify_data", "keep_models", "compile") if getattr(arguments, name)]
    return [*line, *(f"--{name.replace('_', '-')}" for name in flags)]


def command(
    arguments: argparse.Namespace,
    of_all: Sequence[str],
    rows: Mapping[str, Path],
    names: Sequence[str],
    part: str,
    device: str = "cpu",
    seeds: int = 1,
) -> list[str]:
    """The command line of a job: that of this run for some rows and tasks; what belongs to this machine is left out.

    Args:
        of_all: what is ``shared``.
    """
    own = sets.choose(arguments.sets, sets.root(arguments.data_root, arguments.sets)) if arguments.sets else ()
    nodes = choose(names, of_sets(own))
    line = [sys.executable, str(ROOT / "run_all.py"), "--ckpt", *(f"{row}={path}" for row, path in rows.items())]
    line += [*of_all, f"--tasks={','.join(names)}", f"--device={device}", f"--seeds={seeds}"]
    of_nodes = {name for node in nodes for name in settable(node)}
    line += [f"--set={text}" for text in arguments.set if text.partition("=")[0].rpartition(".")[0] in of_nodes]
    of_rows = ("", *rows)
    line += [f"--assume={text}" for text in arguments.assume if text.partition("=")[0].rpartition(":")[0] in of_rows]
    return [*line, f"--part={part}"]


def tasks(
    arguments: argparse.Namespace,
    checkpoints: Mapping[str, Path],
    nodes: Sequence[Node],
    planned: Sequence[Planned],
    stands: Collection[str],
) -> list[Task]:
    """The jobs of a plan in their order, the data first and the table last; none for what stands already or is beyond
    the budget.
    """
    # on a node without a GPU that is to have one a task must fail, not compute for weeks
    device, found = "cpu" if arguments.device == "cpu" else "cuda", []
    every, of_all = [node.name for node in nodes], shared(arguments)
    for row, path in checkpoints.items():
        line = command(arguments, of_all, {row: path}, every, f"{row}/convert")
        found.append(Task(f"{row}/convert", line))
    for one in planned:
        if one.state in ("stands", BEYOND):
            continue
        seed = arguments.seed if one.seed is None else one.seed
        rows = {one.row: checkpoints[one.row]}
        line = command(arguments, of_all, rows, [one.node.name], one.name, device, seed - arguments.seed + 1)
        needs = (DATA, f"{one.row}/convert", *(task_name(one.row, need, one.seed) for need in one.node.needs))
        found.append(Task(one.name, line, needs, one.gpus if device == "cuda" else 0))
    found = [task for task in found if task.name not in stands]
    if any(DATA in task.needs for task in found):
        row = next(iter(checkpoints))  # a command line has one; the data are those of all
        found.insert(0, Task(DATA, command(arguments, of_all, {row: checkpoints[row]}, every, DATA)))
    line = command(arguments, of_all, checkpoints, every, TABLE, seeds=arguments.seeds)
    return [*found, Task(TABLE, line, tuple(task.name for task in found))]


def only(work: Sequence[Job], part: str) -> list[Job]:
    """The jobs that a part of the table consists of: the one of that name and what it needs."""
    by_name = {job.name: job for job in work}
    if part not in by_name:
        raise UserError(f"--part {part}: the parts are {', '.join((DATA, *by_name, TABLE))}")
    wanted, left = set(), [part]
    while left:
        name = left.pop()
        wanted.add(name)
        left += by_name[name].needs
    return [job for job in work if job.name in wanted]
