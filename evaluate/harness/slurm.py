"""The same table on a Slurm cluster: one job a task, submitted through submitit; Slurm queues, requeues and ends them.

A job runs ``run_all.py`` with this one's settings for one task of one row (``--part``), so that whatever belongs to a
machine is counted on the node. OUT/slurm keeps the numbers of the jobs, their scripts and their logs.
"""

import argparse
import contextlib
import io
import json
import os
import re
import secrets
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evaluate.checkpoints import command_line
from evaluate.data import layouts
from evaluate.harness.estimate import BEYOND, Planned
from evaluate.harness.executor import GRACE_SECONDS, ROOT, Job
from evaluate.harness.plan import Node, choose, task_name
from evaluate.harness.slurm_states import (
    FOLDER,
    KEPT,
    NO_CODE,
    NO_IMPORT,
    NO_OUT,
    NO_PYTHON,
    ask,
    explained,
    kept,
)
from evaluate.runtime.errors import UserError
from evaluate.runtime.locks import exclusive
from results.atomic import atomic_write

TOKEN = "token"  # in OUT/slurm: who reads it there sees OUT
TABLE = "table"  # the part that renders it, after all others
GPUS = 8  # of a node, where --gpus does not say it
CPUS = {"gpu": 8, "cpu": 1}  # of a task, for each of its GPUs or without any
SIGNAL_SECONDS = 90  # before the limit USR2 comes: more than the 2 x GRACE_SECONDS in which a task ends
MOST_LIMITS = 1000  # how often a job may reach its limit before submitit gives it up
POLL_SECONDS = 0.2
KILL_SECONDS = 120.0  # that a job which Slurm ends waits for being killed (KillWait is 30 s)
OWN = frozenset(
    "array chdir dependency error export_file job_name kill_on_invalid_dep nodes no_requeue ntasks ntasks_per_node "
    "open_mode output parsable requeue signal test_only wait wrap".split()
)
ON_GPUS = ("gpus", "gpus_per_node", "gpus_per_task", "gpus_per_socket", "gres")


@dataclass(frozen=True)
class Task:
    """What one job does."""

    name: str
    """ROW/convert, ROW/NODE or TABLE."""
    command: list[str]
    needs: tuple[str, ...] = ()
    gpus: int = 0


class Command:
    """A command that a job runs: submitit calls it on the node, and ``checkpoint`` on USR2, before the job is requeued.

    The command then ends in order and, when the job runs again, goes on from what it has saved.
    """

    def __init__(self, command: Sequence[str], folder: Path) -> None:
        self.command, self.folder = list(command), folder
        self.process: subprocess.Popen[bytes] | None = None

    def __call__(self) -> None:
        ended = self.folder / f"{os.environ['SLURM_JOB_ID']}.json"
        ended.unlink(missing_ok=True)  # of a job that was requeued after its end
        self.process = subprocess.Popen(self.command, cwd=ROOT, preexec_fn=_ignore_usr2)
        while self.process.poll() is None:
            time.sleep(POLL_SECONDS)  # not wait(): checkpoint() comes in between, and wait() holds a lock
        status = self.process.returncode
        if status in (-signal.SIGTERM, 128 + signal.SIGTERM, -signal.SIGKILL):
            time.sleep(KILL_SECONDS)  # Slurm ends this job, or requeues it: what it says of it counts
        with atomic_write(ended) as written:
            written.write_text(json.dumps({"status": status}))
        sys.exit(status if status >= 0 else 128 - status)

    def checkpoint(self) -> Any:
        """Ends the command in order; returns what the job does when it runs again."""
        from submitit.helpers import DelayedSubmission

        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.process.pid, signal.SIGTERM)
            deadline = time.monotonic() + 3 * GRACE_SECONDS
            while time.monotonic() < deadline and not _has_ended(self.process.pid):
                time.sleep(POLL_SECONDS)
        return DelayedSubmission(Command(self.command, self.folder))


def _ignore_usr2() -> None:
    """Slurm signals every process of a job: USR2 is for the one that submitit runs, which then stops the others."""
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)


def _has_ended(pid: int) -> bool:
    """Whether a child has ended; takes no lock and leaves its status to whoever waits for it."""
    try:
        return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is not None
    except ChildProcessError:
        return True


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


