"""Damage, full disks, numbers that are not finite and broken images neither stop nor change a run."""

import functools
import itertools
import json
import os
import random
import resource
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
import torch
from torch import nn

from pretrain import checkpoint, faults, train
from pretrain.data import loader, views
from pretrain.data.images import STRIDE, ImageFolder
from pretrain.methods import mae, siameseim
from pretrain.methods.siameseim import DEMO
from tests.pretrain.runs import EVERY_STEP, STEPS, Run, content, same, wait_for_step, write_images

# ---- damage and disks


def test_any_changed_byte_and_any_missing_end_is_seen(tmp_path):
    """Every byte of a small checkpoint, one bit of each, and many lengths."""
    model = nn.Linear(2, 2)
    path = checkpoint.save(tmp_path, model, mae, DEMO, step=1)
    whole = path.read_bytes()
    assert checkpoint.newest(tmp_path) == (path, checkpoint.checksum_of(path))
    assert torch.load(path, weights_only=True)["step"] == 1
    draws = random.Random(0)
    assert len(whole) < 8000
    for position in range(len(whole)):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << draws.randrange(8)
        path.write_bytes(damaged)
        assert checkpoint.checksum_of(path) is None, f"byte {position}"
    path.write_bytes(whole)
    for length in reversed(range(0, len(whole), 50)):
        os.truncate(path, length)
        assert checkpoint.checksum_of(path) is None, f"{length} bytes"


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
        checkpoint.load(path, checkpoint.checksum_of(path) ^ 1)


@pytest.fixture
def small_disk(tmp_path):
    """Eight megabytes that can be filled."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(disk)], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"a small disk cannot be mounted here: {mounted.stderr.strip()}")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk_is_one_sentence_and_costs_nothing_once_there_is_room(images, unbroken, small_disk):
    ballast = small_disk / "ballast"
    size = sum(value.nbytes for value in unbroken()["model"].values()) * 2  # with the optimizer's
    ballast.write_bytes(bytes(8 * 2**20 - size * 9 // 5))
    run = Run(images, small_disk / "out", *EVERY_STEP)
    assert run.statuses() == [2]
    assert run.said().count("\n") == 2 and "checkpoint.pth could not be written (No space left on device)" in run.said()
    assert content(small_disk / "out")["step"] == 1
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
    assert run.said().count("\n") == 3 and "checkpoint.pth could not be written (File too large)" in run.said()
    assert content(out)["step"] == 0 and not (out / ".checkpoint.pth.part").exists()


# ---- numbers that are not finite


def _not_finite(where: str, at: int, from_step: int, to_step: int, rank: int) -> None:
    """Makes the gradient or the pixels of one process not a number, in some steps."""
    if rank != at:
        return
    accumulate, finish, build, step = train.accumulate, views.augment, siameseim.build, itertools.count(-1)
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
        views.augment = finished


def _images_of(step: int, processes: int, rank: int) -> list[str]:
    config = train.configure("demo", ["batch_size=8"])
    share = loader.order(24, step // 3, config)[step % 3].reshape(processes, -1)[rank]
    return [f"{index:03d}.png" for index in share]


@pytest.mark.parametrize(
    ("processes", "rank", "where"),
    [(1, 0, "pixels"), (1, 0, "gradient"), (2, 1, "gradient"), (2, 1, "pixels"), (2, 0, "pixels")],
)
def test_a_step_that_is_not_finite_is_skipped_by_all_and_leaves_no_trace(images, tmp_path, processes, rank, where):
    sabotage = functools.partial(_not_finite, where, rank, 4, 5)
    run = Run(
        images, tmp_path / "out", *EVERY_STEP, "--keep", "9", "--workers", "0", processes=processes, sabotage=sabotage
    )
    assert run.statuses() == [0] * processes, run.said()
    taken, skipped, after = (
        torch.load(tmp_path / f"out/checkpoint.{STEPS - step}.pth", weights_only=True) for step in (4, 5, 6)
    )
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
    run = Run(images, tmp_path / "out", "--set", "epochs=5", *EVERY_STEP, processes=processes, sabotage=sabotage)
    assert run.statuses() == [2] * processes
    assert run.said().count(f"{faults.MAX_SKIPPED_STEPS} steps in a row were not finite, up to step 11") == 1
    assert _images_of(11, processes, processes - 1)[0] in run.said().splitlines()[-1]
    assert run.said(processes - 1).count("pretrain.train:") == (1 if processes == 1 else 0)
    model = content(tmp_path / "out")["model"]
    assert all(bool(torch.isfinite(value).all()) for value in model.values())


def test_too_high_a_loss_scale_of_float16_is_no_fault_until_it_persists(images, tmp_path):
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    watch = faults.Faults(ImageFolder(images), tmp_path, say=lambda text: None)
    counted = []
    for step in range(4):
        scaler.scale(model(torch.ones(1, 2)).sum()).backward()
        model.weight.grad.mul_(float("inf"))
        scaler.unscale_(optimizer)
        norm = nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        assert not watch.step_is_finite(
            step, torch.tensor(1.0), norm, scaler, lambda finite: faults.Culprits(0, [0], False)
        )
        scaler.update()
        optimizer.zero_grad()
        counted.append(watch.skipped)
    assert counted == [0, 0, 1, 2]  # at scales of 4, 2, 1 and 0.5
    assert not watch.step_is_finite(
        4, torch.tensor(float("nan")), norm, torch.amp.GradScaler("cpu"), lambda finite: faults.Culprits(0, [0], True)
    )
    assert watch.skipped == 3  # a loss that is not finite is one at any scale


# ---- broken images

BROKEN = {17: "truncated", 120: "no image"}  # 1 % of 200
DAMAGED = [f"n1/{index:03d}.jpg" for index in BROKEN]
BROKEN_OPTIONS = ("--set", "epochs=2", "--set", "batch_size=50")


@pytest.fixture(scope="module")
def broken(tmp_path_factory):
    """200 JPEGs of which two cannot be read, and what a run ends with if the images taken in their place lie there."""
    whole = write_images(tmp_path_factory.mktemp("broken") / "whole", count=200, suffix="jpg")
    folder = shutil.copytree(whole, whole.parent / "damaged")
    for index, how in BROKEN.items():
        path = folder / f"n1/{index:03d}.jpg"
        path.write_bytes(path.read_bytes()[:700] if how == "truncated" else b"no image")
        shutil.copy(whole / f"n1/{(index + STRIDE) % 200:03d}.jpg", whole / f"n1/{index:03d}.jpg")
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
        assert found["faults"]["damaged"] == DAMAGED
        assert all(run.said().count(f"{index:03d}.jpg cannot be read as an image") == 1 for index in BROKEN)
        assert sorted(
            Path(json.loads(line)["images"][0]).stem for line in (out / "faults.jsonl").read_text().splitlines()
        ) == [
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
    assert same(found["model"], expected["model"]) and found["faults"]["damaged"] == DAMAGED


@pytest.mark.parametrize("processes", [1, 2])
def test_more_broken_images_than_one_percent_stop_the_run(broken, tmp_path, processes):
    folder = shutil.copytree(broken[0], tmp_path / "images")
    (folder / "n1/003.jpg").write_bytes(b"")
    run = Run(folder, tmp_path / "out", *BROKEN_OPTIONS, processes=processes)
    assert run.statuses() == [2] * processes
    assert run.said().splitlines()[-1].startswith("pretrain.train: 3 of 200 images cannot be read so far, more than 1%")
    assert run.said(processes - 1).count("pretrain.train:") == (1 if processes == 1 else 0)
