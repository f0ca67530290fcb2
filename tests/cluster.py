"""A Slurm that is simulated: it plays the arrays that ``run_all.py --launch slurm`` would submit on nodes that no test
has, with failures and preemptions.

    python -m tests.cluster         the figures of docs/slurm.md
"""

import heapq
import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from evaluate.harness import estimate, options, plan, slurm
from evaluate.harness.slurm_arrays import TABLE, Array, Task, arrays, numbered

HOURS = {"convert": 1 / 60, "data": 5 / 60, TABLE: 1 / 60}  # of what the plan has no cost for
PARTS = 100  # a training saves after each of so many equal parts
WITHOUT_STATE = ("knn", "few_shot", "robustness", "convert", "data", TABLE)  # begin anew
BEGIN_HOURS = 30 / 3600  # of a job, from its start to its command: Slurm's prologue, the interpreter, imports
REQUEUE_HOURS = 2 / 60  # for which Slurm holds a job that was requeued


@dataclass(frozen=True)
class Weather:
    """What happens to jobs."""

    failing: float = 0.0
    """Of the tasks, this share fails once, at a random moment."""
    preemption_hours: float = float("inf")
    """On average a running job is preempted after so many."""
    limit_hours: float = 24.0
    """Of each job, after which it is requeued."""


@dataclass
class Job:
    """One element of an array."""

    task: Task
    gpus: int
    after: list[tuple[str, str]]
    """How it waits for which task."""
    order: int
    """In the queue."""
    state: str = "pending"
    runs: int = 0
    """How often it was started; what was scheduled for an earlier start does not count."""
    node: int = -1
    begun: float = 0.0
    waits: int = 0
    """For so many."""


@dataclass
class Played:
    """What came of a graph."""

    hours: float = 0.0
    """From the first submission to the end of the last job."""
    busy: float = 0.0
    """GPU-hours that jobs held."""
    done: dict[str, int] = field(default_factory=dict)
    """How often each task ended well."""
    submissions: int = 0
    arrays: int = 0
    starts: int = 0
    preempted: int = 0
    limits: int = 0
    failed: int = 0
    not_run: int = 0
    lost: float = 0.0
    """GPU-hours of work that was repeated."""


