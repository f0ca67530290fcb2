"""What a command line of ``run_all.py`` asks for, read and checked before anything is made."""

import argparse
import contextlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evaluate.checkpoints import command_line, named
from evaluate.data import layouts, sets
from evaluate.encoder.spec import EncoderSpec, read_spec
from evaluate.harness import demo, estimate, plan, pretraining, rows, slurm
from evaluate.runtime.errors import Skip, UserError
from evaluate.runtime.settings import Settings, split_overrides

Configure = Callable[[EncoderSpec | None], Mapping[str, tuple[str, Settings]]]  # by node, for an encoder


@dataclass(frozen=True)
class Asked:
    """What a command line asks for, checked before anything is made."""

    nodes: tuple[plan.Node, ...]
    of_encoder: Configure
    configs: Mapping[str, tuple[str, Settings]]
    """Of an encoder whose method recommends nothing."""
    checkpoints: Mapping[str, Path]
    """By row; of rows that are pretrained, not their places yet."""
    conversion: Mapping[str, Mapping[str, Any]]
    """By row: what the user says of its checkpoint."""
    budget: float | None
    is_small: bool
    """Whether all of it takes minutes: nothing is planned."""
    presets: Mapping[str, str]
    """By row, of what is pretrained; none where checkpoints are given."""
    minutes: float | None
    """Of each pretraining, on small copies of the images."""
    training: Mapping[str, str]
    """What the user sets for all pretrainings."""
    resolved: Mapping[str, Mapping[str, Any]]
    """By row: all settings of its pretraining, where the demo's own are not taken as they are."""


def asked(arguments: argparse.Namespace) -> Asked:
    """Reads the arguments of a run. Raises UserError for those that do not go together or name nothing."""
    pretrains = not (arguments.ckpt or arguments.check_data or arguments.calibrate)
    minutes = minutes_of(arguments) if pretrains else None
    is_small = pretrains and (minutes is not None or on_toy_world(arguments))
    if arguments.sets and (pretrains or arguments.calibrate):
        raise UserError("--sets goes with --ckpt or --check-data")
    measured = sets.choose(arguments.sets, sets.root(arguments.data_root, arguments.sets)) if arguments.sets else ()
    for one in () if arguments.check_data else measured:
        with contextlib.suppress(Skip):  # a ready one that is absent is skipped, and the table says so
            one.require()
    nodes = plan.choose([name for name in arguments.tasks.split(",") if name], plan.of_sets(measured))
    settings = split_overrides(arguments.set)
    training = settings.pop(pretraining.TASK, {}) if pretrains else {}
    settings = demo.with_settings(nodes, settings) if minutes else settings
    of_encoder = plan.for_encoders(nodes, arguments.preset or ("demo" if is_small else None), settings)
    configs = of_encoder(None)
    presets: Mapping[str, str] = {}
    if pretrains:
        presets = pretraining.named_presets(arguments.ablate) or (demo.PHOTOGRAPHS if minutes else demo.TOY)
    checkpoints = dict.fromkeys(presets, arguments.out) if pretrains else named_checkpoints(arguments)
    if not pretrains and not arguments.data_root and not arguments.sets:
        raise UserError(
            "--ckpt, --check-data and --calibrate need --data-root, the folder that holds imagenet/, coco/, … "
            "(README, data layout)"
        )
    said = {row: command_line.options(arguments, row, tuple(checkpoints)) for row in checkpoints}
    budget = estimate.hours_of(arguments.budget) if arguments.budget else None
    if pretrains and (budget or arguments.probe):
        raise UserError("--budget and --probe go with --ckpt: they say nothing of a pretraining")
    resolved = pretraining.resolve(presets, arguments.seed, training) if arguments.ablate or training else {}
    return Asked(nodes, of_encoder, configs, checkpoints, said, budget, is_small, presets, minutes, training, resolved)


def named_checkpoints(arguments: argparse.Namespace) -> dict[str, Path]:
    """The rows of a command line, each with the class that --encoder names."""
    return rows.named_checkpoints(named.with_class(one, arguments.encoder) for one in arguments.ckpt)


def spec_of(out: Path, row: str, checkpoint: Path) -> EncoderSpec | None:
    """The spec of a row's encoder, where it is converted or a file of ours; None where it is not known yet."""
    return read_spec(Path(out) / row / rows.ENCODER) or read_spec(checkpoint)


def gpus_to_plan_for(arguments: argparse.Namespace) -> int:
    """The GPUs that a command line names, or those of this machine (or of a node of Slurm), found without torch."""
    if arguments.gpus is not None:
        return arguments.gpus
    if arguments.device == "cpu":
        return 0
    return slurm.GPUS if arguments.launch else len(list(Path("/dev").glob("nvidia[0-9]*")))


def more_seeds(arguments: argparse.Namespace) -> tuple[int, ...]:
    """The seeds besides the first."""
    return tuple(range(arguments.seed + 1, arguments.seed + arguments.seeds))


def on_toy_world(arguments: argparse.Namespace) -> bool:
    """Whether the data are, or are going to be, made by this project."""
    return arguments.data_root is None or layouts.is_toy(layouts.root(arguments.data_root))


def minutes_of(arguments: argparse.Namespace) -> float | None:
    """Minutes of each pretraining on small copies of the images of a data root; None on the toy world, and for an
    ablation whose presets say how many epochs.

    Raises UserError for options that do not go together, and for a data root without images to pretrain on.
    """
    on_images = not on_toy_world(arguments)
    if arguments.minutes is not None and not (on_images and 0 < arguments.minutes < math.inf):
        raise UserError(
            "--minutes N is a number above 0 and goes with --demo or --ablate and --data-root DIR, on your images"
        )
    missing = layouts.absent(arguments.data_root, ["imagenet"]) if on_images else {}
    if missing:
        raise UserError(f"what pretrains on your images takes imagenet/train: {missing['imagenet']}")
    if arguments.ablate and not arguments.demo:
        return arguments.minutes
    return (arguments.minutes or demo.MINUTES) if on_images else None
