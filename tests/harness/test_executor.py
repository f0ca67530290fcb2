"""Jobs side by side: order, needs, what stands already, and more slots than GPUs."""

import sys

import pytest

from evaluate.harness import executor


def job(tmp_path, name, code, **options):
    return executor.Job(name, lambda: [sys.executable, "-c", code], tmp_path / f"{name}.log", **options)


def test_a_job_waits_for_its_need_and_takes_over_its_failure(tmp_path):
    told = []
    first = job(tmp_path, "first", "print('broke'); raise SystemExit(3)")
    second = job(tmp_path, "second", "open('never', 'w')", needs=("first",), on_exit=told.append)
    third = job(tmp_path, "third", "print('fine')")
    executor.run([second, first, third], slots=2)
    assert (first.status, second.status, third.status) == (3, 3, 0)
    assert told == [3] and "first did not succeed: broke" in second.log.read_text()


def test_what_stands_is_not_run_again(tmp_path):
    stands = job(tmp_path, "stands", "raise SystemExit(1)", is_done=lambda: True)
    executor.run([stands], slots=1)
    assert stands.status == 0 and not stands.log.exists()


def test_each_job_sees_one_gpu_also_with_more_slots_than_gpus(tmp_path):
    jobs = [job(tmp_path, str(i), "import os; print(os.environ['CUDA_VISIBLE_DEVICES'])") for i in range(3)]
    executor.run(jobs, slots=3, gpus=[4, 6])
    assert [executor.last_line(one.log) for one in jobs] == ["4", "6", "4"]


@pytest.mark.parametrize(
    ("text", "says"),
    [("", "no output yet"), ("half done\n\n", "half done"), ('{\n  "top1": 28.9\n}\nrecord: a.json\n', '"top1": 28.9'), ("x" * 400, "x" * 300)],
)
def test_the_line_that_is_shown_says_something(text, says, tmp_path):
    (tmp_path / "log").write_text(text)
    assert executor.last_line(tmp_path / "log") == says
