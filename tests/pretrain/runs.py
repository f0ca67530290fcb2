"""Real runs of the pretrainer for tests: each process is one of its own, that may be killed, and starts in a fraction
of a second."""

import multiprocessing
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from pretrain import checkpoint, cpu, train

SETTINGS = ["batch_size=8", "epochs=3", "warmup_epochs=1", "depth=1", "projector_depth=1", "predictor_depth=1"]
TINY = [
    "--preset",
    "demo",
    "--device",
    "cpu",
    "--monitor-epochs",
    "0",
    *(part for setting in SETTINGS for part in ("--set", setting)),
]
EVERY_STEP = ("--save-minutes", "0")
STEPS = 9  # of 24 images in 3 epochs

# A server that has imported everything, and computed nothing, forks the processes.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["pretrain.train", "pretrain.methods.siameseim", "torch.utils.tensorboard", __name__])


def write_images(folder: Path, count: int = 24, suffix: str = "png") -> Path:
    """A class folder of small noise images."""
    (folder / "n1").mkdir(parents=True)
    for i in range(count):
        pixels = np.random.default_rng(i).integers(0, 255, (36, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "n1" / f"{i:03d}.{suffix}")
    return folder


def write_captions(images: Path) -> Path:
    """A table of the images of a folder, each with a caption of its own."""
    paths = sorted(images.rglob("*.png"))
    lines = [f"{path.relative_to(images)}\ta picture of {number} things" for number, path in enumerate(paths)]
    (images / "captions.tsv").write_text("\n".join(lines) + "\n")
    return images / "captions.tsv"


class Run:
    """A run of one or several processes. ``sabotage`` is called with the rank in each before it begins."""

    def __init__(
        self, images: Path, out: Path, *options: str, processes: int = 1, sabotage: Callable[[int], None] | None = None
    ):
        self.out, self.text = out, [images.parent / f"{time.monotonic_ns()}.{rank}.txt" for rank in range(processes)]
        argv = ["--data", str(images), "--out", str(out), *TINY, *options]
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        world = (
            {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(processes)}
            if processes > 1
            else {}
        )
        self.processes = [
            FORKS.Process(target=_process, args=(rank, world, argv, text, sabotage))
            for rank, text in enumerate(self.text)
        ]
        for process in self.processes:
            process.start()

    def statuses(self, seconds: float = 60) -> list[int | None]:
        """Exit statuses (negative: the signal that ended it); fails if a process is still running after ``seconds``."""
        end = time.monotonic() + seconds
        for process in self.processes:
            process.join(max(0, end - time.monotonic()))
        late = [process for process in self.processes if process.is_alive()]
        for process in late:
            process.kill()
        assert not late, f"{len(late)} of {len(self.processes)} processes did not end in {seconds} s: {self.said()}"
        return [process.exitcode for process in self.processes]

    def said(self, rank: int = 0) -> str:
        """What a process has printed."""
        return self.text[rank].read_text()

    def kill(self, rank: int = 0, number: int = signal.SIGKILL) -> None:
        """Sends a signal, if the process has not ended."""
        if self.processes[rank].is_alive():
            os.kill(self.processes[rank].pid, number)

    def end(self, seconds: float = 5) -> list[int | None]:
        """As a launcher does once a process has failed: the others may end by themselves, and are killed then."""
        for process in self.processes:
            process.join(seconds)
            process.kill()
        return self.statuses()


def _process(
    rank: int, world: dict[str, str], argv: list[str], text: Path, sabotage: Callable[[int], None] | None
) -> None:
    with text.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.stdout.reconfigure(line_buffering=True)
    cpu.faster_precision = lambda precision: None  # what it says depends on the processor
    torch.set_num_threads(1)
    multiprocessing.set_start_method("fork", force=True)  # as in a process that the command line starts
    os.environ.update(world, **({"RANK": str(rank), "LOCAL_RANK": str(rank)} if world else {}))
    if sabotage:
        sabotage(rank)
    sys.exit(train.main(argv))


def content(out: Path) -> dict:
    """The newest whole checkpoint."""
    found = checkpoint.newest(out)
    assert found, f"no checkpoint in {out}"
    return checkpoint.load(*found)


def saved_step(out: Path) -> int:
    """The step of checkpoint.pth, -1 if there is none yet."""
    try:
        return torch.load(out / checkpoint.NAME, weights_only=True)["step"]
    except (FileNotFoundError, EOFError):
        return -1


def wait_for_step(out: Path, step: int, ended: Callable[[], object] = lambda: None, seconds: float = 60) -> None:
    """Until the checkpoint of a step, or a later one, stands; fails if ``ended`` gives anything before."""
    end = time.monotonic() + seconds
    while saved_step(out) < step:
        assert ended() is None and time.monotonic() < end, f"step {step} was not reached"
        time.sleep(0.01)


def same(first: object, second: object) -> bool:
    """Whether two checkpoints hold the same bits: weights, running statistics, optimizer and counts."""
    if isinstance(first, torch.Tensor):
        return isinstance(second, torch.Tensor) and torch.equal(first, second)
    if isinstance(first, dict):
        return (
            isinstance(second, dict)
            and first.keys() == second.keys()
            and all(same(first[key], second[key]) for key in first)
        )
    if isinstance(first, list):
        return isinstance(second, list) and len(first) == len(second) and all(map(same, first, second))
    return first == second
