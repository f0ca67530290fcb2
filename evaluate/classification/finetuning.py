"""End-to-end training of a classifier: mixup and erasing on the batch, layer-wise rates, mixed precision."""

import contextlib
from collections.abc import Callable
from typing import Any

import torch
from timm.data.mixup import Mixup, mixup_target
from timm.data.random_erasing import RandomErasing
from torch import nn

from evaluate.classification import loop
from evaluate.classification.classifier import Classifier
from evaluate.classification.layer_decay import parameter_groups
from evaluate.classification.setup import Setup
from evaluate.data.loader import Images, batches
from evaluate.data.transforms import FinetuneAugmentation, normalize
from evaluate.encoder import timm_models
from evaluate.runtime import compilation, distributed, precision
from evaluate.runtime.env import Env
from evaluate.runtime.seeding import seed_global

Mix = Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


def make_optimizer(model: Classifier, layer_decay: float, weight_decay: float) -> torch.optim.AdamW:
    """AdamW with a learning rate that falls with depth; the loop sets it at every step."""
    spec, named = model.encoder.spec, model.named_timm_parameters()
    if spec.family in ("timm", "own"):  # of a user's class no layers are known
        layers, spared = timm_models.layers(spec.model) if spec.family == "timm" else ({}, set())
        groups = parameter_groups(named, max(layers.values(), default=0) - 1, layer_decay, weight_decay, layers, spared)
    else:
        groups = parameter_groups(named, spec.depth if spec.is_vit else 0, layer_decay, weight_decay)
    # fused, it needs no look at whether the scaled gradient overflowed; on a CPU it would round otherwise
    fused = next(model.parameters()).is_cuda
    return torch.optim.AdamW(
        [{key: group[key] for key in ("params", "weight_decay", "scale")} for group in groups], lr=0.0, fused=fused
    )


def make_mix(
    classes: int,
    device: str,
    *,
    mixup: float,
    cutmix: float,
    switch_prob: float,
    label_smoothing: float,
    erasing_prob: float,
) -> Mix:
    """From a normalized batch and its labels to the batch seen, erased and mixed, and its soft targets (B, C)."""
    erase = RandomErasing(erasing_prob, mode="pixel", device=device)
    if mixup or cutmix:
        mix = Mixup(
            mixup, cutmix, prob=1.0, switch_prob=switch_prob, label_smoothing=label_smoothing, num_classes=classes
        )
        return lambda images, labels: mix(erase(images), labels)
    return lambda images, labels: (erase(images), mixup_target(labels, classes, 1.0, label_smoothing))


def fit(
    model: Classifier,
    setup: Setup,
    env: Env,
    optimizer: torch.optim.Optimizer,
    rate: Callable[[float], float],
    augmentation: FinetuneAugmentation,
    mix: Mix,
) -> None:
    """Trains in place to the last epoch; ``rate`` gives the learning rate at a fractional epoch."""
    spec, sampler = model.encoder.spec, setup.sampler
    scaler = torch.amp.GradScaler(env.device.split(":")[0], enabled=setup.precision == "fp16")
    compilation.compile_module(model, env.compile)
    parallel: nn.Module = nn.parallel.DistributedDataParallel(model) if sampler.world_size > 1 else model
    parallel.train()

    def step(number: int, part: int, batch: Any) -> torch.Tensor:
        if part == 0:
            optimizer.zero_grad(set_to_none=True)
        pixels, labels = batch
        seed_global(env.device, env.seed, "step", number, part, sampler.rank)
        labels = labels.to(env.device, non_blocking=True)
        images, targets = mix(normalize(pixels, spec.mean, spec.std, env.device), labels)
        last = part == sampler.micro_batches - 1
        waits = sampler.world_size > 1 and not last
        with parallel.no_sync() if waits else contextlib.nullcontext():  # type: ignore[operator]  # DDP's
            with precision.autocast(setup.precision, env.device):
                logits = parallel(images)
            # the mean over the step's whole batch: DDP divides by the number of processes
            loss = -(targets * logits.float().log_softmax(dim=1)).sum() * sampler.world_size / sampler.batch
            scaler.scale(loss).backward()
        return loss

    parts = {"model": model, "optimizer": optimizer, "scaler": scaler}
    loop.train(
        "fine-tuning",
        setup,
        env,
        parts,
        lambda left: batches(Images(setup.train, augmentation), left, env.workers),
        rate,
        step,
    )
    distributed.broadcast(list(model.buffers()))  # a ResNet's batch norm: each process has its own running statistics
