"""End-to-end fine-tuning on ImageNet (column FT of the SiameseIM table).

Protocol (SiameseIM's main_finetune.py, MAE's recipe): 100 epochs of AdamW at batch 1024, layer-wise rate decay 0.65, mixup or cutmix,
RandAugment, random erasing, stochastic depth; mean of the last block's patch tokens, a fresh LayerNorm, a linear head; position
embedding frozen; the last epoch counts. Test: Resize 256 bicubic, CenterCrop 224. --preset mae, mae_large and mae_huge are MAE's own
(FINETUNE.md; it trains the position embedding, and 32 images share a mixup draw); in run_all.py: --set finetune.preset=mae.
Metrics: top1 (the column), top5; accuracy of val in percent. Writes classifier.safetensors, which robustness measures.
Cost: ViT-B, 100 epochs: about 26 hours on 8 V100. Toy world: half a minute.

    python -m evaluate.finetune --ckpt FILE --data-root DIR          (several GPUs: torchrun --nproc-per-node 8 -m evaluate.finetune …)
"""

import contextlib
import sys
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from evaluate.classification import classifier as classifiers
from evaluate.classification import setup
from evaluate.classification.layer_decay import parameter_groups
from evaluate.classification.schedules import warmup_cosine
from evaluate.data.loader import Images, batches
from evaluate.data.transforms import FinetuneAugmentation, normalise
from evaluate.harness.task import main
from evaluate.runtime import distributed, precision, training_state
from evaluate.runtime.env import Env
from evaluate.runtime.progress import track
from evaluate.runtime.seeding import seed_global


@dataclass(frozen=True)
class Config:
    """The protocol's numbers: SiameseIM's configs/finetune for ViT-B."""

    img_size: int = 224  # pixels, side of the crop
    resize: int = 256  # pixels, short side before the test crop
    interpolation: str = "bicubic"
    epochs: int = 100
    warmup_epochs: int = 5
    batch_size: int = 1024  # images an optimiser step, over all processes and micro-batches
    micro_batch: int = 128  # images a process in one forward pass; mixup draws once for each, as on the official node of 8 GPUs
    base_lr: float = 2.5e-4  # at 256 images; the rate is base_lr * batch_size / 256
    min_lr: float = 1e-6
    layer_decay: float = 0.65
    weight_decay: float = 0.05
    drop_path: float = 0.1
    mixup: float = 0.8
    cutmix: float = 1.0
    switch: float = 0.5  # probability of cutmix instead of mixup
    smoothing: float = 0.1
    rand_augment: str = "rand-m9-mstd0.5-inc1"
    erase: float = 0.25  # probability; erased pixels become normal noise
    train_positions: bool = False  # SiameseIM freezes the position embedding, MAE does not
    precision: str = "auto"  # fp16 on CUDA, fp32 on a CPU; or fp32, bf16, fp16
    allowed_bad_images: int = 0  # so many of the evaluated images may be unreadable and are left out; the record names them

    def __post_init__(self) -> None:
        if self.epochs <= self.warmup_epochs:
            raise ValueError(f"epochs {self.epochs} must exceed warmup_epochs {self.warmup_epochs}")
        precision.resolve(self.precision, "cpu")


MAE = Config(base_lr=5e-4, train_positions=True, micro_batch=32)
MAE_LARGE = replace(MAE, epochs=50, base_lr=1e-3, layer_decay=0.75, drop_path=0.2)
PRESETS = {
    "paper": Config(),
    "mae": MAE,  # ViT-B
    "mae_large": MAE_LARGE,
    "mae_huge": replace(MAE_LARGE, drop_path=0.3, micro_batch=16),
    "demo": Config(
        img_size=32, resize=32,  # the toy world's images
        epochs=6, warmup_epochs=1,  # half a minute on one core
        batch_size=64, micro_batch=64, base_lr=4e-3,  # many small steps, at a rate at which so short a run learns
        layer_decay=0.8,  # three blocks instead of twelve
        mixup=0.0, cutmix=0.0, smoothing=0.0, rand_augment="rand-m3-mstd0.5-inc1", erase=0.0, drop_path=0.0,  # no time to overfit
    ),
}  # fmt: skip


def reads(config: Config) -> tuple[str, ...]:
    """Names of the data sets."""
    return ("imagenet",)


