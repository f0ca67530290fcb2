"""How it stands with the jobs that were submitted to Slurm for an output folder, with or without accounting."""

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evaluate.harness import launches
from evaluate.harness.executor import ROOT, Job
from evaluate.harness.logs import last_line
from evaluate.harness.slurm_arrays import labels
from evaluate.runtime.cli import EXIT_SKIPPED
from evaluate.runtime.errors import UserError
from results.escape import plain

FOLDER, KEPT = "slurm", "jobs.json"  # below OUT
NO_OUT, NO_PYTHON, NO_CODE, NO_IMPORT = 90, 91, 92, 93  # exit statuses of a job that cannot begin
REST = "rest"  # the elements of an array of which Slurm has one record
ENDED_BADLY = ("failed", "cancelled", "not run")
LIVE = {
    **dict.fromkeys(("PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT", "RESV_DEL_HOLD"), "pending"),
    **dict.fromkeys(("RUNNING", "COMPLETING", "CONFIGURING", "STAGE_OUT", "SIGNALING", "SUSPENDED"), "running"),
}
BROKEN = {
    "OUT_OF_MEMORY": "its job was killed since it used more memory than Slurm gave it; ask for more with --slurm mem=…",
    "TIMEOUT": "its job reached its limit before it could save; ask for more with --slurm time=…",
    "DEADLINE": "its job reached its deadline",
    "NODE_FAIL": "its node {node} went away; the same command goes on from its last state",
    "BOOT_FAIL": "its node {node} did not boot; the same command goes on from its last state",
    "PREEMPTED": "its job was preempted and not requeued; the same command goes on from its last state",
}
STATUSES = {
    NO_OUT: "the node {node} cannot see OUT; choose an --out on a file system that the nodes share",
    NO_PYTHON: f"the node {{node}} cannot run {sys.executable}; put the environment on a file system that nodes share",
    NO_CODE: f"the node {{node}} cannot see {ROOT}; put the checkout on a file system that the nodes share",
    NO_IMPORT: "the node {node} cannot import what a job needs: {line}",
}


@dataclass(frozen=True)
class State:
    """How it stands with a task."""

    word: str
    """pending, running, done, failed, cancelled, not run (what it needs failed), or unknown (nobody to ask)."""
    reason: str = ""
    """In one sentence; "" where there is nothing to say."""
    status: int | None = None
    """The exit status of its command, where that ended by itself."""


