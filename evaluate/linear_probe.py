"""Linear probe on ImageNet (column LIN of the SiameseIM table).

Protocol (SiameseIM's and MAE's main_linprobe.py): the encoder is frozen; single-draw random resized crop and flip;
batch norm without affine, then a linear layer; LARS at batch 16384, 90 epochs. The input of the head is what the
encoder's method recommends: the mean of the patch tokens after a LayerNorm without parameters (SiameseIM), or the class
token after the final norm (MAE, MoCo-v3, DINO). The model of the last epoch is tested.
Test: Resize 256 bicubic, CenterCrop 224. Metrics: top1 (the column), top5; accuracy of val in percent. The
presets moco, simsiam, moco_v3 (ResNet-50) and moco_v3_vit are the protocols of those papers: a checkpoint of such a
method gets its own by default, and with --preset paper SiameseIM's. mae_large is MAE's for ViT-L and ViT-H; in
run_all.py: --set linear_probe.preset=mae_large. --set views=cached is LIN fast (task linear_fast of run_all.py), which
is another protocol: the same head on features of the test crop, computed once, without augmentation.
Cost: 90 forward passes over train, about 40 GPU-hours (V100) for ViT-B; cached: one pass, then minutes on a GPU. Toy
world: seconds.

    python -m evaluate.linear_probe --ckpt FILE --data-root DIR
"""

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Literal

from annotated_types import Ge
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from evaluate.classification.config import Pooling, TrainingConfig
from evaluate.classification.schedules import step_decay, warmup_cosine
from evaluate.encoder import memory
from evaluate.encoder.flops import forward_gflop
from evaluate.harness.cost import Cost, Count, disk_of_features, of_training, sharing
from evaluate.harness.task import main
from evaluate.runtime.env import Env
from results.ending import leave

if TYPE_CHECKING:
    from evaluate.encoder import Encoder
    from evaluate.encoder.spec import EncoderSpec


@dataclass(frozen=True)
class Config(TrainingConfig):
    """The protocol's numbers: SiameseIM's configs/linprobe for ViT-B."""

    epochs: PositiveInt = 90
    batch_size: PositiveInt = 16384
    """Images in an optimizer step, over all processes and micro-batches."""
    micro_batch: Annotated[int, Ge(2)] = 512
    """Images that a process takes in one forward pass and in one batch-norm statistic, as on the official 32 GPUs."""
    views: Literal["augmented", "cached"] = "augmented"
    """Views of the training images; cached: only the test crop, whose features are computed once (LIN fast)."""
    crop: Literal["single_draw", "torchvision"] = "single_draw"
    """single_draw: SiameseIM's and MAE's crop; torchvision: RandomResizedCrop, which draws until the crop fits."""
    pooling: Pooling | None = None
    """Which token is read out; none: the one that the encoder's method recommends."""
    batch_norm: bool = True
    """Batch norm without affine before the linear layer."""
    warmup_epochs: NonNegativeInt = 10
    schedule: Literal["cosine", "cosine_by_epoch", "steps"] = "cosine"
    """cosine changes the rate at every step; steps divides the rate by ten at each of the milestones."""
    milestones: tuple[PositiveInt, ...] = ()
    """Epochs at which schedule=steps divides the rate by ten."""
    base_lr: PositiveFloat = 0.1
    """Learning rate at 256 images a step; the rate is base_lr * batch_size / 256 = 6.4."""
    optimizer: Literal["lars", "larc", "sgd"] = "lars"
    """larc also scales the rate of biases; sgd is SGD with momentum."""
    momentum: NonNegativeFloat = 0.9
    weight_decay: NonNegativeFloat = 0.0
    trust: PositiveFloat = 0.001
    """LARS' trust coefficient."""

    def __post_init__(self) -> None:
        if self.epochs <= self.warmup_epochs:
            raise ValueError(f"epochs {self.epochs} must exceed warmup_epochs {self.warmup_epochs}")
        if (self.schedule == "steps") != bool(self.milestones):
            raise ValueError(f"milestones {self.milestones} belong to schedule=steps, and to no other")


