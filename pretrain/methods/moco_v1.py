"""MoCo: tell an image's other view from the views of earlier images, which wait in a queue (arXiv 1911.05722).

    view 1 ─ query encoder ────────────────────────▶ q ┐ cross-entropy of q against its own k and all keys of the queue,
    view 2 ─ key encoder, on the shuffled batch ───▶ k ┘ which k joins then

The key encoder is the query encoder's moving average. BatchNorm sees ``bn_group`` images at a time, and the batch is
shuffled for the keys, so that a query and its key share no statistics: the 8 GPUs of the released run did it so, with
32 images each. One process gives what many give. The names are those of the released code. Axes: B batch, D width of
what is compared, K keys in the queue.
"""

import copy
import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor, nn

from evaluate.runtime.errors import UserError
from evaluate.runtime.settings import Probability
from pretrain import distributed
from pretrain.config import RESNET_DEMO, ResNetConfig, Share
from pretrain.convnet import Backbone, at_least_float32
from pretrain.data.views import Batch
from pretrain.methods import Method
from pretrain.names import from_official as from_official
from pretrain.names import to_official as to_official
from pretrain.norm import GroupedBatchNorm
from pretrain.target import move_towards


@dataclass(frozen=True)
class MoCoConfig(ResNetConfig):
    """What both versions share; the defaults are those of the released code."""

    dim: PositiveInt = 128
    """Width of what is compared."""
    queue_size: PositiveInt = 65536
    """Keys in the queue."""
    momentum: Probability = 0.999
    """Momentum of the key encoder's moving average."""
    temperature: PositiveFloat = 0.07
    """What the similarities are divided by."""
    bn_group: PositiveInt = 32
    """Images that BatchNorm normalizes together; each process's share of a step is a multiple of it."""

    crop_scale: tuple[Share, Share] = (0.2, 1.0)
    interpolation: Literal["bicubic", "bilinear"] = "bilinear"
    jitter: tuple[NonNegativeFloat, NonNegativeFloat, NonNegativeFloat, NonNegativeFloat] = (0.4, 0.4, 0.4, 0.4)
    solarize_probability: tuple[Probability, Probability] = (0.0, 0.0)
    epochs: PositiveInt = 200
    warmup_epochs: NonNegativeFloat = 0.0
    batch_size: PositiveInt = 256
    base_lr: PositiveFloat = 0.03
    lr_changes: Literal["step", "epoch"] = "epoch"
    optimizer: Literal["adamw", "sgd", "lars", "larc"] = "sgd"
    weight_decay: NonNegativeFloat = 1e-4
    decayed: Literal["all", "matrices"] = "all"
    clip_norm: PositiveFloat | None = None
    precision: Literal["fp32", "bf16_products", "bf16", "fp16"] = "fp32"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.batch_size > self.queue_size:
            raise ValueError(f"queue_size {self.queue_size} is less than batch_size {self.batch_size}; raise it")
        if self.batch_size % self.bn_group:
            raise ValueError(f"batch_size {self.batch_size} is not a multiple of bn_group {self.bn_group}")


@dataclass(frozen=True)
class Config(MoCoConfig):
    """MoCo v1's run of 200 epochs."""

    method: Literal["moco_v1"] = "moco_v1"
    """The file of pretrain/methods/. A preset chooses it."""

    jitter_probability: Probability = 1.0
    gray_first: bool = True
    blur_probability: tuple[Probability, Probability] = (0.0, 0.0)
    lr_schedule: Literal["cosine", "steps"] = "steps"


PAPER = Config()
# The toy world has few images: a longer queue would hold earlier keys of the query's own image. SGD stays at the loss
# of a queue of equal keys for two epochs, LARS leaves it in the first.
MOCO_DEMO: dict[str, Any] = RESNET_DEMO | {
    **{"optimizer": "lars", "warmup_epochs": 0.0, "dim": 32, "queue_size": 256, "momentum": 0.99, "bn_group": 16}
}
PRESETS = {"paper": PAPER, "200ep": PAPER, "demo": replace(PAPER, **MOCO_DEMO)}