def kept(out: Path) -> dict[str, Any]:
    """What was submitted for OUT: under ``tasks`` the job, the command and the needs of each; {} for nothing."""
    try:
        content = json.loads((out / FOLDER / KEPT).read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def ask(*line: str) -> str:
    """What a command of Slurm prints; "" where it fails or is absent. Raises UserError where the controller is away:
    nothing may be concluded from that.
    """
    try:
        whole = {**os.environ, "SLURM_BITSTR_LEN": "0"}  # the numbers of an array's elements are not cut short
        done = subprocess.run(line, env=whole, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    if "ontact slurm controller" in done.stderr or "onnection refused" in done.stderr:
        raise UserError(f"Slurm does not answer ({done.stderr.strip().splitlines()[-1]}); ask again later")
    return done.stdout if done.returncode == 0 else ""


def states(out: Path) -> dict[str, str]:
    """Each task that was submitted for OUT, and its state: pending, running, done, failed, cancelled or not run."""
    return {name: state.word for name, state in explained(out).items()}


def array_of(job: str) -> str:
    """The number of the array that a job, ARRAY_ELEMENT, belongs to."""
    return job.partition("_")[0]


def explained(out: Path) -> dict[str, State]:
    """The same with reasons. Asks squeue, then scontrol, then sacct; the jobs' own files say the rest."""
    known: Mapping[str, dict[str, Any]] = kept(out).get("tasks", {})
    numbers = dict.fromkeys(array_of(entry["job"]) for entry in known.values())
    listed = ask("squeue", "--noheader", "--array", f"--jobs={','.join(numbers)}", "--format=%i|%T|%r") if known else ""
    queue = {number: (state, why) for number, state, why in (line.split("|", 2) for line in listed.splitlines())}
    slurm = Memory()
    found: dict[str, State] = {}
    for name, entry in sorted(known.items(), key=lambda item: int(array_of(item[1]["job"]))):  # what is needed first
        job = entry["job"]
        state, why = queue.get(job, ("", ""))
        if state in LIVE:
            found[name] = State(LIVE[state], "" if why in ("None", "Dependency") else why)
        else:
            unmet = next((need for need in entry["needs"] if need in found and found[need].word in ENDED_BADLY), None)
            because = f"not run, since {unmet} did not succeed: {found[unmet].reason}" if unmet else ""
            found[name] = _of_ended(out, name, job, because, slurm)
    return found


class Memory:
    """What Slurm remembers of jobs that have ended, each array asked about once."""

    def __init__(self) -> None:
        self.arrays: dict[str, dict[str, dict[str, str]]] = {}

    def of(self, job: str) -> dict[str, str]:
        """What is known of a job: JobState, ExitCode, BatchHost or NodeList, Reason, StartTime; {} for nothing."""
        array = array_of(job)
        if array not in self.arrays:
            self.arrays[array] = _from_scontrol(array) or _from_sacct(array)
        known = self.arrays[array]
        return known.get(job) or known.get(REST, {})


def _from_scontrol(array: str) -> dict[str, dict[str, str]]:
    found: dict[str, dict[str, str]] = {}
    for line in ask("scontrol", "show", "job", array, "--oneliner").splitlines():
        facts = dict(re.findall(r"(\w+)=(\S*)", line))
        found |= dict.fromkeys(_jobs(array, facts.get("ArrayTaskId", "")), facts)
    return found


def _from_sacct(array: str) -> dict[str, dict[str, str]]:
    names = ("JobID", "State", "NodeList", "ExitCode")
    line = ("sacct", "--noheader", "--parsable2", "--allocations", f"--jobs={array}", f"-o{','.join(names)}")
    found: dict[str, dict[str, str]] = {}
    for answer in ask(*line).splitlines():
        facts = dict(zip(names, answer.split("|"), strict=False))
        facts["JobState"] = facts["State"].partition(" ")[0]  # CANCELLED by 1000
        found |= dict.fromkeys(_jobs(array, facts["JobID"].partition("_")[2].strip("[]")), facts)
    return found


def _jobs(array: str, elements: str) -> list[str]:
    """The jobs of an array that a record is about; REST for all that have none of their own."""
    return [f"{array}_{element}" for element in elements_of(elements)] or [REST]


def elements_of(text: str) -> list[int]:
    """0, 1, 2, 7 for ``0-2,7%16``; [] for what names no elements."""
    parts = re.sub(r"%\d+$", "", text).split(",")
    if not all(re.fullmatch(r"\d{1,9}(-\d{1,9})?", part) for part in parts):
        return []
    bounds = [[int(number) for number in part.split("-")] for part in parts]
    return [number for pair in bounds for number in range(pair[0], pair[-1] + 1)]


def _of_ended(out: Path, name: str, job: str, because: str, slurm: Memory) -> State:
    """How a job ended. ``because``: why it could not begin, where that is so."""
    folder = out / FOLDER
    log = folder / f"{job}_0_log.out"
    with contextlib.suppress(OSError, ValueError):
        status = json.loads((folder / f"{job}.json").read_text())["status"]
        if not 0 <= status <= 128:
            number = -status if status < 0 else status - 128
            return State("failed", f"its command was ended by signal {number}; the same command goes on from its state")
        own = task_log(out, name)
        said = last_line(own if own.is_file() else log)
        return State("failed", said, status) if status else State("done", status=0)
    facts = slurm.of(job)
    state, node = facts.get("JobState", ""), facts.get("BatchHost") or facts.get("NodeList", "")
    exited = facts.get("ExitCode", "").partition(":")[0]
    status = int(exited) if exited.isdigit() else 0
    if state == "CANCELLED":
        never = facts.get("StartTime") in ("Unknown", None) or facts.get("Reason") == "DependencyNeverSatisfied"
        if because and never:
            return State("not run", because)
        return State("cancelled", "its job was cancelled; the same command goes on from its last state")
    if state == "COMPLETED":
        return State("done", status=0)
    text = STATUSES.get(status) or BROKEN.get(state)
    if text:
        return State("failed", text.format(node=node or "of the job", line=last_line(log)))
    if not shutil.which("squeue"):
        return State("unknown", f"there is no squeue here to ask about job {job}; ask on a login node")
    if not state:
        return State("failed", f"Slurm knows its job {job} no longer, and it left no status; its log is {log}")
    return State("failed", f"its job ended as {state.lower()}: {last_line(log) or 'it said nothing'} (log: {log})")


def task_log(out: Path, name: str) -> Path:
    """Where a task writes."""
    return out / "logs" / f"{name.replace('/', '-').replace(' ', '-')}.log"


def cancel(out: Path) -> list[str]:
    """Cancels every job of OUT that waits or runs, that of the table too; returns the names of their tasks."""
    live = [name for name, word in states(out).items() if word in ("pending", "running")]
    known = kept(out).get("tasks", {})
    if live:
        ask("scancel", *dict.fromkeys(array_of(known[name]["job"]) for name in live))
        print(f"{out}: cancelled {', '.join(labels(live))}; the command that submitted them submits what is missing")
    return live


def status(out: Path) -> bool:
    """Prints how it stands with the tasks that were submitted for OUT; whether any of them waits or runs."""
    known, found = kept(out).get("tasks", {}), explained(out)
    steps = {name: note for at, run in launches.known(out) for name, note in launches.notes_of(at, run.tasks).items()}
    alike: dict[tuple[str, ...], list[str]] = {}  # what needs no line of its own for each row
    for name, state in found.items():
        note = steps.get(name) if state.word == "running" else None
        said = f"{note.description} {note.step}/{note.total} {note.metric}".strip() if note else state.reason
        own = name if state.word in ("running", "failed") else ""
        alike.setdefault((array_of(known[name]["job"]), state.word, plain(said), own), []).append(name)
    lines = [("task", "job", "state", "")]
    for (array, word, said, _), names in alike.items():
        lines.append((labels(names)[0], known[names[0]]["job"] if len(names) == 1 else array, word, said))
    if found:
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        for line in lines:
            print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
        counts = Counter(state.word for state in found.values())
        print(f"{len(found)} tasks: {', '.join(f'{count} {word}' for word, count in counts.items())}")
        print(f"logs: {out / 'logs'}, of jobs: {out / FOLDER}/JOB_0_log.out")
    return any(state.word in ("pending", "running") for state in found.values())


def conclude(work: Sequence[Job], out: Path) -> None:
    """Before the table is rendered: sets how each job ended, and writes the record of those that could not do it."""
    found = explained(out)
    for job in work:
        state = found.get(job.name)
        if job.is_done() or state is None or state.word in ("pending", "running"):
            job.status = 0
        elif state.status is not None:  # its own command has written what there is to say
            job.status = state.status or EXIT_SKIPPED
            if job.name.endswith("/convert"):
                job.on_exit(job.status)
        else:
            job.status = 1
            job.log.parent.mkdir(parents=True, exist_ok=True)
            with job.log.open("w" if state.word == "not run" else "a") as log:
                log.write(f"\n{state.reason}\n")
            job.on_exit(1)