# what MoCo, SimSiam and MoCo-v3 share: no batch norm, torchvision's crop, bilinear, a rate that changes once an epoch
PLAIN = Config(
    interpolation="bilinear", crop="torchvision", batch_norm=False, warmup_epochs=0, schedule="cosine_by_epoch"
)
MOCO_V3 = replace(PLAIN, optimizer="sgd", batch_size=1024, micro_batch=128)
PRESETS = {
    "paper": Config(),
    "mae_large": Config(epochs=50),  # ViT-L and ViT-H
    "moco": replace(  # v1 and v2
        PLAIN,
        optimizer="sgd",
        base_lr=30.0,
        batch_size=256,
        micro_batch=256,
        epochs=100,
        schedule="steps",
        milestones=(60, 80),
    ),
    "simsiam": replace(PLAIN, optimizer="larc", batch_size=4096),
    "moco_v3": MOCO_V3,
    "moco_v3_vit": replace(MOCO_V3, base_lr=3.0),
    "small_set": Config(  # any set of a thousand images or more, at the paper's rate of 6.4
        views="cached", epochs=100, batch_size=256, micro_batch=256, base_lr=6.4
    ),
    "demo": Config(
        img_size=32,  # the toy world's images
        resize=32,
        epochs=60,  # of 500 images: some ten seconds on one core
        warmup_epochs=6,
        batch_size=64,  # more steps at the paper's rate of 6.4
        micro_batch=64,
        base_lr=25.6,
    ),
}


# by the format of the checkpoint: the preset that is its method's own protocol
RECOMMENDED = {"simsiam": "simsiam", "moco": "moco", "moco_v3_resnet": "moco_v3", "moco_v3_vit": "moco_v3_vit"}


def recommended(spec: "EncoderSpec") -> str:
    """The preset that is the protocol of the encoder's method; "" where that is the paper's, or none is known here."""
    return RECOMMENDED.get(spec.source_format, "")


def reads(config: Config) -> tuple[str, ...]:
    """Names of the data sets."""
    return ("imagenet",)


def learning_rate(epoch: float, config: Config, peak: float) -> float:
    """The learning rate at a fractional epoch."""
    if config.schedule == "steps":
        return step_decay(epoch, config.milestones, peak)
    epoch = math.floor(epoch) if config.schedule == "cosine_by_epoch" else epoch
    return warmup_cosine(epoch, config.warmup_epochs, config.epochs, peak)


def cost(config: Config, spec: "EncoderSpec", count: Count) -> Cost:
    """What it takes: ``evaluate.harness.cost``."""
    gflop = forward_gflop(spec, config.img_size)
    share = sharing(config.batch_size, config.micro_batch)
    augmented, train, val = config.views == "augmented", count("imagenet/train"), count("imagenet/val")
    return of_training(
        0,
        (config.epochs if augmented else 1) * train + val,
        gflop,
        gpus=share,
        memory=memory.of_passing(spec, config.img_size, config.micro_batch),
        features=0.0 if augmented else disk_of_features(spec, train + val),
    )


def run(encoder: "Encoder", config: Config, env: Env) -> dict[str, float]:
    """top1 and top5 of the last epoch, in percent; raises UserError where the training diverges."""
    from evaluate.classification import heads, metrics, probe
    from evaluate.classification.features import described, resolve_pooling
    from evaluate.classification.setup import cuts_alike, make_setup, report_training, report_training_of_several
    from evaluate.data.sets import train_and_val
    from evaluate.runtime.seeding import seed_global

    pooling = resolve_pooling(encoder, config.pooling)
    setup = make_setup(encoder, config, env, *train_and_val(env), pooling)
    seed_global(env.device, env.seed, "head")
    head = probe.make_head(encoder.spec.embed_dim, len(setup.train.classes), config.batch_norm).to(env.device)
    optimizer = probe.make_optimizer(head, config.optimizer, config.momentum, config.weight_decay, config.trust)
    peak = config.base_lr * setup.sampler.batch / 256
    inputs = probe.FrozenInputs(encoder, pooling, setup, env)
    seen = inputs.cached() if config.views == "cached" else inputs.augmented(config.crop)
    probe.fit(head, setup, env, optimizer, lambda epoch: learning_rate(epoch, config, peak), seen)
    norm = "BatchNorm without affine + " if config.batch_norm else ""
    protocol = {
        "pooling": pooling,
        "head": f"{norm}linear",
        "optimizer": config.optimizer,
        "augmented": config.views == "augmented",
    }
    if config.views == "cached" and env.images is None:
        protocol["other_protocol"] = "LIN fast: on features of the test crop, without augmentation"
    normed_otherwise = config.batch_norm and not cuts_alike(setup, PRESETS["paper"])  # it alone sees a micro-batch
    immaterial = ([] if normed_otherwise else ["micro_batch"]) + (["trust"] if config.optimizer == "sgd" else [])
    env.report(immaterial={"": immaterial})
    val, logits = inputs.logits(head, config.max_unreadable_images)
    about = {"encoder": encoder.fingerprint, "input": described(encoder, pooling), "classes": setup.train.classes}
    heads.save(env.out_dir, *heads.folded(head), about)
    if val.several is not None:
        return report_training_of_several(env, setup, logits.numpy(), val.several, **protocol)
    answers = metrics.answers(val.images, val.stored.unreadable, *metrics.best_of_logits(logits))
    return report_training(env, setup, answers, **protocol)


if __name__ == "__main__":
    leave(main, "linear_probe")
