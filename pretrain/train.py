"""Pretrains an encoder.

    python -m pretrain.train --data DIR --out OUT                       the paper's run (DIR holds one folder of images a class)
    torchrun --nproc_per_node 8 -m pretrain.train --data DIR --out OUT  the same on 8 GPUs
    python -m pretrain.train --preset demo --data DIR --out OUT         minutes on one CPU core

``--preset mae_paper`` and ``mae_demo`` train MAE. Writes OUT/checkpoint.pth (the layout of the method's official code, which
``evaluate.convert`` and ``run_all.py --ckpt`` take), config.json and log.jsonl. Started again with the same arguments, it goes on from
the newest whole checkpoint.
"""

import argparse
import contextlib
import dataclasses
import importlib
import json
import math
import os
import signal
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pretrain import checkpoint, distributed, views
from pretrain.config import PAPER, PRESETS, PretrainConfig
from pretrain.data import DataError, ImageFolder, epoch_batches, steps_per_epoch
from pretrain.geometry import cosine
from pretrain.log import Log

METHODS = ("siameseim", "mae")
EXIT_INTERRUPTED = 75  # "try again": saved on a signal, start again to go on
PRECISIONS = {"bf16": torch.bfloat16, "fp16": torch.float16}


def method_of(config: PretrainConfig) -> ModuleType:
    """The file of pretrain/methods/ that a config names."""
    if config.method not in METHODS:
        raise ValueError(f"there is no method {config.method!r}; the methods are {', '.join(METHODS)}")
    return importlib.import_module(f"pretrain.methods.{config.method}")


def learning_rate(epoch: float, config: PretrainConfig) -> float:
    """Linear warm-up, then a half cosine to ``min_lr``; ``epoch`` is fractional."""
    if epoch < config.warmup_epochs:
        return config.lr * epoch / config.warmup_epochs
    return cosine(config.lr, config.min_lr, (epoch - config.warmup_epochs) / (config.epochs - config.warmup_epochs))


def make_optimizer(model: nn.Module, config: PretrainConfig) -> torch.optim.AdamW:
    """AdamW; biases and other one-dimensional parameters do not decay."""
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, fused=True)


