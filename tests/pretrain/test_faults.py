"""What must not stop or change a run: kills, signals, damage, full disks, numbers that are not finite, broken images."""

import functools
import io
import itertools
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from pretrain import checkpoint, data, faults, train, views
from pretrain.config import DEMO
from pretrain.methods import mae, siameseim
from tests.pretrain.runs import STEPS, TINY, Run, content, same, saved_step, wait_for_step, write_images

EVERY_STEP = ("--save-minutes", "0")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("faults") / "images")


@pytest.fixture(scope="module")
def unbroken(images):
    """What a run without any fault ends with, by its processes and options."""

    @functools.cache
    def of(processes: int = 1, *options: str):
        out = images.parent / f"unbroken {processes} {' '.join(options)}"
        assert Run(images, out, *options, processes=processes).statuses() == [0] * processes
        return content(out)

    return of


# ---- kills


def _kills(images: Path, folder: Path, expected: dict, options: tuple[str, ...], processes: int, kills: int, seed: int) -> dict[str, int]:
    """Kills a process at random moments, and starts the run again, until it was killed so often; then lets it end, and compares."""
    draws, seen, number = random.Random(seed), {"kills": 0, "inside a save": 0, "runs": 0}, 0
    while seen["kills"] < kills or number == 0:
        out = folder / f"run {number}"
        while seen["kills"] < kills:
            before, part = saved_step(out), _changed(out / ".checkpoint.pth.part")
            run = Run(images, out, *options, *EVERY_STEP, processes=processes)
            run.processes[0].join(draws.uniform(0.1, 0.8) * (1 if processes == 1 else 3))
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
    assert seen["kills"] == 30  # how many fell inside a save is chance; the test after this one leaves nothing to it


def _killed_in_a_save(point: int, rank: int) -> None:
    """Kills the process at the ``point``-th thing that its second save asks of the disk; the 0th is half of the file."""
    saves, asked = itertools.count(1), itertools.count(1)
    save, to_file = checkpoint.save, torch.save

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
            return save(*arguments, **keywords)
        before = torch.save, os.fsync, os.replace
        torch.save, os.fsync, os.replace = half if point == 0 else to_file, dying(os.fsync), dying(os.replace)
        path = save(*arguments, **keywords)
        torch.save, os.fsync, os.replace = before
        return path

    checkpoint.save = second_save


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
    assert killed == 7  # half the file; sync and name config.json; sync, name the one before, name the new one, sync the folder
    assert same(content(tmp_path / "out"), unbroken(1, *options[:2]))


# ---- signals


@pytest.mark.parametrize(
    ("processes", "number", "heard_by", "status"),
    [(1, signal.SIGTERM, [0], 75), (1, signal.SIGINT, [0], 130), (2, signal.SIGUSR2, [1], 75), (2, signal.SIGINT, [0, 1], 130)],
)
def test_a_signal_saves_at_the_next_step_in_all_processes(images, unbroken, tmp_path, processes, number, heard_by, status):
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
    assert run.said().count("\n") == 1 and "stopped; the same command goes on" in run.said()


# ---- other processes


def _unreadable(at: int, rank: int) -> None:
    def read(self, index):
        raise data.DataError(f"{self.paths[index]} cannot be read as an image (a fault); replace or remove it")

    if rank == at:
        replace = data.ImageFolder.read_or_replace

        def read_or_replace(self, index):
            if len(self.cache or {}) >= 4:
                type(self).read = read
            return replace(self, index)

        data.ImageFolder.read_or_replace = read_or_replace


@pytest.mark.parametrize("rank", [0, 1])
def test_an_error_in_one_process_ends_all_with_one_sentence(images, tmp_path, rank):
    run = Run(images, tmp_path / "out", processes=2, sabotage=functools.partial(_unreadable, rank))
    assert run.statuses() == [2, 2]
    assert run.said(0).count("\n") == 1 and "cannot be read as an image (a fault)" in run.said(0)
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
    read = data.ImageFolder.read

    def read_or_die(self, index):
        if torch.utils.data.get_worker_info() is not None:
            os.kill(os.getpid(), signal.SIGKILL)
        return read(self, index)

    data.ImageFolder.read = read_or_die


