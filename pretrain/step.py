"""A run's model, and forward and backward of one optimizer step, over its micro-batches and all processes."""

import contextlib
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from evaluate.runtime.precision import allow_tf32
from pretrain import distributed
from pretrain.config import PretrainConfig
from pretrain.data import views
from pretrain.data.loader import Step
from pretrain.faults import Culprits
from pretrain.methods import Method, method_of

# of the factors of products under autocast
PRECISIONS = {"bf16": torch.bfloat16, "bf16_products": torch.bfloat16, "fp16": torch.float16}


def start_model(config: PretrainConfig, device: str) -> Method:
    """The model with its random start, in training mode on the device, and in the precision of the config."""
    allow_tf32(config.precision == "tf32")
    model = method_of(config).build(config).to(device).train()
    if config.precision == "bf16_products":
        keep_float32(model)
    return model


def keep_float32(model: nn.Module) -> None:
    """Lets all layers whose products autocast shortens give float32; attention gives what it gets."""
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            module.register_forward_hook(_as_float32)


def _as_float32(layer: nn.Module, inputs: Any, output: Tensor) -> Tensor:
    return output.float()


def accumulate(model: nn.Module, scaler: Any, batch: Step, config: PretrainConfig, device: str) -> Tensor:
    """Adds up the gradients of a step; the mean loss of this process, detached."""
    total = torch.zeros((), device=device)
    for number, crops in enumerate(batch.micro, 1):
        last = number == len(batch.micro)
        with model.no_sync() if isinstance(model, distributed.DataParallel) and not last else contextlib.nullcontext():
            loss = _loss(model, crops, batch.epoch, config, device) / len(batch.micro)
            scaler.scale(loss).backward()
        total += loss.detach()
    return total


def seed(config: PretrainConfig, step: int) -> int:
    """Of the model's own random choices (drop path) in a step, so that a resumed one makes the same."""
    return int(np.random.SeedSequence([config.seed, step, distributed.rank()]).generate_state(1)[0])


def find_culprits(
    model: nn.Module, batch: Step, config: PretrainConfig, device: str, finite_loss: bool
) -> Culprits | None:
    """The images of this process that a step which is not finite comes from, as far as it can tell.

    BatchNorm and the correlation carry a fault from one process to all, so each looks at its micro-batches again,
    without the others.
    """
    plain = getattr(model, "module", model)
    with distributed.single_process(), torch.no_grad():
        sure = [crops for crops in batch.micro if not torch.isfinite(_loss(plain, crops, batch.epoch, config, device))]
    finite_gradient = isinstance(model, distributed.DataParallel) and model.is_finite()
    if not sure and finite_loss and finite_gradient:
        return None
    return Culprits(distributed.rank(), torch.cat([crops.index for crops in sure or batch.micro]).tolist(), bool(sure))


def _loss(model: nn.Module, crops: views.Crops, epoch: int, config: PretrainConfig, device: str) -> Tensor:
    batch = views.augment(crops.to(device), epoch, config)
    dtype, kind = PRECISIONS.get(config.precision), torch.device(device).type
    # For towers that are not ours (CLIP's): see pretrain.attention.is_explicit
    attention = sdpa_kernel(SDPBackend.MATH) if dtype and kind == "cpu" else contextlib.nullcontext()
    with torch.autocast(kind, dtype=dtype, enabled=dtype is not None), attention:
        return model(batch).loss
