"""Pretrains an encoder. DIR holds one folder of images a class, or is a list of images (.csv, .tsv) or webdataset's
shards (docs/own_images.md); CLIP takes images with captions (docs/methods.md).

    python -m pretrain.train --data DIR --out OUT                             the paper's run
    torchrun --nproc_per_node 8 -m pretrain.train --data DIR --out OUT        the same on 8 GPUs
    python -m pretrain.train --preset demo --data DIR --out OUT               minutes on one CPU core
    python -m pretrain.train --config OLD/config.json --data DIR --out OUT    the settings of another run again

``--preset mae_paper`` and ``mae_demo`` train MAE. Writes OUT/checkpoint.pth (the layout of the method's official code,
which ``evaluate.convert`` and ``run_all.py --ckpt`` take), config.json, log.jsonl, TensorBoard events (``tensorboard
--logdir OUT``), and batch.png, which shows the inputs and targets of the first batch.

When started again with the same arguments, it resumes from the newest complete checkpoint and ends with the same
weights as an uninterrupted run. On SIGTERM, SIGUSR2 and Ctrl-C it saves at the next step and exits with status 75
(Ctrl-C: 130; a second Ctrl-C stops at once). torchrun passes SIGUSR2 on only with ``--signals-to-handle
SIGTERM,SIGUSR2``. It waits ``--shutdown-timeout`` seconds (30) for the save, and exits with its own status.

An image that cannot be read is named and replaced by another. If the loss or gradient of a step is not finite in one
process, all processes skip the step, and its images are named. OUT/faults.jsonl lists both. The run stops if more than
1 % of the images cannot be read, or after 10 skipped steps in a row.
"""

import argparse
import contextlib
import dataclasses
import functools
import json
import math
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

from evaluate.runtime import compilation, devices
from evaluate.runtime.cli import EXIT_FAILED, EXIT_USER, MAX_WORKERS
from evaluate.runtime.errors import UserError, from_outside
from evaluate.runtime.processes import end_with_parent
from pretrain import budget, checkpoint, cpu, distributed, preview
from pretrain.config import PretrainConfig
from pretrain.data import kept_pixels, views
from pretrain.data.images import Images
from pretrain.data.loader import Step, images_at_once, steps_from, steps_per_epoch
from pretrain.data.pairs import open_images
from pretrain.evaluations import Evaluations
from pretrain.export import export
from pretrain.faults import Faults
from pretrain.log import Log
from pretrain.methods import Method, MethodModule, configure, method_of, read_config
from pretrain.monitor import Monitor, describe
from pretrain.optimizer import learning_rate, make_optimizer, set_rate
from pretrain.options import parse
from pretrain.signals import listening, out_of_memory
from pretrain.step import PRECISIONS, accumulate, find_culprits, seed, start_model
from pretrain.vit import set_grad_checkpointing
from results.ending import leave

EXIT_SAVED = 75  # "try again": saved on a signal, start again to go on
EXIT_CTRL_C = 130


@dataclasses.dataclass(frozen=True)
class Execution:
    """Where and how a run is executed; nothing of it is part of the run's config."""

    device: str
    """cpu, cuda or cuda:N."""
    workers: int = 0
    """Data loading processes of each training process."""
    micro_batch: int | None = None
    """The most images a process takes at once; the rest of its share is accumulated. BatchNorm and the loss's
    correlation are taken over each micro-batch (of all processes), so processes x micro_batch is a property of the
    run."""
    keep: int = checkpoint.KEEP
    """Checkpoints that are kept."""
    save_minutes: float = checkpoint.SAVE_MINUTES
    """A checkpoint is written so often, besides one at the end and on a signal."""
    monitor_epochs: int | None = None
    """Epochs between two measurements of the features (``pretrain.monitor``); 0 for none, None for a hundredth of the
    run."""
    compile: bool = False
    """Run the step through ``torch.compile``: the same to rounding, slower to start and faster after."""
    grad_checkpointing: bool = False
    """Compute the inside of the blocks again in the backward pass instead of keeping it: the same numbers, less memory,
    more time."""
    allow_other_images: bool = False
    """Resume a run on other images than it began with."""


