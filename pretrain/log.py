"""What a run says of itself while it goes on."""

import json
import time
from pathlib import Path

from torch import Tensor

from pretrain import distributed
from pretrain.config import PretrainConfig

SECONDS_BETWEEN_LINES = 10.0


class Log:
    """A JSON line an epoch's worth of steps into log.jsonl, and a plain line every ten seconds."""

    def __init__(self, out: Path, steps: int, config: PretrainConfig):
        self.path, self.steps, self.config = out / "log.jsonl", steps, config
        self.begun = self.last = time.monotonic()
        self.first: int | None = None

    def step(self, step: int, loss: Tensor, norm: Tensor, lr: float) -> None:
        if distributed.rank() != 0:
            return
        now = time.monotonic()
        self.first = step - 1 if self.first is None else self.first
        end_of_epoch = step % self.steps == 0
        if not end_of_epoch and now - self.last < SECONDS_BETWEEN_LINES:
            return
        rate = (step - self.first) * self.config.batch_size / (now - self.begun)
        left = (self.config.epochs * self.steps - step) * self.config.batch_size / rate
        if end_of_epoch:
            entry = {
                "step": step,
                "epoch": step / self.steps,
                "loss": loss.item(),
                "grad_norm": norm.item(),
                "lr": lr,
                "images_per_second": round(rate, 1),
            }
            with self.path.open("a") as file:
                file.write(json.dumps(entry) + "\n")
        if now - self.last >= SECONDS_BETWEEN_LINES or step == self.config.epochs * self.steps:
            self.last = now
            print(
                f"pretrain: epoch {step / self.steps:.1f}/{self.config.epochs} loss {loss.item():.4f} {rate:.0f} img/s {left:.0f} s left",
                flush=True,
            )
