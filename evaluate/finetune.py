"""End-to-end fine-tuning on ImageNet (column FT of the SiameseIM table).

Protocol (SiameseIM's main_finetune.py, MAE's recipe): 100 epochs of AdamW at batch 1024, layer-wise rate decay 0.65,
mixup or cutmix, RandAugment, random erasing, stochastic depth; mean of the last block's patch tokens, a fresh
LayerNorm, a linear head; position embedding frozen; the last epoch is tested. Test: Resize 256 bicubic, CenterCrop 224.
--preset mae, mae_large and mae_huge are MAE's own recipes (FINETUNE.md), which train the position embedding and let 32
images share a mixup draw; in run_all.py: --set finetune.preset=mae.
Metrics: top1 (the column), top5; accuracy of val in percent. Writes classifier.safetensors, which robustness measures.
Cost: ViT-B, 100 epochs: about 26 hours on 8 V100. Toy world: half a minute.

    python -m evaluate.finetune --ckpt FILE --data-root DIR
    torchrun --nproc-per-node 8 -m evaluate.finetune --ckpt FILE --data-root DIR          (several GPUs)
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

from annotated_types import Ge, Gt
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat

from evaluate.classification.config import TrainingConfig
from evaluate.classification.schedules import warmup_cosine
from evaluate.data.layouts import is_toy
from evaluate.data.published_counts import differences, sizes
from evaluate.encoder import memory
from evaluate.encoder.flops import forward_gflop
from evaluate.harness.cost import Cost, Count, disk_of_training, of_training, sharing
from evaluate.harness.task import main
from evaluate.runtime.env import Env
from evaluate.runtime.precision import is_allowed
from evaluate.runtime.settings import Probability, as_json
from results.ending import leave

if TYPE_CHECKING:
    from evaluate.classification.setup import Setup
    from evaluate.encoder import Encoder
    from evaluate.encoder.spec import EncoderSpec


@dataclass(frozen=True)
class Config(TrainingConfig):
    """The protocol's numbers: SiameseIM's configs/finetune for ViT-B."""

    micro_batch: Annotated[int, Ge(2)] = 128
    """Images that a process takes in one forward pass; they share one mixup draw, as officially on each of 8 GPUs."""
    warmup_epochs: NonNegativeInt = 5
    base_lr: PositiveFloat = 2.5e-4
    """Learning rate at 256 images a step; the rate is base_lr * batch_size / 256."""
    min_lr: NonNegativeFloat = 1e-6
    """Learning rate at the end of the cosine."""
    layer_decay: Annotated[float, Gt(0)] = 0.65
    """Factor on the learning rate from each block to the one before it."""
    weight_decay: NonNegativeFloat = 0.05
    drop_path_rate: Probability = 0.1
    """Stochastic depth of the last block; it rises linearly from 0."""
    mixup: NonNegativeFloat = 0.8
    """Parameter of mixup's beta distribution; 0: no mixup."""
    cutmix: NonNegativeFloat = 1.0
    """Parameter of cutmix's beta distribution; 0: no cutmix."""
    mixup_switch_prob: Probability = 0.5
    """Probability of cutmix instead of mixup."""
    label_smoothing: Probability = 0.1
    rand_augment: str = "rand-m9-mstd0.5-inc1"
    """RandAugment in timm's notation."""
    random_erasing_prob: Probability = 0.25
    """Probability that a rectangle of the image becomes normal noise."""
    train_positions: bool = False
    """Whether the position embedding is trained: SiameseIM freezes it, MAE does not."""

    def __post_init__(self) -> None:
        if self.epochs <= self.warmup_epochs:
            raise ValueError(f"epochs {self.epochs} must exceed warmup_epochs {self.warmup_epochs}")


MAE = Config(base_lr=5e-4, train_positions=True, micro_batch=32)
MAE_LARGE = replace(MAE, epochs=50, base_lr=1e-3, layer_decay=0.75, drop_path_rate=0.2)
PRESETS = {
    "paper": Config(),
    "mae": MAE,  # ViT-B
    "mae_large": MAE_LARGE,
    "mae_huge": replace(MAE_LARGE, drop_path_rate=0.3, micro_batch=16),
    "small_set": Config(batch_size=256),  # any set of a thousand images or more
    "demo": Config(
        img_size=32,  # the toy world's images
        resize=32,
        epochs=30,  # of 500 images: a quarter of a minute on one core
        warmup_epochs=3,
        batch_size=32,  # many small steps, at a rate at which so short a run learns
        micro_batch=32,
        base_lr=8e-3,
        layer_decay=0.8,  # three blocks instead of twelve
        mixup=0.0,  # no time to overfit
        cutmix=0.0,
        label_smoothing=0.0,
        rand_augment="rand-m3-mstd0.5-inc1",
        random_erasing_prob=0.0,
        drop_path_rate=0.0,
    ),
}


