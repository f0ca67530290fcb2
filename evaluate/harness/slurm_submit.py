"""Submits the jobs of a plan to Slurm through submitit, and is what they run on their nodes."""

import contextlib
import io
import json
import os
import re
import secrets
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from evaluate.harness.executor import GRACE_SECONDS, ROOT
from evaluate.harness.slurm_arrays import TABLE, Array, Task, arrays, labels, numbered, ranges, resources
from evaluate.harness.slurm_states import (
    FOLDER,
    KEPT,
    NO_CODE,
    NO_IMPORT,
    NO_OUT,
    NO_PYTHON,
    array_of,
    ask,
    explained,
    kept,
)
from evaluate.runtime.errors import UserError
from evaluate.runtime.locks import exclusive
from results.atomic import atomic_write

TOKEN = "token"  # in OUT/slurm: who reads it there sees OUT
SIGNAL_SECONDS = 90  # before the limit USR2 comes: more than the 2 x GRACE_SECONDS in which a task ends
MOST_LIMITS = 1000  # how often a job may reach its limit before submitit gives it up
POLL_SECONDS = 0.2
KILL_SECONDS = 120.0  # that a job which Slurm ends waits for being killed (KillWait is 30 s)


class Command:
    """A command that a job runs: submitit calls it on the node, and ``checkpoint`` on USR2, before the job is requeued.

    The command then ends in order and, when the job runs again, goes on from what it has saved.
    """

    def __init__(self, command: Sequence[str], folder: Path) -> None:
        self.command, self.folder = list(command), folder
        self.process: subprocess.Popen[bytes] | None = None

    def __call__(self) -> None:
        job = "{SLURM_ARRAY_JOB_ID}_{SLURM_ARRAY_TASK_ID}".format_map(os.environ)
        ended = self.folder / f"{job}.json"
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


def submit(listed: Sequence[Task], out: Path, said: Mapping[str, str], minutes: int) -> None:
    """Submits the jobs and keeps their numbers below OUT; those that wait or run already are left to go on.

    Args:
        said: sbatch's options.
        minutes: the limit of each job.

    Raises: UserError where Slurm refuses one, after the others have been cancelled.
    """
    folder = out / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    with exclusive(folder / ".lock", "the submission"):
        before = kept(out)
        token = before.get("token") or secrets.token_hex(8)
        (folder / TOKEN).write_text(token)
        known: dict[str, dict[str, Any]] = before.get("tasks", {})
        live = {name for name, state in explained(out).items() if state.word in ("pending", "running")}
        todo = _without_queued(listed, known, live)
        if TABLE in live:
            ask("scancel", known[TABLE]["job"])  # another one waits for all
        numbers = numbered(filter(None, (task.row for task in listed)), before.get("rows", {}))
        queued = {name: array_of(known[name]["job"]) for name in live - {TABLE}}
        jobs: list[str] = []
        for array in arrays(todo, numbers, queued):
            after = [f"{how}:{jobs[place] if isinstance(place, int) else place}" for how, place in array.after]
            try:
                job = _submitted(array, after, folder, _setup(folder, token), said, minutes)
            except UserError:
                ask("scancel", *jobs)
                raise
            jobs.append(job)
            for index, task in array.elements.items():
                known[task.name] = {"job": f"{job}_{index}", "command": task.command, "needs": [*task.needs]}
            with atomic_write(folder / KEPT) as written:  # each at once: whoever is killed here leaves no unknown job
                written.write_text(json.dumps({"token": token, "rows": numbers, "tasks": known}, indent=1))
            on = f", {array.gpus} GPU{'s' * (array.gpus > 1)}" if array.gpus else ""
            behind = f", after {', '.join(one.partition(':')[2] for one in after)}" if after else ""
            print(f"{array.label}: job {job}{on}{behind}", flush=True)
    print(f"the jobs go on without this command; their logs: {folder}/JOB_0_log.out; tables: {out}", flush=True)


