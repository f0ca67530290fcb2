"""Hooks of a dense training: progress, curves, an end where the loss is not finite, precise BatchNorm statistics."""

import math
import sys
import time
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from mmengine.hooks import Hook, ParamSchedulerHook, RuntimeInfoHook
from mmengine.runner import Runner
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from evaluate.runtime import curves
from evaluate.runtime.progress import SECONDS_BETWEEN_LINES, tell


class RuntimeInfo(RuntimeInfoHook):
    """mmengine's hook without the formatted config."""

    def before_run(self, runner: Runner) -> None:
        runner.message_hub.update_info_dict({"seed": runner.seed, "experiment_name": runner.experiment_name})
        self.last_loop_stage = None


class Progress(Hook):
    """Tells iteration, loss and time left, and prints them every few seconds, on the first process only."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.begun = self.last = 0.0
        self.first = 0

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any) -> None:
        if not self.begun:  # a resumed training does not begin at 0
            self.begun = self.last = time.monotonic()
            self.first = runner.iter

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any, outputs: dict[str, Tensor]) -> None:
        done = runner.iter + 1
        tell(self.name, done, runner.max_iters, lambda: f"loss {float(outputs['loss']):.3f}")
        left = (time.monotonic() - self.begun) / (done - self.first) * (runner.max_iters - done)
        self._print(runner, f"{done}/{runner.max_iters}, loss {float(outputs['loss']):.3f}, {left:.0f} s left")

    def after_test_iter(self, runner: Runner, batch_idx: int, data_batch: Any, outputs: Any) -> None:
        tell(f"{self.name}, testing", batch_idx + 1, len(runner.test_dataloader))
        self._print(runner, f"tested {batch_idx + 1}/{len(runner.test_dataloader)}")

    def _print(self, runner: Runner, line: str) -> None:
        if runner.rank == 0 and time.monotonic() - self.last >= SECONDS_BETWEEN_LINES:
            self.last = time.monotonic()
            print(f"{self.name}: {line}", file=sys.stderr, flush=True)


class StepSchedulers(ParamSchedulerHook):
    """mmengine's hook, which counts steps of the optimizer: a batch that is split into parts has one learning rate."""

    def after_train_iter(self, runner: Runner, *arguments: Any, **named: Any) -> None:
        if runner.optim_wrapper.should_update():  # of the iteration that has just been counted
            super().after_train_iter(runner, *arguments, **named)


class FiniteLoss(Hook):
    """Stops at a loss that is not finite.

    Raises:
        RuntimeError: naming the iteration and the losses.
    """

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any, outputs: dict[str, Tensor]) -> None:
        # mmengine has already read the losses for its log, so this look waits for nothing
        if not math.isfinite(float(outputs["loss"])):
            values = {name: float(value) for name, value in outputs.items()}
            raise RuntimeError(f"the loss at iteration {runner.iter} is not finite: {values}; lower the learning rate")


class Curves(Hook):
    """Writes the training's curves, on the first process only: loss and, where the head tells it, its accuracy.

    Args:
        folder: of the task. apart, parts: iterations between points, a multiple of the parts that a batch is split
            into.
    """

    ACCURACIES = ("acc", "decode.acc_seg")  # in percent: a detector's classes, a segmenter's pixels

    def __init__(self, folder: str, apart: int, parts: int = 1) -> None:
        self.folder, self.apart, self.parts = Path(folder), apart, parts
        self.begun = False
        self.values: dict[str, list[float]] = {}

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any) -> None:
        if not self.begun and runner.rank == 0:  # Resume has set the iteration by now
            curves.begin(self.folder, runner.iter // self.parts)
        self.begun = True

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any, outputs: dict[str, Tensor]) -> None:
        if runner.rank != 0:
            return
        for name in ("loss", *self.ACCURACIES):
            if name in outputs:  # mmengine has already read it for its log; its own number waits for nothing
                kind = "loss" if name == "loss" else "accuracy"
                self.values.setdefault(kind, []).append(float(runner.message_hub.get_scalar(f"train/{name}").current()))
        done = runner.iter + 1
        if done % self.apart == 0 or done == runner.max_iters:
            rate = max(group["lr"] for group in runner.optim_wrapper.param_groups)
            means = {name: sum(values) / len(values) for name, values in self.values.items()}
            curves.append(self.folder, done // self.parts, rate=rate, **means)
            self.values = {}


def points_apart(iterations: int, saved_every: int, parts: int) -> int:
    """Iterations between points of the curves: whole batches, and no point lies across a saved state."""
    fitting = (count for count in range(parts, saved_every + 1, parts) if saved_every % count == 0)
    return next((count for count in fitting if iterations <= count * curves.MOST), saved_every)


class PreciseBN(Hook):
    """After the training, sets running means and variances to plain averages over some batches with the final weights.

    Running averages follow weights that are still moving. The batches are the first of the stream, and the random
    numbers go on from the last iteration, so that neither an interruption nor the number of loading processes changes
    the outcome.

    Args:
        batches: how many, on each process.
    """

    priority = "LOWEST"  # after Resume, which puts the random state back

    def __init__(self, batches: int) -> None:
        self.batches = batches

    def after_train(self, runner: Runner) -> None:
        model = getattr(runner.model, "module", runner.model)
        norms = [module for module in model.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]
        # these norms track their statistics, so there are some
        running: list[tuple[Tensor, Tensor]] = [(norm.running_mean, norm.running_var) for norm in norms]  # type: ignore[misc]
        totals = [(torch.zeros_like(mean), torch.zeros_like(variance)) for mean, variance in running]
        momenta = [norm.momentum for norm in norms]
        for norm in norms:
            norm.momentum = 1.0  # the running values are then the last batch's
        model.train()
        count = 0
        runner.train_dataloader.sampler.skip(0)
        with torch.random.fork_rng(
            devices=[]
        ):  # a new iterator draws from torch's generator, that of lasting workers not
            batches = iter(runner.train_dataloader)
        with torch.no_grad():
            for batch in islice(batches, self.batches):
                model(**model.data_preprocessor(batch, True), mode="loss")
                count += 1
                for total, last in zip(totals, running, strict=True):
                    total[0].add_(last[0])
                    total[1].add_(last[1])
        for norm, momentum, total, last in zip(norms, momenta, totals, running, strict=True):
            norm.momentum = momentum
            last[0].copy_(total[0] / count)
            last[1].copy_(total[1] / count)
        runner.logger.info(f"statistics of {len(norms)} norms anew from {count} batches")
