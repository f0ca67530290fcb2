"""The one training loop of the ImageNet tasks: it goes on from a saved state, and saves after each epoch."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch

from evaluate.classification.sampler import BatchSampler
from evaluate.classification.setup import Setup
from evaluate.runtime import curves, distributed, training_state
from evaluate.runtime.env import Env
from evaluate.runtime.errors import UserError
from evaluate.runtime.progress import track

Batch = Any  # what a task's own batches are


def train(
    label: str,
    setup: Setup,
    env: Env,
    parts: Mapping[str, Any],
    batches: Callable[[BatchSampler], Iterator[Batch]],
    rate: Callable[[float], float],
    step: Callable[[int, int, Batch], torch.Tensor],
) -> None:
    """Trains in place to the last epoch; goes on from the last finished epoch of an interrupted run of the same
    identity.

    Args: label: what is trained, for the progress and for errors. parts: what has a ``state_dict`` and is saved, by
        name; ``optimizer`` is one of them, ``scaler`` may be. batches: the micro-batches of all steps that a sampler
        still has. rate: the learning rate at a fractional epoch; a parameter group's ``scale`` multiplies it. step:
        from the step's number, the micro-batch's number in it and the micro-batch to its loss, after the backward pass.
        It clears
            the gradients at micro-batch 0 and adds them up over processes at the last one.

    Raises:
        UserError: the loss of an epoch is not finite (the state of the epoch before stays), or processes that do not
            see the same folder.
    """
    sampler = setup.sampler
    state = training_state.load(env.out_dir, setup.identity)
    distributed.require_same(
        state["step"] if state else 0,
        f"not every process finds the same saved state in {env.out_dir}; give all of them the same output folder",
    )
    if state:
        for name, part in parts.items():
            part.load_state_dict(state[name])
        sampler = replace(sampler, first_step=state["step"])
    optimizer, scaler = parts["optimizer"], parts.get("scaler")
    if sampler.rank == 0:
        curves.begin(env.out_dir, sampler.first_step)
    total = torch.zeros((), device=env.device)  # of the losses of an epoch, read only at its end
    apart = math.ceil(sampler.steps / sampler.steps_per_epoch / curves.MOST)  # epochs between points of the curve
    micro_batches = iter(batches(sampler))

    def words() -> str:
        return f"loss {loss.item() * sampler.micro_batches:.3f}"  # that of a micro-batch is its share of the step's

    for number in track(range(sampler.first_step, sampler.steps), label, first=sampler.first_step, metric=words):
        now = rate(number / sampler.steps_per_epoch)
        for group in optimizer.param_groups:
            group["lr"] = now * group.get("scale", 1.0)
        for part in range(sampler.micro_batches):
            loss = step(number, part, next(micro_batches)).detach()
            total += loss
        if scaler is None:
            optimizer.step()
        else:
            scaler.step(optimizer)
            scaler.update()
        if (number + 1) % sampler.steps_per_epoch == 0:
            summed = total.item()  # the one wait for it
            if not math.isfinite(summed):
                remedy = "lower --set base_lr, or --set precision=fp32 if it was fp16"
                raise UserError(
                    f"{label} diverged: the loss is not finite in epoch {number // sampler.steps_per_epoch}; {remedy}"
                )
            if sampler.rank == 0:
                epoch = (number + 1) // sampler.steps_per_epoch
                if epoch % apart == 0 or number + 1 == sampler.steps:  # before the state, so that none lacks its point
                    curves.append(env.out_dir, number + 1, epoch=epoch, rate=now, loss=summed / sampler.steps_per_epoch)
                states = {name: part.state_dict() for name, part in parts.items()}
                training_state.save(env.out_dir, setup.identity, {**states, "step": number + 1})
            total.zero_()