def _without_queued(
    listed: Sequence[Task], known: Mapping[str, Mapping[str, Any]], live: Collection[str]
) -> list[Task]:
    """The tasks that are not in the queue already; which are is said.

    Raises UserError for one that is there with other settings.
    """
    waiting = [task for task in listed if task.name in live and task.name != TABLE]
    for task in waiting:
        if task.row and known[task.name]["command"] != task.command:
            raise UserError(
                f"{task.name} is in the queue with other settings (job {known[task.name]['job']}); let it end or "
                "cancel it first"
            )
    for label in labels(task.name for task in waiting):
        job = f" (job {known[label]['job']})" if label in known else ""
        print(f"{label}: in the queue already{job}", flush=True)
    rest = [task for task in listed if task not in waiting]
    needed = {need for task in rest if task.row for need in task.needs}
    return [task for task in rest if task.row or task.name in (TABLE, *needed)]


def _submitted(
    array: Array, after: Sequence[str], folder: Path, setup: list[str], said: Mapping[str, str], minutes: int
) -> str:
    """Submits one array; its number. Raises UserError where Slurm refuses it."""
    import submitit

    cpus, asked = resources(array.gpus, said)
    asked["array"] = ranges(array.elements) + asked.pop("array", "")
    asked |= {"dependency": ",".join(after)} if after else {}
    executor = submitit.SlurmExecutor(folder, max_num_timeout=MOST_LIMITS)
    executor.update_parameters(
        job_name=array.name,
        time=minutes,
        nodes=1,
        ntasks_per_node=1,
        cpus_per_task=cpus,
        srun_args=[f"--cpus-per-task={cpus}"],  # which srun no longer takes from its job
        signal_delay_s=SIGNAL_SECONDS,
        stderr_to_stdout=True,
        wckey=None,
        setup=setup,
        additional_parameters={
            "kill_on_invalid_dep": "yes",
            "requeue": True,
            "chdir": str(ROOT),
            "output": "/dev/null",  # without OUT a job could not even begin, and say so; _setup opens the log
            "error": "/dev/null",
            **{name: True if value == "true" else value for name, value in asked.items()},
        },
    )
    # submitit counts elements from 0 and makes an array of two or more: what fills the gaps is no element of --array
    count = max(2, *(index + 1 for index in array.elements))
    commands = [array.elements[index].command if index in array.elements else [] for index in range(count)]
    try:
        with _outside_of_a_job(), contextlib.redirect_stderr(io.StringIO()):  # submitit repeats sbatch's words
            jobs = executor.submit_array([Command(command, folder) for command in commands])
    except (submitit.core.utils.FailedJobError, submitit.core.utils.FailedSubmissionError) as error:
        raise UserError(f"Slurm refuses the job of {array.label}: {_shortened(str(error))}") from error
    for index, job in enumerate(jobs):
        if index not in array.elements:
            job.paths.submitted_pickle.unlink()
    number = array_of(jobs[0].job_id)
    if any(how == "aftercorr" for how, _ in array.after):
        _take_apart(number, array)
    return number


def _take_apart(number: str, array: Array) -> None:
    """Has Slurm keep a record of each element, with the dependency on its own row.

    Of itself it takes a few at a time out of the array (correspond_after_task_cnt). The others may then outlive what it
    remembers of the jobs that they wait for (MinJobAge): they are cancelled, or run where they must not. A change of
    all elements but the last, to what they are, takes them out; of all, it would change the array as one.
    """
    *others, _ = sorted(array.elements)
    if others:
        ask("scontrol", "update", f"JobId={number}_[{ranges(others)}]", f"JobName={array.name}")


def _setup(folder: Path, token: str) -> list[str]:
    """What a job's script does first: whatever the node lacks is its exit status, for OUT may be what it lacks."""
    where, python = shlex.quote(str(folder)), shlex.quote(sys.executable)
    imports = f'{python} -c "import submitit, evaluate.harness.slurm_submit"'
    return [
        f'[ "$(cat {where}/{TOKEN} 2>/dev/null)" = {token} ] || exit {NO_OUT}',
        f"exec >> {where}/${{SLURM_ARRAY_JOB_ID}}_${{SLURM_ARRAY_TASK_ID}}_0_log.out 2>&1",
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