def test_a_killed_data_process_is_one_sentence(images, tmp_path):
    run = Run(images, tmp_path / "out", "--workers", "1", sabotage=_killed_worker)
    assert run.statuses() == [1]
    assert run.said().count("\n") == 1 and "a data loading process was ended from outside" in run.said()


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), "lower --micro-batch"),
        (torch.distributed.DistNetworkError("port 1 is taken\nC++ trace"), "cannot reach each other: port 1 is taken"),
        (torch.distributed.DistBackendError("NCCL error"), "another process of this run has ended"),
        (RuntimeError("shapes do not fit"), None),
    ],
)
def test_what_comes_from_outside_is_one_sentence_and_a_mistake_of_ours_none(error, says):
    text = faults.sentence(error)
    assert text is None if says is None else says in text and "\n" not in text


# ---- damage and disks


def test_any_changed_byte_and_any_missing_end_is_seen(tmp_path):
    """Every byte of a small checkpoint, one bit of each, and many lengths."""
    model = nn.Linear(2, 2)
    path = checkpoint.save(tmp_path, model, mae, DEMO, step=1)
    whole = path.read_bytes()
    assert checkpoint.newest(tmp_path) == (path, checkpoint.seal_of(path))
    assert torch.load(path, weights_only=True)["step"] == 1
    draws = random.Random(0)
    assert len(whole) < 8000
    for position in range(len(whole)):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << draws.randrange(8)
        path.write_bytes(damaged)
        assert checkpoint.seal_of(path) is None, f"byte {position}"
    path.write_bytes(whole)
    for length in reversed(range(0, len(whole), 50)):
        os.truncate(path, length)
        assert checkpoint.seal_of(path) is None, f"{length} bytes"


def test_the_last_few_are_kept_and_a_damaged_one_is_passed_over(tmp_path, capsys):
    model = nn.Linear(2, 2)
    for step in range(5):
        checkpoint.save(tmp_path, model, mae, DEMO, keep=3, step=step)
    names = ["checkpoint.pth", "checkpoint.1.pth", "checkpoint.2.pth"]
    assert [path.name for path in checkpoint.checkpoints(tmp_path)] == names
    for expected, name in zip((4, 3, 2), names, strict=True):
        path, checksum = checkpoint.newest(tmp_path)
        assert path.name == name and checkpoint.load(path, checksum)["step"] == expected
        path.write_bytes(path.read_bytes()[:-1])
    assert capsys.readouterr().out.count("is damaged and is passed over") == 3
    with pytest.raises(ValueError, match="every checkpoint in .* is damaged"):
        checkpoint.newest(tmp_path)
    checkpoint.save(tmp_path, model, mae, DEMO, keep=1, step=5)
    assert [path.name for path in checkpoint.checkpoints(tmp_path)] == names[:1]


def test_another_file_in_another_process_is_refused(tmp_path):
    path = checkpoint.save(tmp_path, nn.Linear(2, 2), mae, DEMO, step=1)
    with pytest.raises(ValueError, match="not the same file for every process"):
        checkpoint.load(path, checkpoint.seal_of(path) ^ 1)


