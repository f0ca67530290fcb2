"""What ``run_all.py`` pretrains before it measures: a row for each preset, from the images of one data root."""

import json
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from evaluate.data import layouts
from evaluate.data.identity import DataIdentities, fingerprint
from evaluate.harness import cost, rows
from evaluate.harness.executor import ROOT, Job
from evaluate.runtime.errors import UserError

START = "@start"  # behind a preset: its random start, which is not trained
SIDE = 96  # pixels of the copies that a pretraining of minutes takes: twice a view of 48
ON_PAIRS = ("clip",)  # methods that take no folder of images
TASK = "pretrain"  # in ``--set pretrain.epochs=100``
OPTIONS = ("model", "micro_batch")  # of ``pretrain.train``, which ``--set pretrain.model=vit_small`` gives too


def named_presets(texts: Sequence[str]) -> dict[str, str]:
    """Presets by the name of their row, from ``PRESET`` or ``NAME=PRESET``. Raises UserError for two rows of one name,
    or a name that cannot be one."""
    presets: dict[str, str] = {}
    for text in texts:
        name, _, preset = text.rpartition("=")
        if rows.check_name(name or preset) in presets:
            raise UserError(f"--ablate: two rows are called {name or preset!r}; name them: --ablate NAME=PRESET")
        presets[name or preset] = preset
    return presets


def resolve(presets: Mapping[str, str], seed: int, settings: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """All settings of each row, as ``pretrain.train`` has them, before hours are spent.

    Raises UserError with what it says of a row that it does not take.
    """
    found = {}
    for row, preset in presets.items():
        command = [sys.executable, "-m", "pretrain.train", "--data", ".", "--out", ".", "--device", "cpu", "--dry-run"]
        said = subprocess.run(
            [*command, *_options(preset, seed, settings)], cwd=ROOT, capture_output=True, text=True, check=False
        )
        if said.returncode:
            reason = (said.stderr.strip().splitlines() or ["killed"])[-1]
            raise UserError(f"pretraining {preset}: {re.sub(r'^[a-zA-Z .-]*pretrain[.]train: (error: )?', '', reason)}")
        found[row] = json.loads(said.stdout)
        if found[row]["method"] in ON_PAIRS:
            raise UserError(
                f"pretraining {preset}: it takes pairs of image and caption; pretrain it with pretrain.train --data, "
                f"and give its checkpoint as --ckpt"
            )
    return found


def processes(settings: Mapping[str, Any], gpus: int) -> int:
    """How many of so many GPUs a pretraining takes: as many as share its batch evenly."""
    return max(count for count in cost.sharing(settings["batch_size"]) if count <= max(gpus, 1))


def _options(preset: str, seed: int, settings: Mapping[str, str]) -> list[str]:
    options = ["--preset", preset.removesuffix(START)]
    for name, value in {"seed": str(seed), **settings}.items():
        options += [f"--{name.replace('_', '-')}", value] if name in OPTIONS else ["--set", f"{name}={value}"]
    return [*options, *(["--init-only"] if preset.endswith(START) else [])]


@dataclass(frozen=True)
class Pretraining:
    """What is pretrained from the images of one data root."""

    out: Path
    identities: DataIdentities
    presets: Mapping[str, str]
    """By row: what ``pretrain.train`` takes as --preset; with START behind it, not trained."""
    seed: int
    device: str
    minutes: float | None = None
    """Of each pretraining, on small copies of the images; None: as many epochs as the presets say, on the images."""
    settings: Mapping[str, str] = field(default_factory=dict)
    """Of ``pretrain.train``, for all rows."""
    resolved: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """By row: all settings, as ``resolve`` found them; none where nobody asked."""

    def options(self, row: str) -> list[str]:
        """Of ``pretrain.train``, for a row."""
        options = _options(self.presets[row], self.seed, self.settings)
        trained = self.minutes and not self.presets[row].endswith(START)
        return options + (["--minutes", f"{self.minutes:g}"] if trained else [])

    def checkpoints(self) -> dict[str, Path]:
        """Where the checkpoint of each row lies: in a folder named by all that it is made of."""
        images = self.identities[layouts.pretraining_part(self.identities.data_root)]
        made_of = {row: {"options": " ".join(self.options(row)), "images": images} for row in self.presets}
        for row, settings in self.resolved.items():  # a preset may be edited
            made_of[row]["settings"] = json.dumps(settings, sort_keys=True)
        folder = self.out / "pretrain"
        return {row: folder / f"{row}-{fingerprint(parts)}" / "checkpoint.pth" for row, parts in made_of.items()}

    def plan(self) -> str:
        """What is going to be done, in a sentence."""
        time = f"for about {self.minutes:g} minutes each" if self.minutes else "for as many epochs as the presets say"
        named = ", ".join(row if row == preset else f"{row} ({preset})" for row, preset in self.presets.items())
        return f"pretraining on {self.identities.data_root} {time}, then measuring: {named}"

    def jobs(self) -> list[Job]:
        """Jobs that make the checkpoints: pretrained encoders, and random starts."""
        part = layouts.pretraining_part(self.identities.data_root)
        images, jobs = self.identities.data_root / part, []
        after: tuple[str, ...] = ()
        if self.minutes:
            copies = self.out / "data" / f"copies-{SIDE}-{self.identities[part]}"
            command = ["evaluate.data.copies", str(images), str(copies), "--side", str(SIDE)]
            jobs.append(_job("copies", command, copies, self.out))
            images, after = copies, ("copies",)
        device = "cpu" if layouts.is_toy(self.identities.data_root) else self.device
        for row, path in self.checkpoints().items():
            command = ["pretrain.train", "--data", str(images), "--out", str(path.parent), "--device", device]
            jobs.append(_job(f"{row}/{TASK}", [*command, *self.options(row)], path.parent, self.out, after))
        return jobs


def _job(name: str, module: list[str], folder: Path, out: Path, after: tuple[str, ...] = ()) -> Job:
    """A job that runs a module with its arguments, by a process for each of its slots.

    It is done once, and then leaves a mark in its folder: a checkpoint stands from the first epoch on.
    """
    finished = folder / "finished"

    def command() -> list[str]:
        several = ["-m", "evaluate.runtime.torchrun", "--standalone", "--nproc-per-node", str(job.slots)]
        return [sys.executable, *(several if job.slots > 1 else []), "-m", *module]

    def on_exit(status: int) -> None:
        if status == 0:
            finished.touch()

    job = Job(name, command, out / "logs" / f"{name.replace('/', '-')}.log", after, finished.is_file, on_exit)
    return job
