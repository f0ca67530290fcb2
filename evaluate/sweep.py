"""Linear probe of many heads at once, as DINOv2 does it (column "LIN sweep"; another protocol than LIN).

Protocol (dinov2/eval/linear.py): the encoder is frozen; random resized crop and flip; 52 linear heads = 13 rates x the
class tokens of the last 1 or 4 blocks x with or without the last block's mean patch token, all after the final norm;
SGD with momentum 0.9, cosine without warm-up, 10 epochs at batch 1024. The head is chosen on a tenth of train that no
head is trained on, never on val (DINOv2 itself chooses on val). Test: Resize 256 bicubic, CenterCrop 224. An encoder
without final norm gets a LayerNorm without parameters. For one without class token, heads use only mean patch tokens.
Metrics, in percent: top1 and top5 of the chosen head on val; held_out_top1, its accuracy on the held-out images. The
record has every head's held-out accuracy.
Cost: 10 forward passes over train, about 5 GPU-hours (V100) for ViT-B. Toy world: seconds.

    python -m evaluate.sweep --ckpt FILE --data-root DIR
"""

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Annotated, Literal

from annotated_types import Gt, Lt
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt

from evaluate.classification.config import TrainingConfig
from evaluate.classification.schedules import warmup_cosine
from evaluate.data.published_counts import sizes
from evaluate.encoder import memory
from evaluate.encoder.flops import forward_gflop
from evaluate.harness.cost import Cost, Count, of_training, sharing
from evaluate.harness.task import main
from evaluate.runtime.env import Env
from results.ending import leave

if TYPE_CHECKING:
    from evaluate.encoder import Encoder
    from evaluate.encoder.spec import EncoderSpec


@dataclass(frozen=True)
class Config(TrainingConfig):
    """The protocol's numbers: DINOv2's."""

    epochs: PositiveInt = 10
    base_lrs: tuple[PositiveFloat, ...] = (1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 1e-1)
    """Learning rates at 256 images a step; there is a head for each."""
    blocks: tuple[PositiveInt, ...] = (1, 4)
    """From how many of the last blocks a head takes the class tokens; there is a head for each."""
    poolings: tuple[Literal["cls", "cls+mean"], ...] = ("cls", "cls+mean")
    """Which tokens a head takes, with a head for each; mean is the mean of the last block's patch tokens."""
    held_out: Annotated[float, Gt(0), Lt(1)] = 0.1
    """Share of each class of train that is held out to choose the head."""
    momentum: NonNegativeFloat = 0.9

    def __post_init__(self) -> None:
        for name in ("base_lrs", "blocks", "poolings"):
            if not getattr(self, name):
                raise ValueError(f"{name} must hold at least one value")


PRESETS = {
    "paper": Config(),
    "demo": Config(
        img_size=32,  # the toy world's images
        resize=32,
        blocks=(1, 2),  # of three
        base_lrs=(1e-3, 1e-2, 1e-1, 1.0),
        epochs=60,  # of 500 images: some ten seconds on one core
        batch_size=64,
        micro_batch=64,
    ),
}


def reads(config: Config) -> tuple[str, ...]:
    """Names of the data sets."""
    return ("imagenet",)


def cost(config: Config, spec: "EncoderSpec", count: Count) -> Cost:
    """What it takes: ``evaluate.harness.cost``."""
    gflop = forward_gflop(spec, config.img_size)
    share = sharing(config.batch_size, config.micro_batch)
    passed = config.epochs * count("imagenet/train") + count("imagenet/val")
    inputs = spec.embed_dim * sum(config.blocks) * len(config.poolings) * len(config.base_lrs)
    heads = 1000 * inputs / memory.GIB  # weights, of 1,000 classes
    needed = memory.of_passing(spec, config.img_size, config.micro_batch) + 12 * heads
    return of_training(0, passed, gflop, gpus=share, memory=needed, disk=2 * 8 * heads)


def run(encoder: "Encoder", config: Config, env: Env) -> dict[str, float]:
    """top1, top5 and held_out_top1 of the chosen head, in percent; raises UserError where the training diverges."""
    from evaluate.classification import head_sweep
    from evaluate.classification.heads import save
    from evaluate.classification.setup import hold_out, make_setup, report_training
    from evaluate.classification.stacked_heads import StackedHeads
    from evaluate.data.sets import train_and_val
    from evaluate.runtime.seeding import seed_global

    train, val = train_and_val(env)
    kept, held_out = hold_out(train, config.held_out, env.seed)
    setup = make_setup(encoder, config, env, kept, val)
    inputs = head_sweep.HeadInputs(encoder, config.blocks, config.poolings, env.compile)
    seed_global(env.device, env.seed, "heads")
    heads = StackedHeads(inputs.widths(config.img_size), config.base_lrs, len(train.classes)).to(env.device)
    peak = max(config.base_lrs) * setup.sampler.batch / 256
    head_sweep.fit(
        heads,
        inputs,
        setup,
        env,
        partial(warmup_cosine, warmup_epochs=0, epochs=config.epochs, peak=peak),
        config.momentum,
    )
    right = head_sweep.accuracies(heads, inputs, held_out, setup, env, config.max_unreadable_images)
    places = ((name, index) for name in right for index in range(len(config.base_lrs)))
    name, index = max(places, key=lambda place: right[place[0]][place[1]])
    answers = head_sweep.chosen_answers(heads, name, index, inputs, setup, env, config.max_unreadable_images)
    about = {"encoder": encoder.fingerprint, "input": f"{name}, after the final norm", "classes": train.classes}
    save(env.out_dir, *heads.head(name, index), about)
    result = report_training(
        env,
        setup,
        answers,
        pooling=name,
        head=f"linear, 1 of {len(right) * len(config.base_lrs)} heads",
        base_lr=config.base_lrs[index],
        augmented=True,
        other_protocol="LIN sweep: the best of many heads on a held-out tenth of train, after DINOv2",
        held_out_top1={
            name: dict(zip(map(str, config.base_lrs), values, strict=True)) for name, values in right.items()
        },
    )
    # the whole train set; heads are linear and trained without BatchNorm or mixup
    env.report(images_asked={"held_out": len(held_out)}, sizes=sizes(train), immaterial={"": ["micro_batch"]})
    return {**result, "held_out_top1": right[name][index]}


if __name__ == "__main__":
    leave(main, "sweep")
