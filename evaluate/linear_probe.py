"""Linear probe on ImageNet (column LIN of the SiameseIM table).

Protocol (SiameseIM's and MAE's main_linprobe.py): the encoder is frozen; single-draw random resized crop and flip; batch norm without
affine, then a linear layer; LARS at batch 16384, 90 epochs. Read-out: what the encoder's method recommends: mean of patch tokens then a
LayerNorm without parameters (SiameseIM), or the class token after the final norm (MAE, MoCo-v3, DINO). The last epoch counts.
Test: Resize 256 bicubic, CenterCrop 224. Metrics: top1 (the column), top5; accuracy of val in percent.
Cost: 90 forward passes over train, about 40 GPU-hours (V100) for ViT-B. Toy world: seconds.

    python -m evaluate.linear_probe --ckpt FILE --data-root DIR
"""

import json
import sys
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from timm.layers import trunc_normal_
from torch import nn

from evaluate import distributed, features, metrics, precision, resume
from evaluate.data import layouts
from evaluate.data.imagenet import Images, ImageSet, batches, train_set, val_set
from evaluate.data.transforms import CenterCrop, SingleDrawCropFlip, normalise, seed_global
from evaluate.lars import LARS
from evaluate.progress import track
from evaluate.schedules import Draws, warmup_cosine
from evaluate.task import Env, main

BATCH_NORM_EPS, HEAD_STD = 1e-6, 0.01


@dataclass(frozen=True)
class Config:
    """The protocol's numbers: SiameseIM's configs/linprobe for ViT-B."""

    img_size: int = 224  # pixels, side of the crop
    resize: int = 256  # pixels, short side before the test crop
    interpolation: str = "bicubic"
    pooling: str | None = None  # "cls" or "mean"; None: what the encoder's method recommends
    epochs: int = 90
    warmup_epochs: int = 10
    batch_size: int = 16384  # images an optimiser step, over all processes and micro-batches
    micro_batch: int = 512  # images a process in one forward pass, and of one batch-norm statistic, as on the official 32 GPUs
    base_lr: float = 0.1  # at 256 images; the rate is base_lr * batch_size / 256 = 6.4
    momentum: float = 0.9
    weight_decay: float = 0.0
    trust: float = 0.001  # LARS
    precision: str = "auto"  # of the frozen pass: fp16 on CUDA, fp32 on a CPU; or fp32, bf16, fp16

    def __post_init__(self) -> None:
        if self.epochs <= self.warmup_epochs:
            raise ValueError(f"epochs {self.epochs} must exceed warmup_epochs {self.warmup_epochs}")
        precision.resolve(self.precision, "cpu")


PRESETS = {
    "paper": Config(),
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
    layouts.require(env.data_root, "imagenet")
    features.check_image_size(encoder, config.img_size)
    env.device = distributed.start(env.device)
    train, val = train_set(env.data_root, env.limit), val_set(env.data_root, env.limit)
    kind = features.pooling_of(encoder, config.pooling)
    arithmetic = precision.resolve(config.precision, env.device)
    rank, world = distributed.world()
    draws = Draws(len(train), config.batch_size, config.micro_batch, config.epochs, env.seed, rank, world)
    seed_global(env.device, env.seed, "head")
    head = make_head(encoder.spec.embed_dim, len(train.classes)).to(env.device)
    identity = json.dumps([asdict(config), encoder.fingerprint, train.fingerprint, env.seed, world, arithmetic, kind])
    fit(head, encoder, kind, train, draws, config, env, arithmetic, identity)
    test = CenterCrop(config.img_size, config.resize, config.interpolation)
    tokens = features.extract(encoder, val, test, env, arithmetic).tokens(kind)
    with torch.inference_mode():
        logits = head.eval()(features.read_out(encoder, kind, tokens.to(env.device))).cpu()
    labels = torch.from_numpy(val.labels)
    result = {f"top{k}": metrics.percent(metrics.correct_at(logits, labels, k)) for k in (1, 5)}
    if rank == 0:
        metrics.save_correct(env.out_dir, metrics.correct_at(logits, labels, 1))
        resume.clear(env.out_dir)
    env.report(
        protocol={
            "pooling": kind, "head": "BatchNorm without affine + linear", "optimiser": "LARS", "augmented": True, "batch": draws.batch,
            "epochs": config.epochs, "test_resolution": config.img_size, "precision": arithmetic, "processes": world,
        },
        images_asked={"train": train.asked, "val": val.asked},
        images_evaluated={"train": len(train), "val": len(val)},
        standard_error={name: metrics.standard_error(value, len(val)) for name, value in result.items()},
    )  # fmt: skip
    return result


def make_head(width: int, classes: int) -> nn.Sequential:
    """Batch norm without affine and a linear layer, initialised as the official code does."""
    linear = nn.Linear(width, classes)
    trunc_normal_(linear.weight, std=HEAD_STD)
    nn.init.zeros_(linear.bias)
    return nn.Sequential(nn.BatchNorm1d(width, affine=False, eps=BATCH_NORM_EPS), linear)


def fit(
    head: nn.Module, encoder: Any, kind: str, train: ImageSet, draws: Draws, config: Config, env: Env, arithmetic: str, identity: str
) -> None:
    """Trains the head in place to the last epoch; goes on from the last finished epoch of an interrupted run of the same identity."""
    spec = encoder.spec
    optimizer = LARS(head.parameters(), lr=0.0, weight_decay=config.weight_decay, momentum=config.momentum, trust=config.trust)
    state = resume.load(env.out_dir, identity)
    if state:
        head.load_state_dict(state["head"], strict=True)
        optimizer.load_state_dict(state["optimizer"])
        draws = replace(draws, first_step=state["step"])
    peak = config.base_lr * draws.batch / 256
    loader = iter(batches(Images(train, SingleDrawCropFlip(config.img_size, config.interpolation, env.seed)), draws, env.workers))
    head.train()
    for step in track(range(draws.first_step, draws.steps), "linear probe"):
        optimizer.param_groups[0]["lr"] = warmup_cosine(step / draws.steps_per_epoch, config.warmup_epochs, config.epochs, peak)
        for _ in range(draws.chunks_per_step):
            pixels, labels = next(loader)
            with torch.no_grad(), precision.autocast(arithmetic, env.device):
                cls, mean = features.forward(encoder, normalise(pixels, spec.mean, spec.std, env.device))
            with torch.no_grad():
                tokens = features.read_out(encoder, kind, (cls if kind == "cls" else mean)[:, -1].float())
            loss = nn.functional.cross_entropy(head(tokens), labels.to(env.device), reduction="sum") / draws.batch
            loss.backward()
        distributed.sum_gradients(list(head.parameters()))
        optimizer.step()
        optimizer.zero_grad()
        if (step + 1) % draws.steps_per_epoch == 0 and draws.rank == 0:
            resume.save(env.out_dir, identity, {"head": head.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1})
    distributed.broadcast(list(head.buffers()))


if __name__ == "__main__":
    sys.exit(main("linear_probe"))