def train(config: PretrainConfig, data: Path, out: Path, device: str, workers: int, micro_batch: int | None = None) -> Path:
    """Runs a config to its end, or on from where a checkpoint in ``out`` stands; returns the checkpoint's path.

    ``micro_batch`` is the most images a process takes at once; the rest of its share is accumulated. BatchNorm and the loss's
    correlation are taken over each micro-batch (of all processes), so it is a property of the run and is logged.

    Raises:
        DataError: unreadable or too few images. FloatingPointError: a loss that is not finite. Interrupted: after a signal.
    """
    if config.precision == "fp16" and device == "cpu":
        raise ValueError("precision fp16 needs a GPU; on a CPU take --set precision=bf16 or fp32")
    out.mkdir(parents=True, exist_ok=True)
    images = ImageFolder(data)
    steps = steps_per_epoch(len(images), config)
    share, remainder = divmod(config.batch_size, distributed.world_size())
    micro_batch = min(micro_batch or share, share)
    if remainder or share % micro_batch:
        raise ValueError(
            f"batch_size {config.batch_size} does not split into {distributed.world_size()} processes x micro-batches of {micro_batch}"
        )

    torch.manual_seed(config.seed)
    method = method_of(config)
    model = method.build(config).to(device).train()
    optimizer = make_optimizer(model, config)
    scaler = torch.amp.GradScaler(enabled=config.precision == "fp16")
    step = _resume(out, model, method, optimizer, scaler, config)
    wrapped = model
    if distributed.world_size() > 1:
        wrapped = nn.parallel.DistributedDataParallel(
            model, device_ids=None if device == "cpu" else [torch.cuda.current_device()], broadcast_buffers=False
        )
    interrupted = _listen()
    log = Log(out, config, steps, step)
    save = {"optimizer": optimizer, "scaler": scaler}

    while step < config.epochs * steps:
        epoch = step // steps
        batches = epoch_batches(images, epoch, step % steps, micro_batch, config, workers)
        for micro in _grouped(batches, share // micro_batch):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step / steps, config)
            loss = _accumulate(wrapped, scaler, micro, epoch, config, device)
            scaler.unscale_(optimizer)
            # A limit of infinity multiplies by 1 and measures the norm.
            norm = nn.utils.clip_grad_norm_(model.parameters(), math.inf if config.clip_norm is None else config.clip_norm)
            if not distributed.all_finite(loss) or (not distributed.all_finite(norm) and not scaler.is_enabled()):
                raise FloatingPointError(
                    f"the loss is {loss.item()} at step {step}; images {[str(images.paths[i]) for i in micro[0].index[:3].tolist()]} …"
                )
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
            step += 1
            model.after_step(step / (config.epochs * steps))
            log.step(step, loss, norm, optimizer.param_groups[0]["lr"])
            if interrupted:
                _save(out, model, method, config, step, steps, save)
                raise Interrupted(f"saved at step {step} on {interrupted[0]}; start again to go on")
        if step % steps == 0:
            _save(out, model, method, config, step, steps, save)
    if not (out / checkpoint.NAME).exists():
        _save(out, model, method, config, step, steps, save)
    return out / checkpoint.NAME


class Interrupted(Exception):
    """A signal asked the run to stop; a checkpoint was saved."""


def _accumulate(model: nn.Module, scaler: Any, micro: list[views.Cut], epoch: int, config: PretrainConfig, device: str) -> Tensor:
    """Forward and backward of one optimiser step; the mean loss, detached."""
    total = torch.zeros((), device=device)
    dtype = PRECISIONS.get(config.precision)
    for number, crops in enumerate(micro, 1):
        batch = views.finish(_to(crops, device), epoch, config)
        last = number == len(micro)
        with contextlib.nullcontext() if last or distributed.world_size() == 1 else model.no_sync():
            with torch.autocast(torch.device(device).type, dtype=dtype, enabled=dtype is not None):
                loss = model(batch).loss / len(micro)
            scaler.scale(loss).backward()
        total += loss.detach()
    return total


def _to(crops: views.Cut, device: str) -> views.Cut:
    return views.Cut(*(getattr(crops, field.name).to(device, non_blocking=True) for field in dataclasses.fields(crops)))


def _grouped(items: Any, size: int) -> Any:
    group = []
    for item in items:
        group.append(item)
        if len(group) == size:
            yield group
            group = []


def _save(out: Path, model: nn.Module, method: ModuleType, config: PretrainConfig, step: int, steps: int, parts: dict[str, Any]) -> None:
    if distributed.rank() == 0:
        states = {name: part.state_dict() for name, part in parts.items()}
        checkpoint.save(out, model, method, config, epoch=step // steps, step=step, **states)


def _resume(out: Path, model: nn.Module, method: ModuleType, optimizer: Any, scaler: Any, config: PretrainConfig) -> int:
    """Loads the newest whole checkpoint, if there is one; the step to go on with. Raises ValueError for one of another config."""
    saved = checkpoint.load_newest(out)
    if saved is None:
        return 0
    other = [name for name, value in config.to_json().items() if json.dumps(saved["config"].get(name)) != json.dumps(value)]
    if other:
        raise ValueError(f"{out} holds a run with another {', '.join(other)}; choose another --out or the same settings")
    model.load_state_dict(method.from_official(saved["model"], list(model.state_dict())))
    optimizer.load_state_dict(saved["optimizer"])
    scaler.load_state_dict(saved["scaler"])
    return saved["step"]


def _listen() -> list[str]:
    """A list that SIGTERM and SIGUSR2 put their name into."""
    heard: list[str] = []
    for name in ("SIGTERM", "SIGUSR2"):
        signal.signal(getattr(signal, name), lambda *_, name=name: heard.append(name))
    return heard


def configure(preset: str, assignments: list[str]) -> PretrainConfig:
    """A preset with ``NAME=VALUE`` overrides (``clip_norm=null``: no clipping). Raises ValueError listing the legal names for an unknown one."""
    config = PRESETS[preset]
    values = {}
    for text in assignments:
        name, separator, value = text.partition("=")
        if not separator or name not in config.to_json():
            raise ValueError(f"unknown setting {text!r}; write NAME=VALUE with one of {', '.join(config.to_json())}")
        example = getattr(PAPER, name)  # clip_norm may be None, here not
        try:
            parsed = value if isinstance(example, str) else json.loads(value.lower())
            if parsed is None and name == "clip_norm":
                values[name] = None
            else:
                values[name] = tuple(parsed) if isinstance(example, tuple) else type(example)(parsed)
        except (ValueError, TypeError) as error:
            raise ValueError(f"{name} takes a value like {example!r}, not {value!r}") from error
    return dataclasses.replace(config, **values)


def main(argv: list[str] | None = None) -> int:
    """0 done, 2 bad input, 75 stopped by a signal after saving."""
    parser = argparse.ArgumentParser(
        prog="python -m pretrain.train", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of images, one folder a class (the classes are not used)")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--preset", choices=sorted(PRESETS), default="paper")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="override one setting, for example epochs=400")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda (default: auto)")
    parser.add_argument("--workers", type=int, default=0, help="data loading processes (default: 0)")
    parser.add_argument("--micro-batch", type=int, help="most images a process takes at once (default: its whole share)")
    parser.add_argument("--init-only", action="store_true", help="write the randomly initialised checkpoint and stop")
    arguments = parser.parse_args(argv)
    cuda = torch.cuda.is_available() if arguments.device == "auto" else arguments.device == "cuda"
    if "WORLD_SIZE" in os.environ:
        dist.init_process_group("nccl" if cuda else "gloo")
        if cuda:
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    try:
        config = configure(arguments.preset, arguments.set)
        if arguments.init_only:
            arguments.out.mkdir(parents=True, exist_ok=True)
            torch.manual_seed(config.seed)
            method = method_of(config)
            path = checkpoint.save(arguments.out, method.build(config), method, config, epoch=0, step=0)
        else:
            path = train(config, arguments.data, arguments.out, "cuda" if cuda else "cpu", arguments.workers, arguments.micro_batch)
    except (ValueError, DataError, OSError, FloatingPointError) as error:
        print(f"pretrain.train: {error}", file=sys.stderr)
        return 2
    except Interrupted as stop:
        print(f"pretrain.train: {stop}", file=sys.stderr)
        return EXIT_INTERRUPTED
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
    print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