def run(encoder: Any, config: Config, env: Env) -> dict[str, float]:
    """top1 and top5 of the last epoch, in percent; raises Skip without ImageNet."""
    what = setup.setting(encoder, config, env, *setup.sets(encoder, config, env))
    seed_global(env.device, env.seed, "head")
    model = classifiers.Classifier(encoder, len(what.train.classes), config.drop_path, config.train_positions).to(env.device)
    fit(model, what, config, env)
    correct = classifiers.outcomes(model, what.val, what.test, env, what.arithmetic, allowed_bad=config.allowed_bad_images)
    if what.rank == 0:
        classifiers.save(env.out_dir / "classifier.safetensors", model, what.train.classes, what.test)
    protocol = {"pooling": "mean of patch tokens", "head": "LayerNorm + linear"}
    return setup.report(env, what, correct, **protocol)


def fit(model: classifiers.Classifier, what: setup.Setting, config: Config, env: Env) -> None:
    """Trains in place to the last epoch; goes on from the last finished epoch of an interrupted run of the same identity."""
    spec, draws = model.encoder.spec, what.draws
    depth = spec.depth if spec.family == "vit" else 0
    groups = parameter_groups(model.named_timm_parameters(), depth, config.layer_decay, config.weight_decay)
    optimizer = torch.optim.AdamW([{key: group[key] for key in ("params", "weight_decay", "scale")} for group in groups], lr=0.0)
    scaler = torch.amp.GradScaler(env.device.split(":")[0], enabled=what.arithmetic == "fp16")
    state = training_state.load(env.out_dir, what.identity)
    if state:
        model.load_state_dict(state["model"], strict=True)
        optimizer.load_state_dict(state["optimizer"])
        scaler.load_state_dict(state["scaler"])
        draws = replace(draws, first_step=state["step"])
    trained: nn.Module = model
    if draws.world > 1:
        trained = nn.parallel.DistributedDataParallel(model)
    mix = _mixing(config, len(what.train.classes), env.device)
    peak = config.base_lr * draws.batch / 256
    augmentation = FinetuneAugmentation(config.img_size, config.interpolation, config.rand_augment, spec.mean, env.seed)
    loader = iter(batches(Images(what.train, augmentation), draws, env.workers))
    total = torch.zeros((), device=env.device)
    trained.train()
    for step in track(range(draws.first_step, draws.steps), "fine-tuning"):
        rate = warmup_cosine(step / draws.steps_per_epoch, config.warmup_epochs, config.epochs, peak, config.min_lr)
        for group in optimizer.param_groups:
            group["lr"] = rate * group["scale"]
        for chunk in range(draws.chunks_per_step):
            pixels, labels = next(loader)
            seed_global(env.device, env.seed, "step", step, chunk, draws.rank)
            images, targets = mix(normalise(pixels, spec.mean, spec.std, env.device), labels.to(env.device))
            last = chunk == draws.chunks_per_step - 1
            with contextlib.nullcontext() if last or draws.world == 1 else trained.no_sync():  # type: ignore[operator]
                with precision.autocast(what.arithmetic, env.device):
                    logits = trained(images)
                # the mean over the step's whole batch: DDP divides by the number of processes
                loss = -(targets * logits.float().log_softmax(dim=1)).sum() * draws.world / draws.batch
                scaler.scale(loss).backward()
            total += loss.detach()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)
        if (step + 1) % draws.steps_per_epoch == 0:
            setup.check_finite(total, step // draws.steps_per_epoch, "fine-tuning")
            if draws.rank == 0:
                contents = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "scaler": scaler.state_dict(), "step": step + 1}
                training_state.save(env.out_dir, what.identity, contents)
    distributed.broadcast(list(model.buffers()))  # a ResNet's batch norm: each process has its own running statistics


def _mixing(config: Config, classes: int, device: str) -> Any:
    """From a normalised batch and its labels to the batch seen, erased and mixed, and its soft targets (B, C)."""
    from timm.data.mixup import Mixup, mixup_target
    from timm.data.random_erasing import RandomErasing

    erase = RandomErasing(config.erase, mode="pixel", device=device)
    if config.mixup or config.cutmix:
        mixup = Mixup(
            config.mixup, config.cutmix, prob=1.0, switch_prob=config.switch, label_smoothing=config.smoothing, num_classes=classes
        )
        return lambda images, labels: mixup(erase(images), labels)
    return lambda images, labels: (erase(images), mixup_target(labels, classes, 1.0, config.smoothing))


if __name__ == "__main__":
    sys.exit(main("finetune"))
