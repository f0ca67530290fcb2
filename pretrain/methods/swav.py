"""SwAV: predict the cluster of one view from the image's other views, large and small (arXiv 2006.09882).

    all views ─ backbone ─ projection head ─ normalized z ─ prototypes ─▶ scores ┐ cross-entropy of each view's scores
    two large views ── scores of all images ── Sinkhorn, no gradient ───▶ q ─────┘ against q of each other large view

Sinkhorn spreads the images evenly over the prototypes; a run of small batches adds the scores of earlier images, which
wait in a queue. Here BatchNorm is over all processes: the released code's is over groups of 8 GPUs, or of all 4. The
names are those of the released code. Axes: B batch, V views, D width, K prototypes.
"""

import itertools
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor, nn

from evaluate.runtime.settings import Probability
from pretrain import distributed
from pretrain.config import RESNET_DEMO, ResNetConfig, Share
from pretrain.convnet import Backbone, at_least_float32, hidden
from pretrain.data.views import Batch
from pretrain.methods import Method
from pretrain.names import from_official_names


@dataclass(frozen=True)
class Config(ResNetConfig):
    """SwAV's run of 800 epochs; the defaults are those of the released scripts."""

    method: Literal["swav"] = "swav"
    """The file of pretrain/methods/. A preset chooses it."""
    small_views: NonNegativeInt = 6
    """Small views of an image, besides the two large ones."""
    small_size: PositiveInt = 96
    """Side of a small view, in pixels."""
    small_scale: tuple[Share, Share] = (0.05, 0.14)
    """Smallest and largest area of a small view's crop, as a share of the image."""
    hidden_mlp: PositiveInt = 2048
    """Width of the projection head's hidden layer."""
    dim: PositiveInt = 128
    """Width of what is compared with the prototypes."""
    num_prototypes: PositiveInt = 3000
    """Prototypes."""
    temperature: PositiveFloat = 0.1
    """What the scores are divided by."""
    epsilon: PositiveFloat = 0.05
    """What the scores are divided by for the assignments."""
    sinkhorn_iterations: PositiveInt = 3
    """Rounds of the Sinkhorn algorithm."""
    freeze_prototypes_iterations: NonNegativeInt = 313
    """Steps in which the prototypes are not trained."""
    queue_length: NonNegativeInt = 0
    """Earlier images that take part in the assignments; 0: none."""
    queue_epochs: NonNegativeInt = 15
    """Epochs before the queue begins to fill."""

    crop_scale: tuple[Share, Share] = (0.14, 1.0)
    interpolation: Literal["bicubic", "bilinear"] = "bilinear"
    jitter: tuple[NonNegativeFloat, NonNegativeFloat, NonNegativeFloat, NonNegativeFloat] = (0.8, 0.8, 0.8, 0.2)
    blur_probability: tuple[Probability, Probability] = (0.5, 0.5)
    solarize_probability: tuple[Probability, Probability] = (0.0, 0.0)
    std: tuple[PositiveFloat, PositiveFloat, PositiveFloat] = (0.228, 0.224, 0.225)
    """Standard deviation of red, green and blue, by which pixels are divided; the first is the released code's."""
    epochs: PositiveInt = 800
    warmup_epochs: NonNegativeFloat = 10.0
    warmup_lr: NonNegativeFloat = 0.3
    warmup_inclusive: bool = True
    base_lr: PositiveFloat = 4.8
    lr_scaling: Literal["linear", "sqrt", "none"] = "none"
    min_lr: NonNegativeFloat = 0.0048
    optimizer: Literal["adamw", "sgd", "lars", "larc"] = "larc"
    weight_decay: NonNegativeFloat = 1e-6
    decayed: Literal["all", "matrices"] = "all"
    clip_norm: PositiveFloat | None = None


PAPER = Config()
SMALL_BATCH = replace(PAPER, batch_size=256, warmup_epochs=0.0, warmup_lr=0.0, base_lr=0.6, min_lr=0.0006)
# With LARC and the paper's epsilon the loss stays at that of a guess for 200 steps and more.
SWAV_DEMO: dict[str, Any] = RESNET_DEMO | {
    **{"optimizer": "lars", "base_lr": 1.0, "warmup_lr": 0.0, "min_lr": 0.001, "epsilon": 0.03},
    **{"small_views": 2, "small_size": 24},
    **{"small_scale": (0.2, 0.4), "hidden_mlp": 128, "dim": 32, "num_prototypes": 24},
    **{"freeze_prototypes_iterations": 30, "queue_length": 128, "queue_epochs": 1},
}
PRESETS = {
    "paper": PAPER,
    **{f"{epochs}ep": replace(PAPER, epochs=epochs) for epochs in (100, 200, 400, 800)},
    "400ep_bs256": replace(SMALL_BATCH, epochs=400, queue_length=3840, freeze_prototypes_iterations=5005),
    "demo": replace(PAPER, **SWAV_DEMO),
}


