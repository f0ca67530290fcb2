"""What a run says of itself: a bar on a terminal or plain lines elsewhere, and log.jsonl and TensorBoard events beside
the checkpoint.

    tensorboard --logdir OUT

Only the first process writes. A run that goes on from a checkpoint first drops what it had logged past it, so that
log.jsonl of a resumed run has one line a step logged, as that of an unbroken run.
"""

import json
import os
import sys
import time
from pathlib import Path

import torch
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from evaluate.runtime.progress import tell
from pretrain import distributed
from pretrain.config import PretrainConfig

SECONDS_BETWEEN_LINES = 10.0
STEPS_BETWEEN_ENTRIES = 50  # and at the end of each epoch


class Log:
    """Use as a context manager around the loop; ``step`` is the optimizer steps done when the run begins, ``steps``
    those of an epoch."""

    def __init__(self, out: Path, config: PretrainConfig, steps: int, step: int):
        self.config, self.steps, self.first = config, steps, step
        self.total = config.epochs * steps
        self.losses: list[Tensor] = []  # since the last entry
        self.begun = self.last_line = time.monotonic()
        self.writes = distributed.rank() == 0
        if not self.writes:
            return
        from torch.utils.tensorboard import SummaryWriter  # seconds of imports that only a training process needs

        self.path = out / "log.jsonl"
        _drop_entries_after(self.path, step)
        self.events = SummaryWriter(str(out / "tensorboard"), purge_step=step + 1)
        columns = (
            TextColumn("epoch {task.fields[epoch]:.1f}"),
            BarColumn(),
            TextColumn("{task.fields[text]}"),
            TimeRemainingColumn(),
        )
        self.bar = Progress(*columns, disable=not sys.stdout.isatty())
        self.task = self.bar.add_task("", total=self.total, completed=step, epoch=step / steps, text="")

    def __enter__(self) -> "Log":
        if self.writes:
            self.bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self.writes:
            self.bar.stop()
            self.events.close()

    def step(self, step: int, loss: Tensor, norm: Tensor, lr: float) -> None:
        """After each optimizer step; loss and gradient norm are scalars on the device."""
        if not self.writes:
            return
        self.losses.append(loss)
        epoch = f"epoch {step / self.steps:.1f}/{self.config.epochs}"
        tell("pretraining", step, self.total, lambda: f"loss {loss.item():.4f}, {epoch}")
        now = time.monotonic()
        rate = (step - self.first) * self.config.batch_size / (now - self.begun)
        line_due = now - self.last_line >= SECONDS_BETWEEN_LINES or step == self.total
        if line_due or not self.bar.disable:
            text = f"loss {loss.item():.4f} {rate:.0f} img/s"
            self.bar.update(self.task, completed=step, epoch=step / self.steps, text=text)
            if line_due and self.bar.disable:
                left = (self.total - step) * self.config.batch_size / rate
                self.say(f"{epoch} {text} {left:.0f} s left")
                self.last_line = now
        if step % self.steps == 0 or step % STEPS_BETWEEN_ENTRIES == 0:
            mean = torch.stack(self.losses).mean().item()
            self.losses.clear()
            self.entry(step, loss=mean, grad_norm=norm.item(), lr=lr, images_per_second=round(rate, 1))

    def entry(self, step: int, **values: float) -> None:
        """Writes numbers of one step into log.jsonl and TensorBoard."""
        if not self.writes:
            return
        with self.path.open("a") as file:
            file.write(json.dumps({"step": step, "epoch": step / self.steps, **values}) + "\n")
        for name, value in values.items():
            self.events.add_scalar(name, value, step)

    def say(self, text: str) -> None:
        """One line for the person who watches."""
        if self.writes:
            self.bar.print(f"pretrain: {text}") if not self.bar.disable else print(f"pretrain: {text}", flush=True)


def _drop_entries_after(path: Path, step: int) -> None:
    """A line that a kill cut short is dropped too."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines():
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:
            continue
        if entry["step"] <= step:
            kept.append(line + "\n")
    temporary = path.with_suffix(".part")
    temporary.write_text("".join(kept))
    os.replace(temporary, path)
