"""Which jobs of Slurm do the tasks of a plan: an array for each task, with an element for each row."""

import shlex
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

TABLE = "table"  # the job that renders it, after all others
SIZE = 1000  # elements of an array at most: Slurm's MaxArraySize is 1001 where nobody has changed it
CPUS = {"gpu": 8, "cpu": 1}  # of a task, for each of its GPUs or without any
ON_GPUS = ("gpus", "gpus_per_node", "gpus_per_task", "gpus_per_socket", "gres")


@dataclass(frozen=True)
class Task:
    """What one job does."""

    name: str
    """ROW/convert, ROW/NODE, or of all rows."""
    command: list[str]
    needs: tuple[str, ...] = ()
    gpus: int = 0

    @property
    def row(self) -> str:
        """Empty for what is done for all rows."""
        return self.name.rpartition("/")[0]

    @property
    def kind(self) -> str:
        """What is done for the row: convert, or a node, perhaps with its seed."""
        return self.name.rpartition("/")[2]


@dataclass(frozen=True)
class Array:
    """Jobs that are submitted together: the same task of several rows, each with as many GPUs."""

    kind: str
    gpus: int
    after: tuple[tuple[str, int | str], ...]
    """What each element waits for: how (aftercorr, afterok, afterany), and the place of an earlier array among those
    that are submitted now, or the number of one that is in the queue."""
    elements: dict[int, Task] = field(default_factory=dict)
    """By the number that the row has in every array."""

    @property
    def label(self) -> str:
        """For a person."""
        return "; ".join(labels(task.name for task in self.elements.values()))

    @property
    def name(self) -> str:
        """Of the job."""
        return self.kind if len(self.elements) > 1 else next(iter(self.elements.values())).name


def arrays(tasks: Sequence[Task], numbers: Mapping[str, int], queued: Mapping[str, str]) -> list[Array]:
    """The arrays that do some tasks, in an order in which each can name those that it waits for.

    An element waits for the element of its row in the arrays of what it needs (aftercorr: they have the same number),
    for what is done for all rows (afterok), and the table for the end of everything (afterany).

    Args:
        tasks: each after those that it needs.
        numbers: of the rows.
        queued: the array of each task that is in the queue already.
    """
    found: dict[tuple[object, ...], Array] = {}
    places: dict[str, int | str] = dict(queued)
    for task in tasks:
        number = numbers.get(task.row, 0)
        after = tuple(dict.fromkeys((_how(task, need), places[need]) for need in task.needs if need in places))
        key = (task.kind, task.gpus, number // SIZE, after)
        if key not in found:
            found[key] = Array(task.kind, task.gpus, after)
        found[key].elements[number % SIZE] = task
        places[task.name] = list(found).index(key)
    return list(found.values())


def _how(task: Task, need: str) -> str:
    if task.name == TABLE:
        return "afterany"
    return "aftercorr" if "/" in need else "afterok"


def numbered(rows: Iterable[str], before: Mapping[str, int]) -> dict[str, int]:
    """The number of each row in every array: the one that it had before, or the next."""
    numbers = dict(before)
    for row in rows:
        numbers.setdefault(row, len(numbers))
    return numbers


def ranges(numbers: Collection[int]) -> str:
    """``0-3,7`` for 0, 1, 2, 3 and 7."""
    parts: list[list[int]] = []
    for number in sorted(numbers):
        if parts and number == parts[-1][-1] + 1:
            parts[-1] = [parts[-1][0], number]
        else:
            parts.append([number])
    return ",".join("-".join(map(str, part)) for part in parts)


def labels(names: Iterable[str]) -> list[str]:
    """Names of tasks for a person: ``knn of 200 rows`` for the same task of several rows."""
    kinds: dict[str, list[str]] = {}
    for name in names:
        kinds.setdefault(name.rpartition("/")[2], []).append(name)
    return [own[0] if len(own) == 1 else f"{kind} of {len(own)} rows" for kind, own in kinds.items()]


def resources(gpus: int, said: Mapping[str, str]) -> tuple[int, dict[str, str]]:
    """The cores of a task, and sbatch's options for it: a task of n GPUs asks for n of them and n times the cores."""
    given = dict(said)
    each = [given.pop(name) for name in ("cpus_per_gpu", "cpus_per_task") if name in given]
    cpus = int(each[0]) if each else CPUS["gpu" if gpus else "cpu"]
    if not gpus:
        given = {name: value for name, value in given.items() if not _asks_for_gpus(name, value)}
    elif not any(_asks_for_gpus(name, value) for name, value in given.items()):
        given["gpus_per_node"] = str(gpus)
    return cpus * max(gpus, 1), given


def _asks_for_gpus(name: str, value: str) -> bool:
    return name in ON_GPUS and (name != "gres" or "gpu" in value)


def printed(listed: Sequence[Array], said: Mapping[str, str]) -> str:
    """What would be submitted, for a person."""
    lines = []
    for array in listed:
        cpus, given = resources(array.gpus, said)
        asked = {"array": ranges(array.elements) + given.pop("array", ""), "cpus_per_task": str(cpus), **given}
        before = [listed[place] for _, place in array.after if isinstance(place, int)]
        behind = f" after {', '.join(one.label for one in before)}" if before else ""
        shown = " ".join(f"--{name.replace('_', '-')}={value}" for name, value in asked.items())
        lines += [f"{array.label}{behind}: sbatch {shown}"]
        lines += [f"    {shlex.join(task.command)}" for task in array.elements.values()]
    return "\n".join(lines)
