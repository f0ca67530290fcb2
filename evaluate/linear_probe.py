"""Linear probe on ImageNet (column LIN of the SiameseIM table).

Protocol (SiameseIM's and MAE's main_linprobe.py): the encoder is frozen; single-draw random resized crop and flip; batch norm without
affine, then a linear layer; LARS at batch 16384, 90 epochs. Read-out: what the encoder's method recommends: mean of patch tokens then a
LayerNorm without parameters (SiameseIM), or the class token after the final norm (MAE, MoCo-v3, DINO). The last epoch counts.
Test: Resize 256 bicubic, CenterCrop 224. Metrics: top1 (the column), top5; accuracy of val in percent.
--preset moco, simsiam, moco_v3 (ResNet-50) and moco_v3_vit are the protocols of those papers, mae_large MAE's for ViT-L and ViT-H; in
run_all.py: --set linear_probe.preset=moco. --set views=cached is LIN fast (task linear_fast of run_all.py), another protocol: the same
head on features of the test crop, computed once, without augmentation.
Cost: 90 forward passes over train, about 40 GPU-hours (V100) for ViT-B; cached: one pass, then minutes on a GPU. Toy world: seconds.

    python -m evaluate.linear_probe --ckpt FILE --data-root DIR
"""

import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from timm.layers import trunc_normal_
from torch import nn

from evaluate.classification import features, metrics, setup
from evaluate.classification.schedules import step_decay, warmup_cosine
from evaluate.data.loader import Images, batches
from evaluate.data.transforms import RandomCropFlip, SingleDrawCropFlip, normalise
from evaluate.harness.task import main
from evaluate.runtime import distributed, precision, training_state
from evaluate.runtime.env import Env
from evaluate.runtime.lars import LARS
from evaluate.runtime.progress import track
from evaluate.runtime.seeding import seed_global

BATCH_NORM_EPS, HEAD_STD = 1e-6, 0.01
CROPS = {"single_draw": SingleDrawCropFlip, "torchvision": RandomCropFlip}
SCHEDULES = ("cosine", "cosine_by_epoch", "steps")
CHOICES = {"views": ("augmented", "cached"), "crop": tuple(CROPS), "schedule": SCHEDULES, "optimiser": ("lars", "larc", "sgd")}


@dataclass(frozen=True)
class Config:
    """The protocol's numbers: SiameseIM's configs/linprobe for ViT-B."""

    img_size: int = 224  # pixels, side of the crop
    resize: int = 256  # pixels, short side before the test crop
    interpolation: str = "bicubic"
    views: str = "augmented"  # of the training images; cached: their test crop, LIN fast
    crop: str = "single_draw"  # torchvision: its RandomResizedCrop, which draws again until the crop fits
    pooling: str | None = None  # "cls" or "mean"; None: what the encoder's method recommends
    batch_norm: bool = True  # without affine, before the linear layer
    epochs: int = 90
    warmup_epochs: int = 10
    schedule: str = "cosine"  # at every step; cosine_by_epoch; steps: a tenth from each of the milestones on
    milestones: tuple[int, ...] = ()  # epochs
    batch_size: int = 16384  # images an optimiser step, over all processes and micro-batches
    micro_batch: int = 512  # images a process in one forward pass, and of one batch-norm statistic, as on the official 32 GPUs
    base_lr: float = 0.1  # at 256 images; the rate is base_lr * batch_size / 256 = 6.4
    optimiser: str = "lars"  # larc: biases are scaled too; sgd: with momentum
    momentum: float = 0.9
    weight_decay: float = 0.0
    trust: float = 0.001  # LARS
    precision: str = "auto"  # of the frozen pass: fp16 on CUDA, fp32 on a CPU; or fp32, bf16, fp16
    allowed_bad_images: int = 0  # so many of the evaluated images may be unreadable and are left out; the record names them

    def __post_init__(self) -> None:
        if self.epochs <= self.warmup_epochs:
            raise ValueError(f"epochs {self.epochs} must exceed warmup_epochs {self.warmup_epochs}")
        for name, legal in CHOICES.items():
            if getattr(self, name) not in legal:
                raise ValueError(f"{name} is one of {', '.join(legal)}, not {getattr(self, name)!r}")
        if (self.schedule == "steps") != bool(self.milestones):
            raise ValueError(f"milestones {self.milestones} belong to schedule=steps, and to no other")
        precision.resolve(self.precision, "cpu")


# what MoCo, SimSiam and MoCo-v3 share: no batch norm, torchvision's crop, bilinear, a rate that changes once an epoch
PLAIN = Config(interpolation="bilinear", crop="torchvision", batch_norm=False, warmup_epochs=0, schedule="cosine_by_epoch")
MOCO_V3 = replace(PLAIN, optimiser="sgd", batch_size=1024, micro_batch=128)
PRESETS = {
    "paper": Config(),
    "mae_large": Config(epochs=50),  # ViT-L and ViT-H
    "moco": replace(  # v1 and v2
        PLAIN, optimiser="sgd", base_lr=30.0, batch_size=256, micro_batch=256, epochs=100, schedule="steps", milestones=(60, 80)
    ),
    "simsiam": replace(PLAIN, optimiser="larc", batch_size=4096),
    "moco_v3": MOCO_V3,
    "moco_v3_vit": replace(MOCO_V3, base_lr=3.0),
    "demo": Config(
        img_size=32, resize=32,  # the toy world's images
        epochs=10, warmup_epochs=1,  # some ten seconds on one core
        batch_size=128, micro_batch=128, base_lr=12.8,  # more steps at the paper's rate of 6.4
    ),
}  # fmt: skip


def reads(config: Config) -> tuple[str, ...]:
    """Names of the data sets."""
    return ("imagenet",)


