"""Kills, signals and the end of a neighbour neither stop nor change a run."""

import functools
import io
import itertools
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from evaluate.runtime.errors import from_outside
from pretrain import checkpoint, train
from pretrain.data import images
from tests.pretrain.runs import EVERY_STEP, TINY, Run, content, same, saved_step, wait_for_step

# ---- kills


def _kills(
    images: Path, folder: Path, expected: dict, options: tuple[str, ...], processes: int, kills: int, seed: int
) -> dict[str, int]:
    """Kills a process at random moments, and starts the run again, until it was killed so often; then lets it end, and
    compares."""
    draws, seen, number = random.Random(seed), {"kills": 0, "inside a save": 0, "runs": 0}, 0
    while seen["kills"] < kills or number == 0:
        out = folder / f"run {number}"
        while seen["kills"] < kills:
            before, part = saved_step(out), _changed(out / ".checkpoint.pth.part")
            run = Run(images, out, *options, *EVERY_STEP, processes=processes)
            trains = draws.random() < 0.8  # the other kills fall into its start
            while trains and run.processes[0].is_alive() and saved_step(out) <= before:
                time.sleep(0.005)
            run.processes[0].join(draws.uniform(0, 0.3))
            victim = draws.randrange(processes)
            run.kill(victim)
            status = run.end()[victim]
            if status == 0:  # it had ended
                break
            assert status == -signal.SIGKILL, run.said()
            assert saved_step(out) == -1 or content(out)["step"] >= before
            seen["kills"] += 1
            seen["inside a save"] += _changed(out / ".checkpoint.pth.part") not in (0, part)
        assert Run(images, out, *options, processes=processes).statuses() == [0] * processes
        assert same(content(out), expected)
        number += 1
    return seen | {"runs": number}


def _changed(path: Path) -> int:
    return path.stat().st_mtime_ns if path.exists() else 0


def test_three_kills_at_random_moments_change_nothing(images, unbroken, tmp_path):
    options = ("--set", "epochs=8")
    seen = _kills(images, tmp_path, unbroken(1, *options), options, processes=1, kills=3, seed=0)
    assert seen["kills"] == 3


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_thirty_kills_at_random_moments_change_nothing(images, unbroken, tmp_path, processes):
    options = ("--set", "epochs=20", "--workers", "1")
    seen = _kills(images, tmp_path, unbroken(processes, *options), options, processes, kills=30, seed=1)
    print(seen)
    assert seen["kills"] == 30 and seen["inside a save"] > 0


