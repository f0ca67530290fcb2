"""mmengine's runner without its preamble; hooks: plain progress lines, and an end to a training whose loss is no number."""

import math
import sys
import time
from typing import Any

from mmengine.hooks import Hook, RuntimeInfoHook
from mmengine.runner import Runner, TestLoop

from evaluate.mm.multi_scale import MultiScale
from evaluate.runtime.progress import SECONDS_BETWEEN_LINES


class QuickRunner(Runner):
    """mmengine's runner, which writes the config once and unformatted: its formatter takes seconds."""

    def _log_env(self, env_cfg: dict[str, Any]) -> None:
        self.logger.info(f"config: {self.cfg.to_dict()}")

    def dump_config(self) -> None:
        """The log has it."""

    def test_multi_scale(self, loader: Any) -> dict[str, Any]:
        """The evaluator's metrics of a segmenter on a data loader of views."""
        single, self.model = self.model, MultiScale(self.model)
        try:
            return TestLoop(self, loader, self.cfg.test_evaluator).run()
        finally:
            self.model = single


class RuntimeInfo(RuntimeInfoHook):
    """mmengine's hook without the formatted config."""

    def before_run(self, runner: Any) -> None:
        runner.message_hub.update_info_dict({"seed": runner.seed, "experiment_name": runner.experiment_name})
        self.last_loop_stage = None


class Progress(Hook):
    """Prints iteration, loss and time left to standard error every few seconds, on the first process only."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.begun = self.last = 0.0
        self.first = 0

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        if not self.begun:  # a resumed training does not begin at 0
            self.begun = self.last = time.monotonic()
            self.first = runner.iter

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: dict | None = None) -> None:
        now = time.monotonic()
        if now - self.last < SECONDS_BETWEEN_LINES or runner.rank != 0:
            return
        self.last = now
        done = runner.iter + 1
        left = (now - self.begun) / (done - self.first) * (runner.max_iters - done)
        print(f"{self.name}: {done}/{runner.max_iters}, loss {float(outputs['loss']):.3f}, {left:.0f} s left", file=sys.stderr, flush=True)

    def after_test_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        now = time.monotonic()
        if now - self.last < SECONDS_BETWEEN_LINES or runner.rank != 0:
            return
        self.last = now
        print(f"{self.name}: tested {batch_idx + 1}/{len(runner.test_dataloader)}", file=sys.stderr, flush=True)


class FiniteLoss(Hook):
    """Stops at a loss that is not finite.

    Raises:
        RuntimeError: naming the iteration and the losses.
    """

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: dict | None = None) -> None:
        # mmengine has already read the losses for its log, so this look waits for nothing
        if not math.isfinite(float(outputs["loss"])):
            values = {name: float(value) for name, value in outputs.items() if getattr(value, "numel", lambda: 0)() == 1}
            raise RuntimeError(f"the loss at iteration {runner.iter} is not finite: {values}; lower the learning rate")