def command(
    arguments: argparse.Namespace, rows: Mapping[str, Path], names: Sequence[str], part: str, device: str, seeds: int
) -> list[str]:
    """The command line of a job: that of this run for some rows and tasks; what belongs to this machine is left out."""
    nodes = choose(names)
    line = [sys.executable, str(ROOT / "run_all.py"), "--ckpt", *(f"{row}={path}" for row, path in rows.items())]
    root = os.path.abspath(layouts.root(arguments.data_root))
    fixed = {"data-root": root, "out": os.path.abspath(arguments.out), "tasks": ",".join(names)}
    fixed |= {"device": device, "seed": arguments.seed, "seeds": seeds, "task-timeout": arguments.task_timeout}
    fixed |= {name: getattr(arguments, name) for name in ("preset", "limit", "workers", "log")}
    fixed |= {name: getattr(arguments, name) for name in command_line.TEXTS}
    line += [f"--{name}={value}" for name, value in fixed.items() if value is not None]
    line += [f"--{name.replace('_', '-')}" for name in ("verify_data", "keep_models") if getattr(arguments, name)]
    of_nodes = {name for node in nodes for name in (node.name, node.task)}
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
    """The jobs of a plan in their order, the table last; none for what stands already or is beyond the budget."""
    # on a node without a GPU that is to have one a task must fail, not compute for weeks
    device, found = "cpu" if arguments.device == "cpu" else "cuda", []
    every = [node.name for node in nodes]
    for row, path in checkpoints.items():
        line = command(arguments, {row: path}, every, f"{row}/convert", "cpu", 1)
        found.append(Task(f"{row}/convert", line))
    for one in planned:
        if one.state in ("stands", BEYOND):
            continue
        seed = arguments.seed if one.seed is None else one.seed
        rows = {one.row: checkpoints[one.row]}
        line = command(arguments, rows, [one.node.name], one.name, device, seed - arguments.seed + 1)
        needs = (f"{one.row}/convert", *(task_name(one.row, need, one.seed) for need in one.node.needs))
        found.append(Task(one.name, line, needs, one.gpus if device == "cuda" else 0))
    found = [task for task in found if task.name not in stands]
    line = command(arguments, checkpoints, every, TABLE, "cpu", arguments.seeds)
    return [*found, Task(TABLE, line, tuple(task.name for task in found))]


def resources(task: Task, said: Mapping[str, str]) -> tuple[int, dict[str, str]]:
    """The cores of a task, and sbatch's options for it: a task of n GPUs asks for n of them and n times the cores."""
    given = dict(said)
    each = [given.pop(name) for name in ("cpus_per_gpu", "cpus_per_task") if name in given]
    cpus = int(each[0]) if each else CPUS["gpu" if task.gpus else "cpu"]
    if not task.gpus:
        given = {name: value for name, value in given.items() if not _asks_for_gpus(name, value)}
    elif not any(_asks_for_gpus(name, value) for name, value in given.items()):
        given["gpus_per_node"] = str(task.gpus)
    return cpus * max(task.gpus, 1), given


def _asks_for_gpus(name: str, value: str) -> bool:
    return name in ON_GPUS and (name != "gres" or "gpu" in value)


def printed(listed: Sequence[Task], texts: Sequence[str]) -> str:
    """What would be submitted, for a person."""
    lines = []
    for task in listed:
        cpus, asked = resources(task, options(texts))
        asked = {"cpus_per_task": str(cpus), **asked}
        after = f" after {', '.join(task.needs)}" if task.needs else ""
        shown = " ".join(f"--{name.replace('_', '-')}={value}" for name, value in asked.items())
        lines += [f"{task.name}{after}: sbatch {shown}", f"    {shlex.join(task.command)}"]
    return "\n".join(lines)