def _killed_in_a_save(point: int, rank: int) -> None:
    """Kills the process at the ``point``-th thing that its second save asks of the disk; the 0th is half of the
    file."""
    saves, asked = itertools.count(1), itertools.count(1)
    put, to_file = checkpoint.put, torch.save

    def dying(function):
        def called(*arguments, **keywords):
            if next(asked) == point:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments, **keywords)

        return called

    def half(content, file):
        whole = io.BytesIO()
        to_file(content, whole)
        file.write(whole.getvalue()[: whole.tell() // 2])
        file.flush()
        os.kill(os.getpid(), signal.SIGKILL)

    def second_save(*arguments, **keywords):
        if next(saves) != 2:
            return put(*arguments, **keywords)
        before = torch.save, os.fsync, os.replace
        torch.save, os.fsync, os.replace = half if point == 0 else to_file, dying(os.fsync), dying(os.replace)
        path = put(*arguments, **keywords)
        torch.save, os.fsync, os.replace = before
        return path

    checkpoint.put = second_save


def test_a_kill_at_every_point_of_a_save_changes_nothing(images, unbroken, tmp_path):
    options = ("--set", "epochs=6", "--keep", "2")
    killed = step = 0
    for point in itertools.count():
        run = Run(images, tmp_path / "out", *options, *EVERY_STEP, sabotage=functools.partial(_killed_in_a_save, point))
        if run.statuses() == [0]:
            break
        assert run.statuses() == [-signal.SIGKILL]
        killed, before, step = killed + 1, step, content(tmp_path / "out")["step"]
        assert step - before in (1, 2), f"point {point}: the save before is lost"
    assert (
        killed == 7
    )  # half the file; sync and name config.json; sync, name the one before, name the new one, sync the folder
    assert same(content(tmp_path / "out"), unbroken(1, *options[:2]))


# ---- signals


@pytest.mark.parametrize(
    ("processes", "number", "heard_by", "status"),
    [
        (1, signal.SIGTERM, [0], 75),
        (1, signal.SIGINT, [0], 130),
        (2, signal.SIGUSR2, [1], 75),
        (2, signal.SIGINT, [0, 1], 130),
    ],
)
def test_a_signal_saves_at_the_next_step_in_all_processes(
    images, unbroken, tmp_path, processes, number, heard_by, status
):
    options = ("--set", "epochs=5")
    run = Run(images, tmp_path / "out", *options, *EVERY_STEP, "--workers", "1", processes=processes)
    wait_for_step(run.out, 2)
    for rank in heard_by:
        run.kill(rank, number)
    assert run.statuses() == [status] * processes
    step = saved_step(tmp_path / "out")
    assert 2 <= step < 15 and f"saved at step {step} on {number.name}; start again to go on" in run.said()
    assert not any(word in run.said(rank) for rank in range(processes) for word in ("Traceback", "Error"))
    assert Run(images, tmp_path / "out", *options, processes=processes).statuses() == [0] * processes
    assert same(content(tmp_path / "out"), unbroken(processes, *options))


@pytest.mark.slow
def test_a_signal_to_torchrun(images, unbroken, tmp_path):
    options = ("--set", "epochs=5")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += ["--signals-to-handle", "SIGTERM,SIGUSR2", "-m", "pretrain.train"]
    command += ["--data", str(images), "--out", str(tmp_path), *TINY, *options, *EVERY_STEP]
    run = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    wait_for_step(tmp_path, 2, run.poll)
    run.send_signal(signal.SIGUSR2)
    said = run.communicate(timeout=60)[0]
    step = saved_step(tmp_path)
    assert 2 <= step < 15 and run.returncode and f"saved at step {step} on SIGUSR2" in said
    assert Run(images, tmp_path, *options, processes=2).statuses() == [0, 0]
    assert same(content(tmp_path), unbroken(2, *options))


def _slow(rank: int) -> None:
    accumulate = train.accumulate

    def slowly(*arguments):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        return accumulate(*arguments)

    train.accumulate = slowly


def test_a_second_ctrl_c_stops_at_once(images, tmp_path):
    run = Run(images, tmp_path / "out", sabotage=_slow)
    assert run.statuses() == [130]
    assert run.said().count("\n") == 2 and "stopped; the same command goes on" in run.said()


# ---- other processes


def _unreadable(at: int, rank: int) -> None:
    def read(self, index):
        raise images.DataError(f"{self.paths[index]} cannot be read as an image (a fault); replace or remove it")

    if rank == at:
        replace = images.ImageFolder.read_or_replace

        def read_or_replace(self, index):
            if len(self.cache or {}) >= 4:
                type(self).read = read
            return replace(self, index)

        images.ImageFolder.read_or_replace = read_or_replace


@pytest.mark.parametrize("rank", [0, 1])
def test_an_error_in_one_process_ends_all_with_one_sentence(images, tmp_path, rank):
    run = Run(images, tmp_path / "out", processes=2, sabotage=functools.partial(_unreadable, rank))
    assert run.statuses() == [2, 2]
    assert run.said(0).count("\n") == 2 and "cannot be read as an image (a fault)" in run.said(0)
    assert run.said(1) == ""


def test_the_others_end_when_one_is_killed(images, unbroken, tmp_path):
    options = ("--set", "epochs=5")
    run = Run(images, tmp_path / "out", *options, *EVERY_STEP, processes=2)
    wait_for_step(run.out, 2)
    run.kill(1)
    assert run.statuses() == [1, -signal.SIGKILL]
    assert run.said().count("another process of this run has ended") == 1 and "Traceback" not in run.said()
    assert Run(images, tmp_path / "out", *options, processes=2).statuses() == [0, 0]
    assert same(content(tmp_path / "out"), unbroken(2, *options))


def _killed_worker(rank: int) -> None:
    read = images.ImageFolder.read

    def read_or_die(self, index):
        if torch.utils.data.get_worker_info() is not None:
            os.kill(os.getpid(), signal.SIGKILL)
        return read(self, index)

    images.ImageFolder.read = read_or_die


def test_a_killed_data_process_is_one_sentence(images, tmp_path):
    run = Run(images, tmp_path / "out", "--workers", "1", sabotage=_killed_worker)
    assert run.statuses() == [1]
    assert run.said().count("\n") == 2 and "a data loading process was ended from outside" in run.said()


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (torch.distributed.DistNetworkError("port 1 is taken\nC++ trace"), "cannot reach each other: port 1 is taken"),
        (torch.distributed.DistBackendError("NCCL error"), "another process of this run has ended"),
        (RuntimeError("shapes do not fit"), ""),
    ],
)
def test_what_comes_from_outside_is_one_sentence_and_a_mistake_of_ours_none(error, says):
    text = from_outside(error)
    assert says in text and "\n" not in text and bool(text) == bool(says)