def reads(config: Config) -> tuple[str, ...]:
    """Names of the data sets."""
    return ("imagenet",)


def cost(config: Config, spec: "EncoderSpec", count: Count) -> Cost:
    """What it takes: ``evaluate.harness.cost``."""
    gflop = forward_gflop(spec, config.img_size)
    share = sharing(config.batch_size, config.micro_batch)
    trained, passed = config.epochs * count("imagenet/train"), count("imagenet/val")
    weights = memory.weights(spec)
    return of_training(
        trained,
        passed,
        gflop,
        gpus=share,
        memory=memory.of_training(spec, config.img_size, config.micro_batch),
        disk=disk_of_training(weights) + memory.WEIGHT * weights / memory.GIB,  # the classifier stays
    )


def run(encoder: "Encoder", config: Config, env: Env) -> dict[str, float]:
    """top1 and top5 of the last epoch, in percent; raises UserError where the training diverges."""
    from evaluate.classification import classifier, finetuning
    from evaluate.classification.setup import cuts_alike, make_setup, report_training
    from evaluate.data.sets import train_and_val
    from evaluate.data.transforms import FinetuneAugmentation
    from evaluate.runtime import distributed
    from evaluate.runtime.seeding import seed_global

    setup = make_setup(encoder, config, env, *train_and_val(env))
    classes = setup.train.classes
    seed_global(env.device, env.seed, "head")
    model = classifier.Classifier(encoder, len(classes), config.drop_path_rate, config.train_positions).to(env.device)
    optimizer = finetuning.make_optimizer(model, config.layer_decay, config.weight_decay)
    rate = partial(
        warmup_cosine,
        warmup_epochs=config.warmup_epochs,
        epochs=config.epochs,
        peak=config.base_lr * setup.sampler.batch / 256,
        minimum=config.min_lr,
    )
    augmentation = FinetuneAugmentation(
        config.img_size, config.interpolation, config.rand_augment, encoder.spec.mean, env.seed
    )
    mix = finetuning.make_mix(
        len(classes),
        env.device,
        mixup=config.mixup,
        cutmix=config.cutmix,
        switch_prob=config.mixup_switch_prob,
        label_smoothing=config.label_smoothing,
        erasing_prob=config.random_erasing_prob,
    )
    finetuning.fit(model, setup, env, optimizer, rate, augmentation, mix)
    drawn = config.mixup or config.cutmix or not encoder.spec.is_vit  # whose BatchNorm is trained
    immaterial = ["micro_batch"] if not drawn or cuts_alike(setup, PRESETS["paper"]) else []
    env.report(immaterial={"": immaterial})
    path = env.out_dir / "classifier.safetensors"
    if distributed.rank() == 0:
        classifier.save(path, model, classes, setup.crop, how_it_was_made(config, env, setup, immaterial))
    distributed.barrier()
    predict = classifier.predictor(model, path, setup.precision, env, config.max_unreadable_images)
    answers = predict(setup.val, setup.crop).answers
    return report_training(env, setup, answers, **read_out(encoder.spec))


def read_out(spec: "EncoderSpec") -> dict[str, str]:
    """What a record's protocol says of the classifier."""
    if spec.is_vit:
        return {"pooling": "mean of patch tokens", "head": "LayerNorm + linear"}
    return {"pooling": "what the model itself pools", "head": "linear"}


def how_it_was_made(config: Config, env: Env, setup: "Setup", immaterial: list[str]) -> dict[str, Any]:
    """What the classifier's file says of its making, so that whatever is measured on it can be marked."""
    allowed = is_allowed(setup.precision, PRESETS["paper"].precision)
    found = sizes(setup.train)
    return {
        "node": "finetune",
        "preset": next((name for name, preset in PRESETS.items() if preset == config), ""),
        "config": as_json(config),
        "paper_config": as_json(PRESETS["paper"]),
        # as evaluate.harness.protocol has it for a record
        "immaterial": sorted([*immaterial, "max_unreadable_images", *(["precision"] if allowed else [])]),
        "limit": env.limit,
        "seed": env.seed,
        "images_asked": {"train": setup.train.asked},
        "images_evaluated": {"train": len(setup.train)},
        "sizes": found,
        "subset": differences(found),
        "toy_data": is_toy(env.data_root),
    }


if __name__ == "__main__":
    leave(main, "finetune")