def train(
    config: PretrainConfig, data: Path, out: Path, execution: Execution, evaluations: Evaluations | None = None
) -> Path:
    """Runs a config to its end, or on from where a checkpoint in ``out`` stands; returns the checkpoint's path. With
    ``evaluations`` it is measured on the way.

    Raises:
        UserError, ValueError, OSError: bad settings, images or folders. FloatingPointError: too many steps that are not
        finite. Interrupted: after a signal. distributed.FailedOnRankZero: for what process 0 raises.
    """
    device = execution.device
    images, micro_batch = distributed.all_or_none(lambda: _prepare(config, data, out, execution))
    if config.cache_pixels:
        kept_pixels.keep(images, out, config)
    if distributed.rank() == 0:
        _say(images, data, config, device)
    steps = steps_per_epoch(len(images), config)
    total = config.epochs * steps
    method = method_of(config)
    model, optimizer, scaler = _start(config, execution)
    faults = Faults(images, out)
    together = micro_batch * distributed.world_size()
    parts: dict[str, Any] = {"optimizer": optimizer, "scaler": scaler, "faults": faults}
    first = _resume(out, model, method, config, parts, together, images.identity, execution.allow_other_images)
    if evaluations and first:
        evaluations.go_on(first, steps, total, model, method, config)
    parallel = distributed.DataParallel(model) if distributed.world_size() > 1 else model
    looks = steps * (
        max(1, config.epochs // 100) if execution.monitor_epochs is None else execution.monitor_epochs
    )  # steps between two
    monitor = distributed.on_rank_zero(lambda: Monitor(images, config) if looks else None)

    with (
        contextlib.closing(steps_from(images, first, micro_batch, config, execution.workers)) as batches,
        Log(out, config, steps, first) as log,
        listening() as heard,
        checkpoint.Saver() as saver,
    ):
        faults.say, saved = log.say, time.monotonic()
        for step in range(first, total):
            batch = distributed.all_or_none(lambda: next(batches))
            faults.note_unreadable(step, batch.damaged)
            if step == 0:
                distributed.on_rank_zero(functools.partial(_draw, out / "batch.png", model, batch, config))
            set_rate(optimizer, learning_rate(step / steps, config, 1 / steps))
            torch.manual_seed(seed(config, step))
            statistics = [buffer.clone() for buffer in model.buffers()]

            loss = accumulate(parallel, scaler, batch, config, device)
            model.before_step(step)
            scaler.unscale_(optimizer)
            # A limit of infinity multiplies by 1 and measures the norm.
            norm = nn.utils.clip_grad_norm_(
                model.parameters(), math.inf if config.clip_norm is None else config.clip_norm
            )
            if faults.step_is_finite(
                step, loss, norm, scaler, functools.partial(find_culprits, parallel, batch, config, device)
            ):
                scaler.step(optimizer)
                model.after_step(step + 1, total)
                log.step(step + 1, distributed.mean_over_ranks(loss), norm, optimizer.param_groups[0]["lr"])
            else:  # nothing of the step stays
                for buffer, before in zip(model.buffers(), statistics, strict=True):
                    buffer.copy_(before)
            scaler.update()
            optimizer.zero_grad()
            if step == first and device == "cpu":
                cpu.keep_freed_memory(True)

            signals = distributed.gather_objects(heard[0] if heard else None)
            overdue = distributed.any_rank(
                distributed.rank() == 0 and time.monotonic() - saved >= 60 * execution.save_minutes
            )
            if signals or overdue or step + 1 == total:
                states = {name: part.state_dict() for name, part in parts.items()}
                states |= {"step": step + 1, "epoch": (step + 1) // steps, "normalised_together": together}
                states |= {"images": images.identity}
                distributed.on_rank_zero(
                    functools.partial(saver.save, out, model, method, config, execution.keep, **states)
                )
                saved = time.monotonic()
            if evaluations:
                evaluations.after_step(step + 1, steps, total, model, method, config)
            if signals:
                distributed.on_rank_zero(saver.wait)
                raise Interrupted(signals[0], step + 1)
            if looks and (step + 1) % looks == 0:
                distributed.on_rank_zero(functools.partial(_look, monitor, model, config, step + 1, device, log))
        distributed.on_rank_zero(saver.wait)
    return out / checkpoint.NAME


def _start(config: PretrainConfig, execution: Execution) -> tuple[Method, torch.optim.Optimizer, torch.amp.GradScaler]:
    """The model, its optimizer and the scaler of fp16, before the first step."""
    torch.manual_seed(config.seed)
    model = start_model(config, execution.device)
    if execution.grad_checkpointing:
        set_grad_checkpointing(model)
    compilation.compile_module(model, execution.compile)
    optimizer = make_optimizer(model, config, model.constant_rate())
    kind = torch.device(execution.device).type
    return model, optimizer, torch.amp.GradScaler(kind, enabled=config.precision == "fp16")


class Interrupted(Exception):
    """A signal asked the run to stop; a checkpoint was saved."""

    def __init__(self, name: str, step: int):
        super().__init__(f"saved at step {step} on {name}; start again to go on")
        self.status = EXIT_CTRL_C if name == "SIGINT" else EXIT_SAVED


def _prepare(config: PretrainConfig, data: Path, out: Path, execution: Execution) -> tuple[Images, int]:
    """The images and how many a process takes at once. Raises ValueError or OSError for whatever would stop the run."""
    if config.precision == "fp16" and execution.device == "cpu":
        raise ValueError("precision fp16 needs a GPU; on a CPU take --set precision=bf16 or fp32")
    method_of(config)
    out.mkdir(parents=True, exist_ok=True)
    config.tokens([""])  # what captions need is there
    images = open_images(data, out, config)
    steps_per_epoch(len(images), config)
    return images, images_at_once(execution.micro_batch, config)


def _say(images: Images, data: Path, config: PretrainConfig, device: str) -> None:
    classes = len(set(images.classes))
    print(f"pretrain: {len(images):,} images of {classes:,} class{'es' * (classes > 1)} in {data}", flush=True)
    if images.kept is not None:
        print(f"pretrain: {images.kept}", flush=True)
    if device == "cpu" and (hint := cpu.faster_precision(config.precision)):
        print(f"pretrain: {hint}", flush=True)


def _draw(path: Path, model: Method, batch: Step, config: PretrainConfig) -> None:
    shown = views.augment(batch.micro[0], batch.epoch, config)
    preview.draw(shown, model.hidden(shown), config, path)


def _look(monitor: Monitor | None, model: Method, config: PretrainConfig, step: int, device: str, log: Log) -> None:
    assert monitor is not None  # process 0 has one
    found = monitor.measure(model, device, PRECISIONS.get(config.precision))
    log.entry(step, **found)
    log.say(describe(found))


def _resume(
    out: Path,
    model: nn.Module,
    method: MethodModule,
    config: PretrainConfig,
    parts: dict[str, Any],
    together: int,
    images: dict[str, int | str],
    allow_other_images: bool,
) -> int:
    """Loads the newest whole checkpoint, if there is one; the step to go on with. Raises ValueError for one of another
    config, or of other images."""
    found = distributed.gather_objects(distributed.on_rank_zero(lambda: checkpoint.newest(out)))
    if not found:
        return 0

    def load() -> int:
        saved = checkpoint.load(*found[0])
        # A setting younger than the run had its default; settings of other methods, which older runs hold too, count
        # for nothing.
        was = method.Config(method=config.method).to_json() | saved["config"]
        other = [name for name, value in config.to_json().items() if json.dumps(was[name]) != json.dumps(value)]
        if other:
            raise ValueError(
                f"{out} holds a run with another {', '.join(other)}; choose another --out or the same settings"
            )
        began_on = saved.get("images", images)  # earlier versions did not keep it
        if began_on != images:
            change = f"{began_on['number']:,} images before and {images['number']:,} now, of other names"
            if not allow_other_images:
                raise ValueError(
                    f"{out} holds a run on other images ({change}); restore them, choose another --out, or say "
                    "--allow-other-images to go on with those that there are"
                )
            if distributed.rank() == 0:
                print(f"pretrain: the run goes on with other images ({change})", flush=True)
        model.load_state_dict(method.from_official(saved["model"], list(model.state_dict())))
        if saved["step"]:  # before the first step (--init-only) there is nothing but the weights
            for name, part in parts.items():
                part.load_state_dict(saved[name])
            if saved["normalised_together"] != together and distributed.rank() == 0:
                before = saved["normalised_together"]
                print(f"pretrain: {together} images are normalized together from here on, not {before} as before")
            if distributed.rank() == 0:
                print(f"pretrain: goes on at step {saved['step']:,}, from {found[0][0]}", flush=True)
        return saved["step"]

    return distributed.all_or_none(load)


def initialize(config: PretrainConfig, out: Path) -> Path:
    """Writes the randomly initialized checkpoint that a run starts from."""
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(config.seed)
    method = method_of(config)
    return checkpoint.save(out, method.build(config), method, config, epoch=0, step=0)


def main(argv: list[str] | None = None) -> int:
    """0 done, 1 another process of the run failed, 2 bad input or too many faults, 75 saved on a signal, 130 Ctrl-C."""
    arguments = parse(argv, __doc__)
    evaluations = Evaluations(arguments.evaluate, arguments.out) if arguments.evaluate else None
    end_with_parent()
    try:
        status = _main(arguments, evaluations)
    except KeyboardInterrupt:
        status = _end(EXIT_CTRL_C, f"stopped; the same command goes on from the newest checkpoint in {arguments.out}")
    status = distributed.end(status)
    if evaluations:
        try:
            evaluations.end(done=status == 0)
        except KeyboardInterrupt:
            evaluations.end(done=False)
            status = _end(EXIT_CTRL_C, "stopped while it measured; the same command goes on with that")
    return status


def _main(arguments: argparse.Namespace, evaluations: Evaluations | None) -> int:
    try:
        device = distributed.start(devices.resolve_device(arguments.device))
        config = distributed.all_or_none(lambda: configured(arguments))
        if arguments.dry_run:
            print(json.dumps(config.to_json(), indent=1))
            return 0
        if arguments.init_only:
            path = initialize(config, arguments.out)
        else:
            settings = {
                field.name: getattr(arguments, field.name)
                for field in dataclasses.fields(Execution)
                if field.name != "device"
            }
            if settings["workers"] is None:  # a CPU needs its cores for the training
                settings["workers"] = (
                    min(max(distributed.cores() - 1, 1), MAX_WORKERS) if device.startswith("cuda") else 0
                )
            execution = Execution(device, **settings)
            if device == "cpu":
                cpu.keep_freed_memory(False)
            if evaluations:
                distributed.on_rank_zero(evaluations.check)
            if arguments.minutes:
                at_once = images_at_once(execution.micro_batch, config)
                folders = (arguments.data, arguments.out)
                config = budget.fit(config, arguments.minutes, *folders, device, execution.workers, at_once)
            path = train(config, arguments.data, arguments.out, execution, evaluations)
            if arguments.export:
                distributed.on_rank_zero(functools.partial(export, path))
    except distributed.FailedOnRankZero:
        return EXIT_USER
    except OSError as error:
        place = error.filename or f"a file in {arguments.out}"
        advice = f"{place} cannot be read or written ({error.strerror}); make room or allow access, and start again"
        return _end(EXIT_USER, advice if error.strerror else str(error))
    except (UserError, ValueError, FloatingPointError) as error:
        return _end(EXIT_USER, str(error))
    except Interrupted as stop:
        return _end(stop.status, str(stop))
    except RuntimeError as error:
        if isinstance(error, torch.OutOfMemoryError):
            text = out_of_memory(error, configured(arguments), arguments.micro_batch)
        else:
            text = from_outside(error)
        if not text:
            raise
        print(f"pretrain.train: process {distributed.rank()}: {text}", file=sys.stderr)
        return EXIT_FAILED
    if distributed.rank() == 0:
        print(path)
    return 0


def configured(arguments: argparse.Namespace) -> PretrainConfig:
    """The config that the arguments give: ``--config`` or ``--preset``, with ``--model`` and ``--set`` on top."""
    if arguments.config and arguments.preset:
        raise UserError("give --config or --preset, not both")
    start = read_config(arguments.config) if arguments.config else arguments.preset or "paper"
    return configure(start, arguments.set, arguments.model)


def _end(status: int, text: str) -> int:
    if distributed.rank() == 0:
        print(f"pretrain.train: {text}", file=sys.stderr)
    return status


if __name__ == "__main__":
    leave(main)