class Cluster:
    """Nodes, a queue in the order of submission with backfill, and what the tasks have saved."""

    def __init__(self, nodes: int, gpus: int, hours: dict[str, float], weather: Weather, seed: int = 0) -> None:
        self.free = [gpus] * nodes
        self.running: list[list[Job]] = [[] for _ in range(nodes)]
        self.hours, self.weather, self.random = hours, weather, random.Random(seed)
        self.saved: dict[str, float] = {}
        """Hours of work by task."""
        fails = [name for name in hours if "/" in name and self.random.random() < weather.failing]
        self.fails = {name: self.random.random() for name in fails}
        """After this part of its work a task fails, once."""
        self.now, self.events, self.count = 0.0, [], itertools.count()
        self.played = Played()

    def run(self, listed: Sequence[Array]) -> None:
        """Plays what was submitted to its end."""
        self.played.submissions += 1
        self.played.arrays += len(listed)
        self.jobs = _jobs(listed)
        self.dependents: dict[str, list[tuple[str, Job]]] = {}
        self.ready: list[tuple[int, Job]] = []
        self.events: list[tuple[float, int, str, Job, int]] = []
        for job in self.jobs.values():
            for how, name in job.after:
                self.dependents.setdefault(name, []).append((how, job))
            if not job.after:
                self.ready.append((job.order, job))
        self._schedule()
        while self.events:
            self.now, _, what, job, run = heapq.heappop(self.events)
            if what == "requeued":
                heapq.heappush(self.ready, (job.order, job))
            elif run == job.runs and job.state == "running":
                self._end(job, what)
            self._schedule()
        self.played.hours = self.now
        assert not any(job.state in ("pending", "running") for job in self.jobs.values()), "the queue is stuck"

    def _tell(self, job: Job) -> None:
        """A job has ended: the next ones come into the queue, or end with it where it failed."""
        for how, dependent in self.dependents.get(job.task.name, ()):
            dependent.waits -= 1
            if job.state != "done" and how != "afterany" and dependent.state == "pending":
                dependent.state = "not run"
                self.played.not_run += 1
                self._tell(dependent)
            elif not dependent.waits and dependent.state == "pending":
                heapq.heappush(self.ready, (dependent.order, dependent))

    def _schedule(self) -> None:
        """Starts what can be: in order, and what comes later only where no earlier job waits for the node."""
        taken: set[int] = set()
        wait = []
        while self.ready and (any(self.free) or not self.ready[0][1].gpus) and len(taken) < len(self.free):
            order, job = heapq.heappop(self.ready)
            nodes = [node for node, free in enumerate(self.free) if free >= job.gpus and node not in taken]
            if nodes or not job.gpus:
                self._start(job, min(nodes, key=lambda node: self.free[node]) if job.gpus else -1)
            else:
                wait.append((order, job))
                taken.add(self._soonest(job.gpus, taken))
        for one in wait:
            heapq.heappush(self.ready, one)

    def _soonest(self, gpus: int, taken: set[int]) -> int:
        """The node that has so many GPUs first, as far as the limits of its jobs say."""
        ends: dict[int, float] = {}
        for node in set(range(len(self.free))) - taken:
            free, ends[node] = self.free[node], self.now
            for job in sorted(self.running[node], key=lambda job: job.begun):
                if free < gpus:
                    free, ends[node] = free + job.gpus, job.begun
        return min(ends, key=ends.__getitem__)

    def _start(self, job: Job, node: int) -> None:
        name, done = job.task.name, self.played.done
        assert name not in done or not job.task.row, f"{name} twice"
        assert name == TABLE or done.keys() >= set(job.task.needs), f"{name} before what it needs"
        job.state, job.node, job.begun, job.runs = "running", node, self.now, job.runs + 1
        self.played.starts += 1
        if job.gpus:
            self.free[node] -= job.gpus
            self.running[node].append(job)
        left = self.hours[job.task.name] - self.saved.get(job.task.name, 0.0)
        ends = [(BEGIN_HOURS + left / max(job.gpus, 1), "done"), (self.weather.limit_hours, "limit")]
        if job.gpus and self.weather.preemption_hours < float("inf"):
            ends.append((self.random.expovariate(1 / self.weather.preemption_hours), "preempted"))
        if job.task.name in self.fails:
            until = self.fails[job.task.name] * self.hours[job.task.name] - self.saved.get(job.task.name, 0.0)
            ends.append((BEGIN_HOURS + max(until, 0.0) / max(job.gpus, 1), "failed"))
        after, what = min(ends)
        heapq.heappush(self.events, (self.now + after, next(self.count), what, job, job.runs))

    def _end(self, job: Job, what: str) -> None:
        name, played = job.task.name, self.played
        if job.gpus:
            self.free[job.node] += job.gpus
            self.running[job.node].remove(job)
            played.busy += job.gpus * (self.now - job.begun)
        if what == "done":
            job.state = what
            played.done[name] = played.done.get(name, 0) + 1
            self._tell(job)
            return
        before = self.saved.get(name, 0.0)
        reached = before + max(self.now - job.begun - BEGIN_HOURS, 0.0) * max(job.gpus, 1)
        part = self.hours[name] / PARTS
        self.saved[name] = 0.0 if job.task.kind in WITHOUT_STATE else max(before, reached // part * part)
        played.lost += job.gpus and reached - self.saved[name]
        if what == "failed":
            job.state = what
            played.failed += 1
            del self.fails[name]
            self._tell(job)
            return
        played.preempted += what == "preempted"
        played.limits += what == "limit"
        job.state = "pending"
        heapq.heappush(self.events, (self.now + REQUEUE_HOURS, next(self.count), "requeued", job, job.runs))


def _jobs(listed: Sequence[Array]) -> dict[str, Job]:
    """The elements of arrays with what each waits for, as Slurm reads it."""
    jobs: dict[str, Job] = {}
    for array in listed:
        for number, task in array.elements.items():
            after = []
            for how, place in array.after:
                needed = listed[int(place)].elements
                # aftercorr: of the element with the same number alone
                after += [(how, one.name) for one in ([needed[number]] if how == "aftercorr" else needed.values())]
            jobs[task.name] = Job(task, array.gpus, after, len(jobs), waits=len(after))
    return jobs


def play(
    rows: int, weather: Weather, nodes: int = 8, gpus: int = 8, seed: int = 0, names: str = ""
) -> tuple[Played, float]:
    """Submits the table of some checkpoints by the paper's protocols, again after each end until all is done; what came
    of it, and the least hours in which it could be done.
    """
    parsed = ["--ckpt", "x", "--data-root", ".", "--out", "out", "--launch", "slurm", f"--tasks={names}"]
    arguments = options.parse(parsed, None)
    chosen = plan.choose([name for name in names.split(",") if name])
    configs = plan.configure(chosen, "paper", {})
    checkpoints = {f"epoch-{number}": Path(f"/epoch-{number}.pth") for number in range(rows)}
    specs = dict.fromkeys(checkpoints)
    cluster: Cluster | None = None
    bound = 0.0
    while cluster is None or len([name for name in cluster.played.done if "/" in name]) < len(cluster.hours) - 2:
        stands = set(cluster.played.done) if cluster else set()
        listed = estimate.plan(specs, chosen, configs, None, estimate.H100, stands=stands)
        listed = estimate.allocate(listed, gpus)
        tasks = slurm.tasks(arguments, checkpoints, chosen, listed, stands)
        if cluster is None:
            planned = {one.name: one for one in listed}
            hours = {
                task.name: planned[task.name].hours if task.name in planned else HOURS[task.kind] for task in tasks
            }
            bound = least(tasks, hours, nodes * gpus)
            cluster = Cluster(nodes, gpus, hours, weather, seed)
        cluster.run(arrays(tasks, numbered(checkpoints, {}), {}))
        assert cluster.played.submissions < 20, "it never ends"
    return cluster.played, bound


def least(tasks: Sequence[Task], hours: dict[str, float], gpus: int) -> float:
    """The hours below which no order of the tasks ends: of all work on all GPUs, and of the longest chain."""
    ends: dict[str, float] = {}
    for task in tasks:
        alone = hours[task.name] / max(task.gpus, 1)
        ends[task.name] = alone + max((ends[need] for need in task.needs), default=0.0)
    return max(sum(hours[task.name] for task in tasks if task.gpus) / gpus, *ends.values())


SCENES = {
    "no limit": (200, Weather(limit_hours=float("inf"))),
    "undisturbed": (200, Weather()),
    "preempted, each job every 12 hours": (200, Weather(preemption_hours=12.0)),
    "and 3 % of the tasks fail once": (200, Weather(preemption_hours=12.0, failing=0.03)),
    "the same with 4 checkpoints": (4, Weather(preemption_hours=12.0, failing=0.03)),
}


def main() -> None:
    """Prints the rows of the table."""
    for name, (rows, weather) in SCENES.items():
        played, bound = play(rows, weather)
        cells = [name, f"{played.hours:.1f}", f"{bound:.1f}", f"{100 * (played.hours / bound - 1):.1f} %"]
        counts = (played.submissions, played.arrays, played.starts, played.preempted, played.limits, played.failed)
        print(f"| {' | '.join([*cells, *(f'{count:,}' for count in counts), f'{played.lost:.0f}'])} |")


if __name__ == "__main__":
    main()