def run(encoder: Any, config: Config, env: Env) -> dict[str, float]:
    """top1 and top5 of the last epoch, in percent; raises Skip without ImageNet."""
    kind = features.pooling_of(encoder, config.pooling)
    what = setup.setting(encoder, config, env, *setup.sets(encoder, config, env), kind)
    seed_global(env.device, env.seed, "head")
    head = make_head(encoder.spec.embed_dim, len(what.train.classes), config.batch_norm).to(env.device)
    fit(head, encoder, kind, what, config, env)
    correct = outcomes(head, encoder, kind, what, config, env)
    norm = "BatchNorm without affine + " if config.batch_norm else ""
    protocol = {"pooling": kind, "head": f"{norm}linear", "optimiser": config.optimiser, "augmented": config.views == "augmented"}
    if config.views == "cached":
        protocol["other_protocol"] = "LIN fast: on features of the test crop, without augmentation"
    return setup.report(env, what, correct, **protocol)


def make_head(width: int, classes: int, batch_norm: bool = True) -> nn.Sequential:
    """Batch norm without affine and a linear layer, initialised as the official code does."""
    linear = nn.Linear(width, classes)
    trunc_normal_(linear.weight, std=HEAD_STD)
    nn.init.zeros_(linear.bias)
    return nn.Sequential(nn.BatchNorm1d(width, affine=False, eps=BATCH_NORM_EPS) if batch_norm else nn.Identity(), linear)


def make_optimiser(head: nn.Module, config: Config) -> torch.optim.Optimizer:
    """LARS, LARC (LARS on every tensor) or SGD; the rate is set at every step."""
    if config.optimiser == "sgd":
        return torch.optim.SGD(head.parameters(), lr=0.0, momentum=config.momentum, weight_decay=config.weight_decay)
    return LARS(head.parameters(), 0.0, config.weight_decay, config.momentum, config.trust, vectors=config.optimiser == "larc")


def rate(epoch: float, config: Config, peak: float) -> float:
    """The learning rate at a fractional epoch."""
    if config.schedule == "steps":
        return step_decay(epoch, config.milestones, peak)
    epoch = math.floor(epoch) if config.schedule == "cosine_by_epoch" else epoch
    return warmup_cosine(epoch, config.warmup_epochs, config.epochs, peak)


def fit(head: nn.Module, encoder: Any, kind: str, what: setup.Setting, config: Config, env: Env) -> None:
    """Trains the head in place to the last epoch; goes on from the last finished epoch of an interrupted run of the same identity."""
    optimizer = make_optimiser(head, config)
    state = training_state.load(env.out_dir, what.identity)
    if state:
        head.load_state_dict(state["head"], strict=True)
        optimizer.load_state_dict(state["optimizer"])
        what = replace(what, draws=replace(what.draws, first_step=state["step"]))
    draws = what.draws
    peak = config.base_lr * draws.batch / 256
    inputs = inputs_of_training(encoder, kind, what, config, env)
    total = torch.zeros((), device=env.device)
    head.train()
    for step in track(range(draws.first_step, draws.steps), "linear probe"):
        optimizer.param_groups[0]["lr"] = rate(step / draws.steps_per_epoch, config, peak)
        for _ in range(draws.chunks_per_step):
            tokens, labels = next(inputs)
            loss = nn.functional.cross_entropy(head(tokens), labels, reduction="sum") / draws.batch
            loss.backward()
            total += loss.detach()
        distributed.sum_gradients(list(head.parameters()))
        optimizer.step()
        optimizer.zero_grad()
        if (step + 1) % draws.steps_per_epoch == 0:
            setup.check_finite(total, step // draws.steps_per_epoch, "the linear probe")
            if draws.rank == 0:
                training_state.save(env.out_dir, what.identity, {"head": head.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1})
    distributed.broadcast(list(head.buffers()))


def inputs_of_training(encoder: Any, kind: str, what: setup.Setting, config: Config, env: Env) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """What the head sees, (B, D), and labels (B,), a micro-batch at a time: of augmented images, or of the cached test crops."""
    spec = encoder.spec
    if config.views == "cached":
        tokens = features.extract(encoder, what.train, what.test, env, what.arithmetic).tokens(kind)
        labels = torch.from_numpy(what.train.labels)
        for draw in what.draws:
            chosen = torch.tensor([index for _, index in draw])
            with torch.no_grad():
                seen = features.read_out(encoder, kind, tokens[chosen].to(env.device))
            yield seen, labels[chosen].to(env.device)
        return
    crop = CROPS[config.crop](config.img_size, config.interpolation, env.seed)
    for pixels, labels in batches(Images(what.train, crop), what.draws, env.workers):
        with torch.no_grad():
            with precision.autocast(what.arithmetic, env.device):
                cls, mean = features.forward(encoder, normalise(pixels, spec.mean, spec.std, env.device))
            tokens = features.read_out(encoder, kind, (cls if kind == "cls" else mean)[:, -1].float())
        yield tokens, labels.to(env.device)


def outcomes(head: nn.Module, encoder: Any, kind: str, what: setup.Setting, config: Config, env: Env) -> dict[str, torch.Tensor]:
    """Whether each image of val is right, bool (n,), by metric."""
    found = features.extract(encoder, what.val, what.test, env, what.arithmetic, allowed_bad=config.allowed_bad_images)
    tokens, labels = found.tokens(kind), torch.from_numpy(found.labels)
    env.report(unreadable_images={"val": found.unreadable})
    with torch.inference_mode():
        logits = head.eval()(features.read_out(encoder, kind, tokens.to(env.device))).cpu()
    return {f"top{k}": metrics.correct_at(logits, labels, k) for k in (1, 5)}


if __name__ == "__main__":
    sys.exit(main("linear_probe"))
