"""Which arrays of jobs do the tasks of a plan."""

from pathlib import Path

import pytest

from evaluate.harness import slurm_states
from evaluate.harness.slurm_arrays import SIZE, TABLE, Task, arrays, labels, numbered, ranges


def tasks_of(rows: list[str], gpus: int = 1) -> list[Task]:
    """Converting, fine-tuning and robustness of some rows, and the table."""
    listed = [Task("data", [])] + [Task(f"{row}/convert", []) for row in rows]
    for row in rows:
        listed.append(Task(f"{row}/finetune", [], ("data", f"{row}/convert"), gpus))
        listed.append(Task(f"{row}/robustness", [], ("data", f"{row}/convert", f"{row}/finetune"), 1))
    return [*listed, Task(TABLE, [], tuple(task.name for task in listed))]


def test_the_same_task_of_all_rows_is_one_array_and_waits_row_by_row() -> None:
    numbers = numbered("abc", {})
    made = arrays(tasks_of(["a", "b", "c"]), numbers, {})
    assert [(one.kind, ranges(one.elements), one.after) for one in made] == [
        ("data", "0", ()),
        ("convert", "0-2", ()),
        ("finetune", "0-2", (("afterok", 0), ("aftercorr", 1))),
        ("robustness", "0-2", (("afterok", 0), ("aftercorr", 1), ("aftercorr", 2))),
        (TABLE, "0", tuple(("afterany", place) for place in range(4))),
    ]
    assert [one.elements[1].name for one in made[1:4]] == ["b/convert", "b/finetune", "b/robustness"]


def test_tasks_of_other_gpus_are_arrays_of_their_own_with_the_same_numbers() -> None:
    listed = [*tasks_of(["a"], 4)[:-1], *tasks_of(["b"], 8)[1:-1]]
    made = arrays(listed, numbered("ab", {}), {})
    assert [(one.kind, one.gpus, ranges(one.elements)) for one in made] == [
        ("data", 0, "0"),
        ("convert", 0, "0-1"),
        ("finetune", 4, "0"),
        ("robustness", 1, "0"),
        ("finetune", 8, "1"),
        ("robustness", 1, "1"),
    ]


def test_what_is_in_the_queue_is_waited_for_there_and_the_rest_for_its_own() -> None:
    """Two rows are converted by an array of before, one has its encoder, one is new."""
    numbers = numbered("abcd", {"b": 0, "a": 1, "c": 2})
    assert numbers == {"b": 0, "a": 1, "c": 2, "d": 3}
    gone = ("a/convert", "b/convert", "c/convert")
    listed = [task for task in tasks_of(["a", "b", "c", "d"]) if task.name not in gone and task.kind != "robustness"]
    made = arrays(listed, numbers, {"a/convert": "71", "b/convert": "71"})
    waits = {ranges(one.elements): one.after for one in made if one.kind == "finetune"}
    assert waits == {
        "0-1": (("afterok", 0), ("aftercorr", "71")),
        "2": (("afterok", 0),),
        "3": (("afterok", 0), ("aftercorr", 1)),
    }
    assert {after for _, after in made[-1].after} == {"71", *range(len(made) - 1)}


def test_more_rows_than_an_array_holds_are_several_arrays() -> None:
    rows = [f"row{number}" for number in range(SIZE + 2)]
    made = arrays(tasks_of(rows), numbered(rows, {}), {})
    assert [(one.kind, ranges(one.elements)) for one in made] == [
        ("data", "0"),
        *(("convert", part) for part in (f"0-{SIZE - 1}", "0-1")),
        *((kind, part) for part in (f"0-{SIZE - 1}", "0-1") for kind in ("finetune", "robustness")),
        (TABLE, "0"),
    ]
    second = [one for one in made if one.kind == "robustness"][1]
    assert second.elements[1].name == f"row{SIZE + 1}/robustness"
    assert {made[place].elements[1].row for how, place in second.after if how == "aftercorr"} == {f"row{SIZE + 1}"}


@pytest.mark.parametrize("numbers", [{0}, {0, 1, 2}, {0, 2, 3, 9}, set(range(0, 50, 3)) | set(range(90, 99))])
def test_ranges_are_read_as_they_are_written(numbers: set[int]) -> None:
    assert slurm_states.elements_of(ranges(numbers) + "%7") == sorted(numbers)


@pytest.mark.parametrize("text", ["", "4294967294", "N/A", "0,3,1...%2"])
def test_what_names_no_elements_is_none(text: str) -> None:
    assert slurm_states.elements_of(text) == []


def test_names_of_many_are_said_by_their_number() -> None:
    assert labels(["data", "a/knn", "b/knn", "a/finetune seed 1"]) == ["data", "knn of 2 rows", "a/finetune seed 1"]


def test_accounting_is_asked_once_for_an_array_that_the_controller_has_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is no accounting in the tests' Slurm: the answer is one of its documentation's form."""
    asked = []

    def ask(*line: str) -> str:
        asked.append(line[0])
        return (
            "7_0|COMPLETED|n1|0:0\n7_1|CANCELLED by 0|n1|0:0\n7_[2-3]|NODE_FAIL|n2|1:0\n" if line[0] == "sacct" else ""
        )

    monkeypatch.setattr(slurm_states, "ask", ask)
    memory = slurm_states.Memory()
    assert [memory.of(f"7_{element}").get("JobState") for element in range(5)] == [
        "COMPLETED",
        "CANCELLED",
        "NODE_FAIL",
        "NODE_FAIL",
        None,
    ]
    assert asked == ["scontrol", "sacct"]
