"""Two hundred checkpoints on 64 simulated GPUs, by the arrays that the launcher submits."""

import time

import pytest

from tests.cluster import BEGIN_HOURS, SCENES, Weather, play


@pytest.mark.parametrize("scene", SCENES)
def test_all_is_done_once_in_little_more_than_the_least_time(scene: str) -> None:
    rows, weather = SCENES[scene]
    begun = time.process_time()
    played, bound = play(rows, weather)
    assert set(count for name, count in played.done.items() if "/" in name) == {1}
    assert len([name for name in played.done if "/" in name]) == rows * 9  # converting and eight columns
    assert bound <= played.hours <= bound * (1.05 if rows > 100 else 1.3)
    assert played.arrays <= 13 * played.submissions
    assert time.process_time() - begun < 20


@pytest.mark.parametrize("seed", range(5))
def test_after_failures_and_preemptions_the_same_command_does_the_rest(seed: int) -> None:
    played, bound = play(40, Weather(failing=0.1, preemption_hours=6.0), seed=seed)
    assert set(count for name, count in played.done.items() if "/" in name) == {1}
    assert played.failed and played.not_run and played.preempted
    assert 2 <= played.submissions <= 5
    # no GPU-hour is unaccounted for: work, work that was repeated, and the beginnings of jobs
    work = 40 * 117  # docs/planning.md
    assert work * 0.99 < played.busy - played.lost < work * 1.01 + 8 * BEGIN_HOURS * played.starts
