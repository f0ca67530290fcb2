"""The demo: which encoders it pretrains, on which images, and with which settings it measures them.

On the toy world, which it makes itself, everything takes minutes. On the images of a data root it pretrains for as long
as it is told to, on small copies of them.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from evaluate.data import layouts
from evaluate.data.identity import DataIdentities, fingerprint
from evaluate.harness.executor import Job
from evaluate.harness.plan import Node

ROWS = ("siameseim", "mae", "random")
TOY = {"siameseim": "demo", "mae": "mae_demo", "random": "demo"}  # presets of pretrain.train
PHOTOGRAPHS = {"siameseim": "small", "mae": "mae_small", "random": "small"}
MINUTES = 60.0  # of each pretraining
SIDE = 96  # pixels of the copies: twice a view

# How a task's demo preset, made for 32 pixels and a minute, differs on photographs.
SIZES = {"img_size": "48", "resize": "56"}
SETTINGS: dict[str, dict[str, str]] = {
    "finetune": {**SIZES, "epochs": "10"},
    "linear_probe": {**SIZES, "epochs": "30", "warmup_epochs": "3"},
    "linear_fast": SIZES,
    "sweep": SIZES,
    "few_shot": SIZES,
    "knn": SIZES,
    "detection": {"image_size": "192", "iterations": "600"},
    "segmentation": {"crop": "128", "iterations": "600"},
}


def with_settings(nodes: Sequence[Node], given: Mapping[str, Mapping[str, str]]) -> dict[str, dict[str, str]]:
    """What the user sets by ``--set``, and below it what the demo sets on photographs."""
    tasks = {node.task for node in nodes} | {node.name for node in nodes}
    own = {task: values for task, values in SETTINGS.items() if task in tasks}
    return {task: {**own.get(task, {}), **given.get(task, {})} for task in {**own, **given}}


@dataclass(frozen=True)
class Demo:
    """What is pretrained from the images of one data root."""

    out: Path
    identities: DataIdentities
    seed: int
    device: str
    minutes: float | None
    """Of each pretraining; None on the toy world, whose presets say how many epochs."""

    def options(self, row: str) -> list[str]:
        """Of ``pretrain.train``, for a row."""
        options = ["--preset", (PHOTOGRAPHS if self.minutes else TOY)[row], "--set", f"seed={self.seed}"]
        if row == "random":
            return [*options, "--init-only"]
        return options + (["--minutes", f"{self.minutes:g}"] if self.minutes else [])

    def checkpoints(self) -> dict[str, Path]:
        """Where the checkpoint of each row lies: in a folder named by all that it is made of."""
        images = self.identities[layouts.pretraining_part(self.identities.data_root)]
        made_of = {row: {"options": " ".join(self.options(row)), "images": images} for row in ROWS}
        folder = self.out / "pretrain"
        return {row: folder / f"{row}-{fingerprint(parts)}" / "checkpoint.pth" for row, parts in made_of.items()}

    def pretraining(self) -> list[Job]:
        """Jobs that make the checkpoints: pretrained encoders, and their random start."""
        part = layouts.pretraining_part(self.identities.data_root)
        images, jobs = self.identities.data_root / part, []
        after: tuple[str, ...] = ()
        if self.minutes:
            copies = self.out / "data" / f"copies-{SIDE}-{self.identities[part]}"
            command = [sys.executable, "-m", "evaluate.data.copies", str(images), str(copies), "--side", str(SIDE)]
            jobs.append(_job("copies", command, copies, self.out))
            images, after = copies, ("copies",)
        for row, path in self.checkpoints().items():
            command = [sys.executable, "-m", "pretrain.train", "--data", str(images), "--out", str(path.parent)]
            command += ["--device", self.device if self.minutes else "cpu", *self.options(row)]
            jobs.append(_job(f"{row}/pretrain", command, path.parent, self.out, after))
        return jobs

    def plan(self) -> str:
        """What is going to be done, in a sentence."""
        if not self.minutes:
            return "demo: the toy world, three encoders and every column, in minutes"
        return (
            f"demo on {self.identities.data_root}: small copies of the images ({SIDE} px), then about {self.minutes:g} "
            f"minutes of pretraining each for {ROWS[0]} and {ROWS[1]} at 48 px (--minutes), then every column whose "
            f"data are there"
        )


def _job(name: str, command: list[str], folder: Path, out: Path, after: tuple[str, ...] = ()) -> Job:
    """A job that is done once, and then leaves a mark in its folder: a checkpoint stands from the first epoch on."""
    finished = folder / "finished"

    def on_exit(status: int) -> None:
        if status == 0:
            finished.touch()

    log = out / "logs" / f"{name.replace('/', '-')}.log"
    return Job(name, lambda: command, log, after, finished.is_file, on_exit)
