"""Traces a step of an ImageNet task on a pretended GPU.

    python -m tests.gpu.pretended.tasks finetune [--encoder vit_large] [--micro-batches 2] [--set micro_batch=64]

Start it with the variables that ``build`` prints. The tasks are those of TASKS below; each is the task's own training
or pass, with pictures of zeros where it would read ImageNet's, and nothing saved.
"""

import argparse
import contextlib
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch._subclasses.fake_tensor import unset_fake_temporarily

from evaluate import finetune, knn, linear_probe, sweep
from evaluate.classification import cached_pass, classifier, features, finetuning, head_sweep, neighbors, probe, search
from evaluate.classification.predictions import BATCH as PREDICTED
from evaluate.classification.predictions import Predictor
from evaluate.classification.sampler import BatchSampler
from evaluate.classification.setup import Setup
from evaluate.classification.stacked_heads import StackedHeads
from evaluate.data.imagenet import ImageSet
from evaluate.data.transforms import CenterCrop
from evaluate.encoder import Encoder, EncoderSpec
from evaluate.encoder import model as encoder_model
from evaluate.runtime import precision, training_state
from evaluate.runtime.env import Env
from evaluate.runtime.settings import override, split_overrides
from tests.gpu.pretended.audit import on_gpu, pretended_gpu
from tests.gpu.pretended.memory import Memory
from tests.gpu.pretended.trace import Trace, add_options, finish

CLASSES = 1000
TRAIN = 1281167  # images
SIDE = 224
STATISTICS = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
RATE = 1e-3
ENCODERS = {
    **{
        name: EncoderSpec("vit", width, depth, num_heads=heads, class_token=True, pooling="mean", **STATISTICS)
        for name, width, depth, heads in (
            ("vit_short", 768, 4, 12),  # the smallest on which every task's step is the same as on ViT-B
            ("vit_small", 384, 12, 6),
            ("vit_base", 768, 12, 12),
            ("vit_large", 1024, 24, 16),
        )
    },
    "resnet50": EncoderSpec(
        "resnet", 2048, 16, patch_size=32, layers=(3, 4, 6, 3), block="bottleneck", pooling="mean", **STATISTICS
    ),
}


def pretended_encoder(name: str) -> Encoder:
    """An encoder of ENCODERS on the meta device, until ``on_gpu``."""
    spec = ENCODERS[name]
    with mock.patch.object(encoder_model, "fingerprint", lambda spec, state: "pretended"):
        return Encoder(spec, encoder_model.build(spec).state_dict()).eval()


def image_set(name: str, count: int) -> ImageSet:
    """A set of which only the labels are there."""
    wnids = tuple(f"n{number:08d}" for number in range(CLASSES))
    return ImageSet(name, (), np.arange(count) % CLASSES, wnids, "pretended", count, tuple(range(CLASSES)))


def pictures(dataset: Any, sampler: BatchSampler, workers: int = 0) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """What ``evaluate.data.loader.batches`` gives: pixels of zeros, and labels."""
    for samples in sampler:
        yield torch.zeros(len(samples), 3, SIDE, SIDE, dtype=torch.uint8), torch.zeros(len(samples), dtype=torch.int64)


def make_setup(config: Any, options: argparse.Namespace) -> Setup:
    """One step of so many micro-batches, which is an epoch too."""
    images = config.micro_batch * options.micro_batches
    sampler = BatchSampler(images, images, config.micro_batch, epochs=1, seed=0)
    crop = CenterCrop(SIDE, 256, "bicubic")
    resolved = precision.resolve(config.precision, "cuda")
    return Setup(image_set("train", TRAIN), image_set("val", 50000), crop, sampler, resolved, "pretended")


def trace_finetune(encoder: Encoder, options: argparse.Namespace, env: Env, trace: Trace) -> None:
    """Fine-tuning's step."""
    config = _config(finetune, options)
    model = on_gpu(_classifier(encoder, config.drop_path_rate))
    optimizer = finetuning.make_optimizer(model, config.layer_decay, config.weight_decay)
    mix = finetuning.make_mix(
        CLASSES,
        "cuda",
        mixup=config.mixup,
        cutmix=config.cutmix,
        switch_prob=config.mixup_switch_prob,
        label_smoothing=config.label_smoothing,
        erasing_prob=config.random_erasing_prob,
    )
    setup = make_setup(config, options)
    trace.hold(model)
    with (
        mock.patch.object(finetuning, "batches", pictures),
        trace.part("finetune: an epoch of a step", setup.sampler.batch),
    ):
        finetuning.fit(model, setup, env, optimizer, lambda epoch: RATE, None, mix)


def trace_linear_probe(encoder: Encoder, options: argparse.Namespace, env: Env, trace: Trace) -> None:
    """The linear probe's step, the frozen pass in it."""
    config = _config(linear_probe, options)
    on_gpu(encoder)
    head = on_gpu(probe.make_head(encoder.spec.embed_dim, CLASSES, config.batch_norm))
    optimizer = probe.make_optimizer(head, config.optimizer, config.momentum, config.weight_decay, config.trust)
    setup = make_setup(config, options)
    pooling = features.resolve_pooling(encoder, config.pooling)
    inputs = probe.FrozenInputs(encoder, pooling, setup, env).augmented(config.crop)
    trace.hold(encoder, head)
    with (
        mock.patch.object(probe, "batches", pictures),
        trace.part("linear_probe: an epoch of a step", setup.sampler.batch),
    ):
        probe.fit(head, setup, env, optimizer, lambda epoch: RATE, inputs)