@dataclass(frozen=True)
class Outputs:
    """What one forward pass makes: loss (); embedding (V B, D) and scores (V B, K), view after view; prototypes (K, D)
    of unit length; assignments (B, K) of the two large views."""

    loss: Tensor
    embedding: Tensor
    scores: Tensor
    prototypes_normalised: Tensor
    assignment1: Tensor
    assignment2: Tensor


class SwAV(Method):
    """Model and loss of one training step."""

    queue: Tensor

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        self.backbone = Backbone(config, zero_init_residual=False)
        head = hidden([self.backbone.width, config.hidden_mlp], bias=True)
        self.projection_head = nn.Sequential(*head, nn.Linear(config.hidden_mlp, config.dim))
        self.prototypes = nn.Linear(config.dim, config.num_prototypes, bias=False)
        if config.queue_length:
            self.register_buffer("queue", torch.zeros(2, config.queue_length, config.dim))

    def before_step(self, step: int) -> None:
        """The prototypes stay at their random start at first."""
        if step < self.config.freeze_prototypes_iterations:
            self.prototypes.weight.grad = None

    def after_step(self, step: int, total: int) -> None:
        """Empties the queue as long as it is not to fill."""
        if self.config.queue_length and step * self.config.epochs <= total * self.config.queue_epochs:
            self.queue.zero_()

    def features(self, images: Tensor) -> Tensor:
        """The backbone's features (B, D) of whole images (B, 3, H, W)."""
        return self.backbone(images).float()

    def forward(self, batch: Batch) -> Outputs:
        """Views of one size are one batch for the backbone, and all views are one for the head."""
        assert batch.view2 is not None
        count = len(batch.view1)
        with torch.no_grad():
            self.prototypes.weight.copy_(F.normalize(self.prototypes.weight, dim=1))
        features = [self.backbone(torch.cat([batch.view1, batch.view2]))]
        if batch.small is not None:
            features.append(self.backbone(batch.small.transpose(0, 1).flatten(0, 1)))
        projection = self.projection_head(torch.cat(features))
        with torch.autocast(projection.device.type, enabled=False):
            embedding = F.normalize(at_least_float32(projection), dim=1)
            scores = self.prototypes(embedding)
            logs = [F.log_softmax(part / self.config.temperature, dim=1) for part in scores.split(count)]
            assignments = [self._assign(number, embedding[number * count :][:count]) for number in range(2)]
            terms = [
                -(assignment * log).sum(1).mean()
                for (number, assignment), (view, log) in itertools.product(enumerate(assignments), enumerate(logs))
                if number != view
            ]
            loss = torch.stack(terms).mean()
        return Outputs(loss, embedding, scores, self.prototypes.weight.detach().clone(), *assignments)

    @torch.no_grad()
    def _assign(self, number: int, embedding: Tensor) -> Tensor:
        """Assignments (B, K) of large view ``number`` of this process, from embeddings (B, D) of all processes and the
        queue, which the embeddings then join in front.

        Nobody looks whether the queue is full: until then its rows are there and count nothing.
        """
        everyones, first = distributed.gather_rows(embedding.detach())
        rows, counted = everyones, torch.ones_like(everyones[:, 0], dtype=torch.bool)
        if self.config.queue_length:
            waiting = self.queue[number]
            rows, counted = torch.cat([waiting, rows]), torch.cat([waiting[-1].any().expand(len(waiting)), counted])
            self.queue[number] = torch.cat([everyones, waiting])[: self.config.queue_length]
        scores = self.prototypes(rows)
        found = sinkhorn(scores / self.config.epsilon, counted, self.config.sinkhorn_iterations)
        return found[len(rows) - len(everyones) + first :][: len(embedding)]


def sinkhorn(logits: Tensor, counted: Tensor, iterations: int) -> Tensor:
    """Assignments (B, K) from logits (B, K): exp(logits), with each column scaled to the sum B / K and then each row to
    1, so many times. Rows that are not ``counted`` (B,) are as if they were not there, and 0."""
    counted = counted[:, None]
    count = counted.sum()
    found = torch.exp(logits) * counted
    found = found / found.sum()
    for _ in range(iterations):
        found = found / found.sum(0, keepdim=True) / found.shape[1]
        found = found / torch.where(counted, found.sum(1, keepdim=True), 1) / count
    return found * count


def build(config: Config) -> SwAV:
    """The model, from torch's global generator."""
    return SwAV(config)


def to_official(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The names of the released code, whose encoder has no prefix."""
    return {name.removeprefix("backbone."): tensor for name, tensor in state.items()}


def from_official(state: dict[str, Tensor], names: list[str]) -> dict[str, Tensor]:
    """Back to a state dict of the given names. Raises ValueError naming keys that are absent or left over."""
    return from_official_names(state, {name: name.removeprefix("backbone.") for name in names})
