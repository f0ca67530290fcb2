"""Linear probe of many heads at once, as DINOv2 does it (column "LIN sweep"; another protocol than LIN).

Protocol (dinov2/eval/linear.py): the encoder is frozen; random resized crop and flip; 52 linear heads = 13 rates x the class tokens of
the last 1 or 4 blocks x with or without the last block's mean patch token, all after the final norm; SGD with momentum 0.9, cosine
without warm-up, 10 epochs at batch 1024. The head is chosen on a tenth of train that none is trained on, never on val (DINOv2 itself
chooses on val). Test: Resize 256 bicubic, CenterCrop 224. An encoder without final norm gets a LayerNorm without parameters; one
without class token is read out by mean patch tokens alone.
Metrics: top1, top5 of the chosen head on val, held_out_top1 of it; percent. The record has every head's held-out accuracy.
Cost: 10 forward passes over train, about 5 GPU-hours (V100) for ViT-B. Toy world: seconds.

    python -m evaluate.sweep --ckpt FILE --data-root DIR
"""

import sys
from dataclasses import dataclass, replace
from typing import Any

import torch

from evaluate.classification import metrics, setup
from evaluate.classification.outcomes import table
from evaluate.classification.schedules import warmup_cosine
from evaluate.classification.stacked_heads import StackedHeads, optimiser
from evaluate.data.imagenet import ImageSet
from evaluate.data.loader import Images, batches
from evaluate.data.transforms import RandomCropFlip, normalise
from evaluate.harness.task import main
from evaluate.runtime import distributed, precision, training_state
from evaluate.runtime.env import Env
from evaluate.runtime.progress import track
from evaluate.runtime.seeding import seed_global


@dataclass(frozen=True)
class Config:
    """The protocol's numbers: DINOv2's."""

    img_size: int = 224  # pixels, side of the crop
    resize: int = 256  # pixels, short side before the test crop
    interpolation: str = "bicubic"
    rates: tuple[float, ...] = (1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 1e-1)  # at 256 images
    blocks: tuple[int, ...] = (1, 4)  # how many of the last ones give their class token
    poolings: tuple[str, ...] = ("cls", "cls+mean")  # mean: of the last block's patch tokens
    held_out: float = 0.1  # share of each class of train on which the head is chosen
    epochs: int = 10
    batch_size: int = 1024  # images an optimiser step, over all processes and micro-batches
    micro_batch: int = 128  # images a process in one forward pass
    momentum: float = 0.9
    precision: str = "auto"  # of the frozen pass: fp16 on CUDA, fp32 on a CPU; or fp32, bf16, fp16
    allowed_bad_images: int = 0  # so many of the evaluated images may be unreadable and are left out; the record names them

    def __post_init__(self) -> None:
        if not self.rates or not self.blocks or min(self.rates) <= 0 or min(self.blocks) < 1:
            raise ValueError(f"rates {self.rates} and blocks {self.blocks} must be positive and at least one each")
        if not self.poolings or set(self.poolings) - {"cls", "cls+mean"}:
            raise ValueError(f"poolings are of cls, cls+mean, not {self.poolings}")
        if not 0 < self.held_out < 1:
            raise ValueError(f"held_out must lie between 0 and 1, not {self.held_out}")
        precision.resolve(self.precision, "cpu")


PRESETS = {
    "paper": Config(),
    "demo": Config(
        img_size=32, resize=32,  # the toy world's images
        blocks=(1, 2),  # of three
        rates=(1e-3, 1e-2, 1e-1, 1.0), epochs=8, batch_size=64, micro_batch=64,  # some ten seconds on one core
    ),
}  # fmt: skip


def reads(config: Config) -> tuple[str, ...]:
    """Names of the data sets."""
    return ("imagenet",)


def run(encoder: Any, config: Config, env: Env) -> dict[str, float]:
    """top1, top5 and held_out_top1 of the chosen head, in percent; raises Skip without ImageNet."""
    train, val = setup.sets(encoder, config, env)
    kept, held_out = setup.hold_out(train, config.held_out, env.seed)
    what = setup.setting(encoder, config, env, kept, val)
    seed_global(env.device, env.seed, "heads")
    heads = StackedHeads(widths(encoder, config), config.rates, len(train.classes)).to(env.device)
    fit(heads, encoder, what, config, env)
    right = accuracies(heads, encoder, held_out, what, config, env)
    name, index = max(((name, index) for name in right for index in range(len(config.rates))), key=lambda at: right[at[0]][at[1]])
    correct = chosen_outcomes(heads, name, index, encoder, what, config, env)
    result = setup.report(
        env, what, correct, pooling=name, head=f"linear, 1 of {len(right) * len(config.rates)} heads", rate=config.rates[index],
        augmented=True, other_protocol="LIN sweep: the best of many heads on a held-out tenth of train, after DINOv2",
        held_out_top1={name: dict(zip(map(str, config.rates), values, strict=True)) for name, values in right.items()},
    )  # fmt: skip
    env.report(images_asked={"held_out": len(held_out)})
    return {**result, "held_out_top1": right[name][index]}