def trace_sweep(encoder: Encoder, options: argparse.Namespace, env: Env, trace: Trace) -> None:
    """The step of all heads."""
    config = _config(sweep, options)
    on_gpu(encoder)
    inputs = head_sweep.HeadInputs(encoder, config.blocks, config.poolings)
    heads = on_gpu(StackedHeads(inputs.widths(config.img_size), config.base_lrs, CLASSES))
    setup = make_setup(config, options)
    trace.hold(encoder, heads)
    with (
        mock.patch.object(head_sweep, "batches", pictures),
        trace.part("sweep: an epoch of a step", setup.sampler.batch),
    ):
        head_sweep.fit(heads, inputs, setup, env, lambda epoch: RATE, config.momentum)


def trace_features(encoder: Encoder, options: argparse.Namespace, env: Env, trace: Trace) -> None:
    """One batch of the frozen pass that kNN, few-shot and LIN fast share."""
    config = _config(knn, options)
    trace.hold(on_gpu(encoder))
    with trace.part("features: a batch", cached_pass.BATCH), _one_batch(cached_pass.BATCH):
        features.extract(encoder, image_set("val", 50000), CenterCrop(SIDE, 256, "bicubic"), env, config.precision)


def trace_predictions(encoder: Encoder, options: argparse.Namespace, env: Env, trace: Trace) -> None:
    """One batch of what robustness asks a fine-tuned classifier, 200 classes of its own among them."""
    model = on_gpu(_classifier(encoder)).eval()
    trace.hold(model)
    images, subset = image_set("val", 50000), {"imagenet_a": tuple(range(200))}
    config = _config(finetune, options)
    predict = Predictor(model, encoder.spec, "pretended", precision.resolve(config.precision, "cuda"), env)
    with trace.part("predictions: a batch", PREDICTED), _one_batch(PREDICTED):
        predict(images, CenterCrop(SIDE, 256, "bicubic"), subset)


def trace_knn(encoder: Encoder, options: argparse.Namespace, env: Env, trace: Trace) -> None:
    """One block of test images beside all of ImageNet's train."""
    config = _config(knn, options)
    train = torch.zeros(TRAIN, encoder.spec.embed_dim, device="cuda")
    labels = torch.zeros(TRAIN, dtype=torch.int64, device="cuda")
    test = torch.zeros(search.ROWS, encoder.spec.embed_dim, device="cuda")
    for tensor in (train, labels, test):
        trace.memory.see(tensor)
    with trace.part("knn: a block", search.ROWS, scalar=CLASSES - 1):  # the number that is read: the largest label
        neighbors.classify(train, labels, test, config.neighbors, config.temperature)


TASKS: dict[str, Callable[[Encoder, argparse.Namespace, Env, Trace], None]] = {
    "finetune": trace_finetune,
    "linear_probe": trace_linear_probe,
    "sweep": trace_sweep,
    "features": trace_features,
    "predictions": trace_predictions,
    "knn": trace_knn,
}


def _classifier(encoder: Encoder, drop_path_rate: float = 0.0) -> classifier.Classifier:
    """Made outside the mode, for it reads numbers from a tensor."""
    with unset_fake_temporarily():
        return classifier.Classifier(encoder, CLASSES, drop_path_rate)


class _Done(Exception):
    """A pass was asked for, and one batch of it was traced: there is nothing on disk to go on with."""


@contextlib.contextmanager
def _one_batch(size: int) -> Iterator[None]:
    """Replaces the pass over a set by one batch, copied to the CPU as the pass does."""

    def compute(parent: Any, images: Any, transform: Any, measure: Any, *others: Any) -> None:
        with torch.inference_mode():
            found = measure(torch.zeros(size, 3, SIDE, SIDE, dtype=torch.uint8))
            for value in found.values():  # what was never on the GPU (a flag an image) costs nothing
                value.cpu()
        raise _Done

    with mock.patch.object(cached_pass, "compute", compute), contextlib.suppress(_Done):
        yield


def _config(module: Any, options: argparse.Namespace) -> Any:
    return override(module.PRESETS["paper"], split_overrides(options.set).get("", {}))


def main() -> int:
    """0 traced."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=TASKS, nargs="+")
    parser.add_argument("--encoder", choices=ENCODERS, default="vit_base", help="(default: vit_base)")
    parser.add_argument("--micro-batches", type=int, default=2, help="of a step (default: 2)")
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="override a setting of the paper's preset"
    )
    add_options(parser)
    options = parser.parse_args()
    trace = Trace()
    silent = {"load": lambda *_: None, "save": lambda *_: None}
    with tempfile.TemporaryDirectory() as folder, mock.patch.multiple(training_state, **silent):
        env = Env(Path(folder), Path(folder) / "encoder" / "task", "cuda")
        for task in options.task:
            encoder = pretended_encoder(options.encoder)
            trace.memory = Memory()
            with pretended_gpu():
                TASKS[task](encoder, options, env, trace)
    finish(trace, options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