def submit(listed: Sequence[Task], out: Path, texts: Sequence[str]) -> None:
    """Submits the jobs and keeps their numbers below OUT; those that wait or run already are left to go on.

    Raises UserError where Slurm refuses one, after the others have been cancelled.
    """
    import submitit

    said = options(texts)
    folder = out / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    with exclusive(folder / ".lock", "the submission"):
        before = kept(out)
        token = before.get("token") or secrets.token_hex(8)
        (folder / TOKEN).write_text(token)
        live = {name for name, state in explained(out).items() if state.word in ("pending", "running")}
        known: dict[str, dict[str, Any]] = before.get("tasks", {})
        executor = submitit.SlurmExecutor(folder, max_num_timeout=MOST_LIMITS)
        mine: list[str] = []
        for task in listed:
            if task.name != TABLE and task.name in live and known[task.name]["command"] != task.command:
                raise UserError(
                    f"{task.name} is in the queue with other settings (job {known[task.name]['job']}); let it end or "
                    "cancel it first"
                )
        if TABLE in live:
            ask("scancel", known[TABLE]["job"])  # another one waits for all
        for task in listed:
            if task.name != TABLE and task.name in live:
                print(f"{task.name}: is job {known[task.name]['job']} already", flush=True)
                continue
            after = [known[need]["job"] for need in task.needs if need in known and (need in live or need in mine)]
            cpus, asked = resources(task, said)
            if after:
                asked["dependency"] = f"{'afterany' if task.name == TABLE else 'afterok'}:{':'.join(after)}"
            executor.update_parameters(
                job_name=task.name,
                time=minutes_of(said.get("time")),
                nodes=1,
                ntasks_per_node=1,
                cpus_per_task=cpus,
                srun_args=[f"--cpus-per-task={cpus}"],  # which srun no longer takes from its job
                signal_delay_s=SIGNAL_SECONDS,
                stderr_to_stdout=True,
                wckey=None,
                setup=_setup(folder, token),
                additional_parameters={
                    "kill_on_invalid_dep": "yes",
                    "requeue": True,
                    "chdir": str(ROOT),
                    "output": "/dev/null",  # without OUT a job could not even begin, and say so; _setup opens the log
                    "error": "/dev/null",
                    **{name: True if value == "true" else value for name, value in asked.items()},
                },
            )
            try:
                with _outside_of_a_job(), contextlib.redirect_stderr(io.StringIO()):  # submitit repeats sbatch's words
                    job = executor.submit(Command(task.command, folder)).job_id
            except (submitit.core.utils.FailedJobError, submitit.core.utils.FailedSubmissionError) as error:
                ask("scancel", *(known[name]["job"] for name in mine))
                raise UserError(f"Slurm refuses the job of {task.name}: {_shortened(str(error))}") from error
            known[task.name] = {"job": job, "command": task.command, "needs": [*task.needs]}
            mine.append(task.name)
            with atomic_write(folder / KEPT) as written:  # each at once: whoever is killed here leaves no unknown job
                written.write_text(json.dumps({"token": token, "tasks": known}, indent=1))
            on = f", {task.gpus} GPU{'s' * (task.gpus > 1)}" if task.gpus else ""
            behind = f", after {', '.join(after)}" if after else ""
            print(f"{task.name}: job {job}{on}{behind}", flush=True)
    print(f"the jobs go on without this command; their logs: {folder}/JOB_0_log.out; tables: {out}", flush=True)


def _setup(folder: Path, token: str) -> list[str]:
    """What a job's script does first: whatever the node lacks is its exit status, for OUT may be what it lacks."""
    where, python = shlex.quote(str(folder)), shlex.quote(sys.executable)
    imports = f'{python} -c "import submitit, evaluate.harness.slurm"'
    return [
        f'[ "$(cat {where}/{TOKEN} 2>/dev/null)" = {token} ] || exit {NO_OUT}',
        f"exec >> {where}/${{SLURM_JOB_ID}}_0_log.out 2>&1",
        f"[ -x {python} ] || exit {NO_PYTHON}",
        f"cd {shlex.quote(str(ROOT))} && [ -f run_all.py ] || exit {NO_CODE}",
        f"{imports} || exit {NO_IMPORT}",
    ]


@contextlib.contextmanager
def _outside_of_a_job() -> Iterator[None]:
    """Hides the variables of a job in which this runs from those that it submits; elsewhere changes nothing."""
    from submitit.helpers import clean_env

    if "SLURM_JOB_ID" not in os.environ:
        yield
        return
    configuration = os.environ.get("SLURM_CONF")
    with clean_env():
        if configuration:
            os.environ["SLURM_CONF"] = configuration
        yield


def _shortened(text: str) -> str:
    """sbatch's own sentence: the first line of what it says, without its name before it."""
    every = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("Try ")]
    return re.sub(r"^(\S*sbatch: )?(error: )?(.*failed: )?", "", every[0]) if every else "it does not say why"


def only(work: Sequence[Job], part: str) -> list[Job]:
    """The jobs that a part of the table consists of: the one of that name and what it needs."""
    by_name = {job.name: job for job in work}
    if part not in by_name:
        raise UserError(f"--part {part}: the parts are {', '.join((*by_name, TABLE))}")
    wanted, left = set(), [part]
    while left:
        name = left.pop()
        wanted.add(name)
        left += by_name[name].needs
    return [job for job in work if job.name in wanted]