@pytest.fixture
def small_disk(tmp_path):
    """Eight megabytes that can be filled."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(disk)], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"a small disk cannot be mounted here: {mounted.stderr.strip()}")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk_is_one_sentence_and_costs_nothing_once_there_is_room(images, unbroken, small_disk):
    ballast = small_disk / "ballast"
    size = sum(value.nbytes for value in unbroken()["model"].values()) * 2  # with the optimiser's
    ballast.write_bytes(bytes(8 * 2**20 - size * 9 // 5))
    run = Run(images, small_disk / "out")
    assert run.statuses() == [2]
    assert run.said().count("\n") == 1 and "checkpoint.pth could not be written (No space left on device)" in run.said()
    assert content(small_disk / "out")["step"] == 3
    ballast.unlink()
    assert Run(images, small_disk / "out").statuses() == [0]
    assert same(content(small_disk / "out"), unbroken())


def test_a_folder_that_cannot_be_written_is_one_sentence(images, unbroken, small_disk):
    assert Run(images, small_disk / "out", "--set", "epochs=1").statuses() == [0]
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    run = Run(images, small_disk / "out", "--set", "epochs=1", "--init-only")
    assert run.statuses() == [2]
    assert run.said().count("\n") == 1 and "Read-only file system" in run.said()
    run = Run(images, small_disk / "out 2")
    assert run.statuses() == [2]
    assert run.said().count("\n") == 1 and "Read-only file system" in run.said()


def _short_files(rank: int) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, resource.RLIM_INFINITY))


@pytest.mark.parametrize("processes", [1, 2])
def test_a_save_that_fails_ends_all_processes_and_leaves_what_was_saved(images, unbroken, tmp_path, processes):
    """Needs no mount: the system refuses files above 1 MB."""
    out = tmp_path / "out"
    assert Run(images, out, "--init-only").statuses() == [0]
    run = Run(images, out, processes=processes, sabotage=_short_files)
    assert run.statuses() == [2] * processes, run.said()
    assert run.said().count("\n") == 1 and "checkpoint.pth could not be written (File too large)" in run.said()
    assert content(out)["step"] == 0 and not (out / ".checkpoint.pth.part").exists()


# ---- numbers that are not finite


def _not_finite(where: str, at: int, from_step: int, to_step: int, rank: int) -> None:
    """Makes the gradient or the pixels of one process not a number, in some steps."""
    if rank != at:
        return
    accumulate, finish, build, step = train.accumulate, views.finish, siameseim.build, itertools.count(-1)
    broken = [False]

    def counted(*arguments):
        broken[0] = from_step <= next(step) + 1 < to_step
        return accumulate(*arguments)

    def built(config):
        model = build(config)
        model.decoder_pred.weight.register_hook(lambda gradient: gradient * float("nan") if broken[0] else gradient)
        return model

    def finished(crops, epoch, config):
        batch = finish(crops, epoch, config)
        if broken[0]:
            batch.view1[0, 0, 0, 0] = float("inf")
        return batch

    train.accumulate = counted
    if where == "gradient":
        siameseim.build = built
    else:
        views.finish = finished


def _images_of(step: int, processes: int, rank: int) -> list[str]:
    config = train.configure("demo", ["batch_size=8"])
    share = data.order(24, step // 3, config)[step % 3].reshape(processes, -1)[rank]
    return [f"{index:03d}.png" for index in share]


@pytest.mark.parametrize(
    ("processes", "rank", "where"), [(1, 0, "pixels"), (1, 0, "gradient"), (2, 1, "gradient"), (2, 1, "pixels"), (2, 0, "pixels")]
)
def test_a_step_that_is_not_finite_is_skipped_by_all_and_leaves_no_trace(images, tmp_path, processes, rank, where):
    sabotage = functools.partial(_not_finite, where, rank, 4, 5)
    run = Run(images, tmp_path / "out", *EVERY_STEP, "--keep", "9", "--workers", "0", processes=processes, sabotage=sabotage)
    assert run.statuses() == [0] * processes, run.said()
    taken, skipped, after = (torch.load(tmp_path / f"out/checkpoint.{STEPS - step}.pth", weights_only=True) for step in (4, 5, 6))
    assert (taken["step"], skipped["step"]) == (4, 5)
    assert skipped["faults"] == {"damaged": [], "skipped": 1, "in_a_row": 1}
    for part in ("model", "optimizer", "scaler"):  # the learning rate is of the step
        taken[part].pop("param_groups", None)
        assert same(taken[part], {name: value for name, value in skipped[part].items() if name != "param_groups"}), part
    assert not same(skipped["model"], after["model"]) and after["faults"]["in_a_row"] == 0
    assert all(bool(torch.isfinite(value).all()) for value in content(tmp_path / "out")["model"].values())
    (line,) = (tmp_path / "out/faults.jsonl").read_text().splitlines()
    entry = json.loads(line)
    assert (entry["step"], entry["fault"]) == (4, "not finite")
    assert [Path(path).name for path in entry["images"]] == _images_of(4, processes, rank)
    assert f"step 4 is skipped: the loss or its gradient is not finite in process {rank} with" in run.said()


@pytest.mark.parametrize("processes", [1, 2])
def test_too_many_such_steps_in_a_row_stop_the_run(images, tmp_path, processes):
    sabotage = functools.partial(_not_finite, "gradient", processes - 1, 2, 99)
    run = Run(images, tmp_path / "out", "--set", "epochs=5", processes=processes, sabotage=sabotage)
    assert run.statuses() == [2] * processes
    assert run.said().count(f"{faults.MOST_SKIPPED} steps in a row were not finite, up to step 11") == 1
    assert _images_of(11, processes, processes - 1)[0] in run.said().splitlines()[-1]
    assert run.said(processes - 1).count("pretrain.train:") == (1 if processes == 1 else 0)
    model = content(tmp_path / "out")["model"]
    assert all(bool(torch.isfinite(value).all()) for value in model.values())


def test_too_high_a_loss_scale_of_float16_is_no_fault_until_it_persists(images, tmp_path):
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    watch = faults.Faults(data.ImageFolder(images), tmp_path, say=lambda text: None)
    counted = []
    for step in range(4):
        scaler.scale(model(torch.ones(1, 2)).sum()).backward()
        model.weight.grad.mul_(float("inf"))
        scaler.unscale_(optimizer)
        norm = nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        assert not watch.accepts(step, torch.tensor(1.0), norm, scaler, lambda finite: faults.Suspect(0, [0], False))
        scaler.update()
        optimizer.zero_grad()
        counted.append(watch.skipped)
    assert counted == [0, 0, 1, 2]  # at scales of 4, 2, 1 and 0.5
    assert not watch.accepts(4, torch.tensor(float("nan")), norm, torch.amp.GradScaler("cpu"), lambda finite: faults.Suspect(0, [0], True))
    assert watch.skipped == 3  # a loss that is not finite is one at any scale


# ---- broken images

BROKEN = {17: "truncated", 120: "no image"}  # 1 % of 200
BROKEN_OPTIONS = ("--set", "epochs=2", "--set", "batch_size=50")


@pytest.fixture(scope="module")
def broken(tmp_path_factory):
    """200 JPEGs of which two cannot be read, and what a run ends with if the images taken in their place lie there."""
    whole = write_images(tmp_path_factory.mktemp("broken") / "whole", count=200, suffix="jpg")
    folder = shutil.copytree(whole, whole.parent / "damaged")
    for index, how in BROKEN.items():
        path = folder / f"n1/{index:03d}.jpg"
        path.write_bytes(path.read_bytes()[:700] if how == "truncated" else b"no image")
        shutil.copy(whole / f"n1/{(index + data.STRIDE) % 200:03d}.jpg", whole / f"n1/{index:03d}.jpg")
    assert Run(whole, whole.parent / "out", *BROKEN_OPTIONS).statuses() == [0]
    return folder, content(whole.parent / "out")


def test_broken_images_are_named_once_and_replaced_alike_everywhere(broken, tmp_path):
    folder, expected = broken
    assert expected["faults"]["damaged"] == []
    for processes, workers in ((1, "2"), (2, "0")):
        out = tmp_path / f"{processes} {workers}"
        run = Run(folder, out, *BROKEN_OPTIONS, "--workers", workers, processes=processes)
        assert run.statuses() == [0] * processes, run.said()
        found = content(out)
        assert found["faults"]["damaged"] == sorted(BROKEN)
        assert all(run.said().count(f"{index:03d}.jpg cannot be read as an image") == 1 for index in BROKEN)
        assert sorted(Path(json.loads(line)["images"][0]).stem for line in (out / "faults.jsonl").read_text().splitlines()) == [
            "017",
            "120",
        ]
        if processes == 1:
            assert same(found["model"], expected["model"]) and same(found["optimizer"], expected["optimizer"])


def test_broken_images_after_a_break(broken, tmp_path):
    folder, expected = broken
    run = Run(folder, tmp_path / "out", *BROKEN_OPTIONS, *EVERY_STEP)
    wait_for_step(run.out, 2)
    run.kill()
    assert run.statuses() == [-signal.SIGKILL]
    assert Run(folder, tmp_path / "out", *BROKEN_OPTIONS).statuses() == [0]
    found = content(tmp_path / "out")
    assert same(found["model"], expected["model"]) and found["faults"]["damaged"] == sorted(BROKEN)


@pytest.mark.parametrize("processes", [1, 2])
def test_more_broken_images_than_one_percent_stop_the_run(broken, tmp_path, processes):
    folder = shutil.copytree(broken[0], tmp_path / "images")
    (folder / "n1/003.jpg").write_bytes(b"")
    run = Run(folder, tmp_path / "out", *BROKEN_OPTIONS, processes=processes)
    assert run.statuses() == [2] * processes
    assert run.said().splitlines()[-1].startswith("pretrain.train: 3 of 200 images cannot be read so far, more than 1%")
    assert run.said(processes - 1).count("pretrain.train:") == (1 if processes == 1 else 0)