def inputs(encoder: Any, images: torch.Tensor, config: Config) -> dict[str, torch.Tensor]:
    """What the heads see of normalised images, (B, D) float32 by name: "4 blocks, cls+mean" and so on."""
    if encoder.spec.family == "resnet":
        return {"mean": encoder.forward_blocks(images, 1)[-1].pooled().float()}
    spec, model = encoder.spec, encoder.model
    tokens = encoder.forward_blocks(images, max(config.blocks))

    def norm(values: torch.Tensor) -> torch.Tensor:
        if spec.final_norm:
            return model.norm(values)
        return torch.nn.functional.layer_norm(values, values.shape[-1:], eps=spec.layer_norm_eps)

    if not spec.class_token:
        means = [norm(block.patches).mean(dim=1) for block in tokens]
        return {f"{count} blocks, mean": torch.cat(means[-count:], dim=1).float() for count in config.blocks}
    classes, mean = [norm(block.cls) for block in tokens], norm(tokens[-1].patches).mean(dim=1)
    return {
        f"{count} blocks, {kind}": torch.cat(classes[-count:] + ([mean] if kind == "cls+mean" else []), dim=1).float()
        for count in config.blocks
        for kind in config.poolings
    }


@torch.no_grad()
def widths(encoder: Any, config: Config) -> dict[str, int]:
    """The width of each input, from a blank image."""
    blank = torch.zeros(1, 3, config.img_size, config.img_size, device=next(encoder.parameters()).device)
    return {name: value.shape[1] for name, value in inputs(encoder, blank, config).items()}


def frozen(encoder: Any, pixels: torch.Tensor, what: setup.Setting, config: Config, env: Env) -> dict[str, torch.Tensor]:
    """The heads' inputs from pixels uint8 (B, 3, H, W)."""
    images = normalise(pixels, encoder.spec.mean, encoder.spec.std, env.device)
    with torch.no_grad(), precision.autocast(what.arithmetic, env.device):
        return inputs(encoder, images, config)


def fit(heads: StackedHeads, encoder: Any, what: setup.Setting, config: Config, env: Env) -> None:
    """Trains all heads in place to the last epoch; goes on from the last finished epoch of an interrupted run of the same identity."""
    optimizer = optimiser(heads, config.momentum)
    state = training_state.load(env.out_dir, what.identity)
    draws = what.draws
    if state:
        heads.load_state_dict(state["heads"], strict=True)
        optimizer.load_state_dict(state["optimizer"])
        draws = replace(draws, first_step=state["step"])
    peak = max(config.rates) * draws.batch / 256
    crop = RandomCropFlip(config.img_size, config.interpolation, env.seed)
    loader = iter(batches(Images(what.train, crop), draws, env.workers))
    total = torch.zeros((), device=env.device)
    for step in track(range(draws.first_step, draws.steps), "sweep"):
        optimizer.param_groups[0]["lr"] = warmup_cosine(step / draws.steps_per_epoch, 0, config.epochs, peak)
        optimizer.zero_grad(set_to_none=False)
        for _ in range(draws.chunks_per_step):
            pixels, labels = next(loader)
            total += heads.accumulate(frozen(encoder, pixels, what, config, env), labels.to(env.device), draws.batch)
        distributed.sum_gradients(list(heads.parameters()))
        optimizer.step()
        if (step + 1) % draws.steps_per_epoch == 0:
            setup.check_finite(total, step // draws.steps_per_epoch, "the sweep")
            if draws.rank == 0:
                training_state.save(env.out_dir, what.identity, {"heads": heads.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1})


def accuracies(heads: StackedHeads, encoder: Any, images: ImageSet, what: setup.Setting, config: Config, env: Env) -> dict[str, list[float]]:
    """Top-1 in percent of every head on a set: by input, in the order of the rates."""
    names, count = list(heads.weights), len(heads.rates)

    def measure(pixels: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        logits = heads(frozen(encoder, pixels, what, config, env))
        return torch.cat([logits[name].argmax(dim=2) == labels[:, None] for name in names], dim=1)

    right = table(images, what.test, len(names) * count, measure, env, config.allowed_bad_images).unflatten(1, (len(names), count))
    return {name: [metrics.percent(column) for column in right[:, number].unbind(dim=1)] for number, name in enumerate(names)}


def chosen_outcomes(
    heads: StackedHeads, name: str, index: int, encoder: Any, what: setup.Setting, config: Config, env: Env
) -> dict[str, torch.Tensor]:
    """Whether the chosen head is right on each image of val, bool (n,), by metric."""

    def measure(pixels: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        logits = heads(frozen(encoder, pixels, what, config, env))[name][:, index]
        return torch.stack([metrics.correct_at(logits, labels, k) for k in (1, 5)], dim=1)

    return dict(zip(("top1", "top5"), table(what.val, what.test, 2, measure, env, config.allowed_bad_images).unbind(dim=1), strict=True))


if __name__ == "__main__":
    sys.exit(main("sweep"))
