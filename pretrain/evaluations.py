"""Measures the encoder while it trains: tasks of ``run_all.py`` on snapshots of the weights, in processes of their own.

A snapshot is written at the end of every so many epochs and of the run, into OUT/epochs. ``run_all.py`` measures the
folder, beside the training: one at a time, and what came meanwhile is measured by the next. Records and the report,
which draws each number along the epochs, are in OUT/evaluation. Nothing of it changes the training, and a measurement
that fails does not end it.
"""

import contextlib
import os
import re
import shlex
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from evaluate.runtime.processes import PARENT
from pretrain import checkpoint, distributed
from pretrain.config import PretrainConfig
from pretrain.methods import MethodModule

RUN_ALL = Path(__file__).parents[1] / "run_all.py"
SNAPSHOTS, FOLDER, LOG = "epochs", "evaluation", "run.log"
OF_TORCHRUN = re.compile(r"RANK|WORLD_SIZE|LOCAL_.*|GROUP_.*|ROLE_.*|MASTER_.*|TORCHELASTIC_.*")


@dataclass(frozen=True)
class Wanted:
    """What a command line asks for."""

    tasks: str
    """Comma-separated, as ``run_all.py --tasks``."""
    every: int
    """Epochs between two snapshots."""
    data_root: Path
    options: str = ""
    """Further ones of ``run_all.py``, as a shell takes them."""

    def __post_init__(self) -> None:
        if not self.data_root.is_dir():
            raise ValueError(f"--evaluate-data-root {self.data_root} is not a folder; it should hold imagenet/")


def data_root_of(images: Path) -> Path:
    """The data root that a folder of images to pretrain on suggests: DIR of DIR/imagenet/train or DIR/unlabelled."""
    return images.parent.parent if (images.parent.name, images.name) == ("imagenet", "train") else images.parent


class Evaluations:
    """The measurements of one run.

    Every process of a run has one; only in process 0 are snapshots taken.

    Args: out: the folder of the run.
    """

    def __init__(self, wanted: Wanted, out: Path) -> None:
        self.wanted, self.out = wanted, out
        self.process: subprocess.Popen[bytes] | None = None
        self.waits = False
        """Whether a snapshot has come since the process began."""

    def due(self, step: int, steps: int, total: int) -> bool:
        """Whether a snapshot is wanted after so many steps; an epoch has ``steps``, the run ``total``."""
        return step == total or step % (self.wanted.every * steps) == 0

    def after_step(
        self, step: int, steps: int, total: int, model: nn.Module, method: MethodModule, config: PretrainConfig
    ) -> None:
        """After so many steps: looks after a measurement, and takes a snapshot where one is due. In every process.

        Raises OSError.
        """
        self.look()
        if self.due(step, steps, total):
            distributed.on_rank_zero(lambda: self.take(model, method, config, step // steps))

    def go_on(
        self, step: int, steps: int, total: int, model: nn.Module, method: MethodModule, config: PretrainConfig
    ) -> None:
        """Of a run that goes on after so many steps: has measured what was not, and takes a snapshot that was due and
        is not there. In every process. Raises OSError.
        """

        def begin() -> None:
            self.waits = any((self.out / SNAPSHOTS).glob("*.pth"))
            if self.due(step, steps, total) and not self._snapshot(step // steps, config).is_file():
                self.take(model, method, config, step // steps)
            self.look()

        distributed.on_rank_zero(begin)

    def take(self, model: nn.Module, method: MethodModule, config: PretrainConfig, epoch: int) -> None:
        """Writes a snapshot and has it measured as soon as nothing else is. Raises OSError where it has no room."""
        (self.out / SNAPSHOTS).mkdir(exist_ok=True)
        weights = checkpoint.in_own_memory(method.to_official(model.state_dict()))
        content = {"model": weights, "config": config.to_json(), "epoch": epoch}
        checkpoint.write(self._snapshot(epoch, config), lambda file: torch.save(content, file))
        self.waits = True
        self.look()

    def check(self) -> None:
        """Raises ValueError with run_all.py's own sentence where it would refuse the tasks or options."""
        command = [*self._command(f"run={RUN_ALL}"), "--dry-run"]  # any file that exists: nothing is read of it
        asked = subprocess.run(command, capture_output=True, text=True, env=self._environment())
        if asked.returncode:
            said = [line for line in asked.stderr.splitlines() if line.strip()]
            raise ValueError(f"--evaluate: {said[-1] if said else f'run_all.py ends with {asked.returncode}'}")
        if re.search(r"^to do: 0 ", asked.stdout, re.MULTILINE):
            wanted = self.wanted
            raise ValueError(
                f"--evaluate {wanted.tasks}: its data are not below {wanted.data_root}; give --evaluate-data-root"
            )

    def look(self) -> None:
        """Takes note of a measurement that has ended, and begins the next one that waits."""
        try:
            if self.process and self.process.poll() is not None:
                status, self.process = self.process.returncode, None
                self._tell(status)
            if self.waits and not self.process:
                self._begin()
        except OSError as error:
            print(f"pretrain: nothing is measured now: {error}", flush=True)

    def end(self, done: bool) -> None:
        """Returns when everything is measured; of a run that was not ``done``, ends what measures. The same command
        goes on with it.
        """
        if self.process and not done:
            with contextlib.suppress(ProcessLookupError):
                self.process.send_signal(signal.SIGTERM)
            self.process.wait()
        while done and (self.process or self.waits):
            self.look()
            if self.process:
                self.process.wait()

    def _begin(self) -> None:
        self.waits = False
        out = self.out / FOLDER
        out.mkdir(exist_ok=True)
        command = self._command(str(self.out / SNAPSHOTS))
        with (out / LOG).open("wb") as log:
            self.process = subprocess.Popen(
                command, stdout=log, stderr=subprocess.STDOUT, env=self._environment(), start_new_session=True
            )

    def _command(self, checkpoints: str) -> list[str]:
        wanted = self.wanted
        command = [sys.executable, str(RUN_ALL), "--ckpt", checkpoints, "--tasks", wanted.tasks]
        command += ["--data-root", str(wanted.data_root), "--out", str(self.out / FOLDER)]
        return [*command, *shlex.split(wanted.options)]

    def _environment(self) -> dict[str, str]:
        """Without what torchrun has set: run_all.py is no process of the run."""
        known = {name: value for name, value in os.environ.items() if not OF_TORCHRUN.fullmatch(name)}
        return known | {PARENT: str(os.getpid())}

    def _snapshot(self, epoch: int, config: PretrainConfig) -> Path:
        return self.out / SNAPSHOTS / f"epoch{epoch:0{len(str(config.epochs))}}.pth"

    def _tell(self, status: int) -> None:
        if status:
            lines = (self.out / FOLDER / LOG).read_text(errors="replace").split("\n")
            last = next((line for line in reversed(lines) if line.strip()), "")
            print(
                f"pretrain: the evaluation ended with status {status}: {last} (log: {self.out / FOLDER / LOG})",
                flush=True,
            )
        else:
            print(f"pretrain: evaluated: {self.out / FOLDER / 'table.md'}, report.html beside it", flush=True)