@dataclass(frozen=True)
class Outputs:
    """What one forward pass makes: loss (); query and normalized key (B, D); logits (B, 1 + K), of the own key
    first."""

    loss: Tensor
    query: Tensor
    key_normalised: Tensor
    logits: Tensor


class MoCo(Method):
    """Model and loss of one training step; ``head`` makes the layers from the encoder's width to what is compared."""

    queue: Tensor
    queue_ptr: Tensor

    def __init__(self, config: MoCoConfig, head: Callable[[int], nn.Module]):
        super().__init__()
        self.momentum, self.temperature, self.bn_group = config.momentum, config.temperature, config.bn_group
        norm = functools.partial(GroupedBatchNorm, group=config.bn_group)
        self.encoder_q = Backbone(config, zero_init_residual=False, norm_layer=norm)
        self.encoder_q.fc = head(self.encoder_q.width)
        self.encoder_k = copy.deepcopy(self.encoder_q).requires_grad_(False)
        self.register_buffer("queue", F.normalize(torch.randn(config.dim, config.queue_size), dim=0))
        self.register_buffer("queue_ptr", torch.zeros(1, dtype=torch.long))

    def after_step(self, step: int, total: int) -> None:
        """Moves the key encoder, as the released code does before the keys of the next step."""
        self.update_target(self.momentum)

    def update_target(self, momentum: float) -> None:
        """key encoder = momentum * itself + (1 - momentum) * query encoder."""
        move_towards(self.encoder_k, self.encoder_q, momentum)

    def features(self, images: Tensor) -> Tensor:
        """The query encoder's features (B, D) before the head, of whole images (B, 3, H, W)."""
        return self.encoder_q.features(images).float()

    def forward(self, batch: Batch) -> Outputs:
        """Compares with the queue as it was, and puts the keys of all processes into it. Raises UserError for a batch
        that is no multiple of ``bn_group``."""
        assert batch.view2 is not None
        if len(batch.view1) % self.bn_group:
            raise UserError(
                f"each process takes {len(batch.view1)} images at once, which is not a multiple of bn_group "
                f"{self.bn_group}; change --micro-batch, the number of processes or --set bn_group=N"
            )
        query = self.encoder_q(batch.view1)
        with torch.no_grad():
            keys, first = self._keys(batch.view2)
        with torch.autocast(query.device.type, enabled=False):
            unit = F.normalize(at_least_float32(query), dim=1)
            key = keys[first : first + len(query)]
            own = (unit * key).sum(1, keepdim=True)
            earlier = unit @ self.queue.clone()  # the backward pass needs it as it was
            logits = torch.cat([own, earlier], dim=1) / self.temperature
            loss = F.cross_entropy(logits, torch.zeros(len(query), dtype=torch.long, device=query.device))
        self._enqueue(keys)
        return Outputs(loss, query, key, logits)

    def _keys(self, images: Tensor) -> tuple[Tensor, int]:
        """The normalized keys of all processes' images, and where this process's begin. Each process encodes a part of
        the shuffled global batch."""
        everyones, first = distributed.gather_rows(images.flatten(1))
        shuffle = self.draw_shuffle(len(everyones)).to(images.device, non_blocking=True)
        mine = shuffle[first : first + len(images)]
        keys, _ = distributed.gather_rows(at_least_float32(self.encoder_k(everyones[mine].view(images.shape))))
        return F.normalize(keys[shuffle.argsort()], dim=1), first

    def draw_shuffle(self, count: int) -> Tensor:
        """A permutation of ``count`` images, the same in all processes."""
        return distributed.from_rank_zero(torch.randperm(count))

    @torch.no_grad()
    def _enqueue(self, keys: Tensor) -> None:
        size = self.queue.shape[1]
        self.queue[:, (self.queue_ptr + torch.arange(len(keys), device=keys.device)) % size] = keys.T
        self.queue_ptr.add_(len(keys)).remainder_(size)


def build(config: Config) -> MoCo:
    """The model, from torch's global generator. Its head is one linear layer."""
    return MoCo(config, lambda width: nn.Linear(width, config.dim))
