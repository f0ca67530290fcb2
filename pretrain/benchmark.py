"""Times one optimiser step of SiameseIM by part, beside a plain transcription of the reference arithmetic and the machine's ceiling.

    python -m pretrain.benchmark --set batch_size=64                       the paper's model in fp32, and the transcription
    python -m pretrain.benchmark --set batch_size=512 --precision bf16 --compile    on a GPU
    python -m pretrain.benchmark --views --workers 16                      the data path alone: images/s a core, and of the loader

Every variant of a step runs in a process of its own, one after the other, so that its peak memory is its own; the ceiling is a plain matrix
product of the same precision. All figures of a table come from one run on one machine: read the ratios. On a CPU the transcription
runs in fp32 always, as the released code does there; on a GPU in the precision asked for, its TF32 switched off. Images are noise of a
photograph's statistics, 500 x 375 pixels, about 50 kB a JPEG; the step's are read and cut beforehand, as workers do it beside.
"""

import argparse
import dataclasses
import itertools
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from pretrain import benchmark_reference, train, views
from pretrain.config import MODELS, PRESETS, PretrainConfig
from pretrain.data import ImageFolder, steps_from
from pretrain.decode import decode
from pretrain.gradient import set_arithmetic
from pretrain.optimizer import make_optimizer
from pretrain.vit import set_grad_checkpointing

PARTS = ("augment", "target", "online", "loss", "backward", "optimiser", "EMA")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
LOADER_BATCH, LOADER_BATCHES = 64, 8  # images at once, and batches a process
IMAGE_SIZE, IMAGE_BYTES = (500, 375), 50_000  # ImageNet's middle; the reference was measured on such


class Clock:
    """Seconds between marks, of the device's own time where it has one."""

    def __init__(self, device: str):
        self.cuda = device == "cuda"
        self.marks: list[tuple[str, Any]] = []

    def mark(self, name: str) -> None:
        """Ends the part ``name``, which began at the mark before."""
        if self.cuda:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self.marks.append((name, event))
        else:
            self.marks.append((name, time.perf_counter()))

    def seconds(self) -> dict[str, float]:
        """By part, and "step": from the first mark to the last."""
        if self.cuda:
            torch.cuda.synchronize()

        def between(first: Any, last: Any) -> float:
            return first.elapsed_time(last) / 1000 if self.cuda else last - first

        parts = {name: between(before, after) for (_, before), (name, after) in itertools.pairwise(self.marks)}
        return {**parts, "step": between(self.marks[0][1], self.marks[-1][1])}


def median_seconds(call: Callable[[], Any], device: str, repeats: int = 5) -> float:
    """The median time of a call, after one to warm up."""
    times = []
    for _ in range(repeats + 1):
        clock = Clock(device)
        clock.mark("")
        call()
        clock.mark("call")
        times.append(clock.seconds()["call"])
    return statistics.median(times[1:])


def matmul_ceiling(precision: str, device: str) -> float:
    """FLOP/s of a plain square matrix product."""
    size = 8192 if device == "cuda" else 2048
    a, b = (torch.randn(size, size, device=device, dtype=DTYPES[precision]) for _ in range(2))
    return 2 * size**3 / median_seconds(lambda: a @ b, device)


def step_flops(config: PretrainConfig) -> float:
    """Floating point operations of the model's matrix products, an image and optimiser step; the backward pass counts twice.

    The target has a forward pass only, and so has a frozen patch embedding. The loss's products are left out (under 1 %).
    """
    width, narrow, cells, seen = config.embed_dim, config.decoder_embed_dim, config.num_patches, config.num_patches - config.num_masked

    def blocks(depth: int, tokens: int, channels: int) -> float:
        return depth * (2 * tokens * channels**2 * (4 + 2 * config.mlp_ratio) + 4 * tokens**2 * channels)

    def branch(tokens: int) -> float:
        return (
            blocks(config.depth, tokens, width) + 2 * tokens * width * narrow + blocks(config.projector_depth, tokens, narrow)
        )

    embed = 2 * cells * 3 * config.patch_size**2 * width
    predictor = blocks(config.predictor_depth, 1 + seen + cells, narrow) + 2 * cells * (2 * narrow) * narrow + 2 * cells * narrow**2
    online = 3 * (branch(1 + seen) + predictor) + embed * (3 if config.train_patch_embed else 1)
    return online + branch(1 + cells) + embed


def make_images(folder: Path, count: int) -> list[Path]:
    """JPEGs of 1/f noise, saved at the quality that gives about 50 kB."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{number:04d}.jpg" for number in range(count)]
    width, height = IMAGE_SIZE
    for number, path in enumerate(paths):
        random = np.random.default_rng(number)
        frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None]) + 1 / width
        noise = np.fft.rfft2(random.standard_normal((3, height, width))) / frequency
        noise = np.fft.irfft2(noise, (height, width))
        noise = 0.8 * noise[:1] + 0.2 * noise  # most of a photograph's variation is brightness
        noise = 128 + 55 * noise / noise.std()
        image = Image.fromarray(noise.clip(0, 255).astype(np.uint8).transpose(1, 2, 0))
        quality = next((q for q in range(95, 5, -5) if _size(image, path, q) <= IMAGE_BYTES), 5)
        _size(image, path, quality)
    return paths


def _size(image: Image.Image, path: Path, quality: int) -> int:
    image.save(path, quality=quality)
    return path.stat().st_size


def time_step(config: PretrainConfig, reference: bool, options: argparse.Namespace) -> dict[str, Any]:
    """Medians of the seconds of each part over the steps asked for, after one to warm up, and the process's peak memory in bytes."""
    device = options.device
    torch.manual_seed(0)
    set_arithmetic(config)
    if reference:
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    model: Any = (benchmark_reference.Reference if reference else train.method_of(config).build)(config)
    model = model.to(device).train()
    if options.grad_checkpointing:
        set_grad_checkpointing(model)
    if options.compile:
        for name in ("target_side", "online_side", "loss"):
            setattr(model, name, torch.compile(getattr(model, name)))
    optimizer = benchmark_reference.plain_optimizer(model, config) if reference else make_optimizer(model, config)
    scaler = torch.amp.GradScaler(device, enabled=config.precision == "fp16")
    source = batch_source(config, reference, sorted(options.images.iterdir()))
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    timings = [time_parts(model, optimizer, scaler, source, config, device, looped=reference) for _ in range(1 + options.steps)][1:]
    seconds = {name: statistics.median(timing[name] for timing in timings) for name in timings[0]}
    peak = torch.cuda.max_memory_allocated() if device == "cuda" else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"seconds": seconds, "peak_bytes": peak}


def batch_source(config: PretrainConfig, reference: bool, paths: list[Path]) -> Callable[[str], views.Batch]:
    """What gives the batch of a step on a device, from crops that lie in memory."""
    index = np.arange(config.batch_size)
    chosen = [paths[i % len(paths)] for i in index]
    if reference:
        batch = benchmark_reference.PerImageViews(config).batch(chosen)
        return lambda device: views.Batch(*(getattr(batch, field.name).to(device) for field in dataclasses.fields(batch)))
    crops = views.cut([decode(path) for path in chosen], index, 0, config)
    return lambda device: views.finish(crops.to(device), 0, config)


def time_parts(
    model: Any, optimizer: Any, scaler: Any, source: Callable[[str], views.Batch], config: PretrainConfig, device: str, looped: bool
) -> dict[str, float]:
    """Seconds of each part of one optimiser step; ``looped`` parameters are clipped one after the other."""
    clock = Clock(device)
    clock.mark("")
    batch = source(device)
    clock.mark("augment")
    dtype = DTYPES[config.precision]
    with torch.autocast(device, dtype=dtype, enabled=dtype != torch.float32):
        target = model.target_side(batch)
        clock.mark("target")
        prediction = model.online_side(batch)
        clock.mark("online")
        loss = model.loss(prediction, target)
    clock.mark("loss")
    del batch, target, prediction
    scaler.scale(loss).backward()
    clock.mark("backward")
    scaler.unscale_(optimizer)
    nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm or float("inf"), foreach=not looped)
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad()
    clock.mark("optimiser")
    model.after_step(0.5)
    clock.mark("EMA")
    return clock.seconds()


def time_views(config: PretrainConfig, folder: Path) -> dict[str, Any]:
    """Seconds an image on one core (two views and mask): decoding, decoding and cutting, all of it; and the per-image pipeline."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    paths = sorted(folder.iterdir())
    index = np.arange(len(paths))
    per_image = benchmark_reference.PerImageViews(config)

    def cut() -> views.Cut:
        return views.cut([decode(path) for path in paths], index, 0, config)

    calls: dict[str, Callable[[], Any]] = {
        "per image, PIL": lambda: per_image.batch(paths),
        "decode": lambda: [decode(path) for path in paths],
        "decode, cut (augmentation on the device)": cut,
        "decode, cut, augment (all on the CPU)": lambda: views.finish(cut(), 0, config),
    }
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(6):  # taking turns, so that a slow moment of the machine meets all of them
        for name, call in calls.items():
            start = time.process_time()
            call()
            times[name].append((time.process_time() - start) / len(paths))
    torch.set_num_threads(threads)
    return {name: statistics.median(seconds[1:]) for name, seconds in times.items()}


def time_loader(config: PretrainConfig, folder: Path, workers: int) -> dict[str, float]:
    """Seconds (wall) between two images of the run's own loader: decoded and cut by its processes, and handed over."""
    with tempfile.TemporaryDirectory() as made:
        for number, path in enumerate(itertools.islice(itertools.cycle(sorted(folder.iterdir())), LOADER_BATCHES * workers * LOADER_BATCH)):
            (Path(made) / f"{number:06d}{path.suffix}").symlink_to(path.resolve())
        images = ImageFolder(Path(made))
        images.cache = None  # few files, many names: each is to be decoded
        one_epoch = dataclasses.replace(config, batch_size=LOADER_BATCH, epochs=1, warmup_epochs=0.0)
        steps = steps_from(images, 0, LOADER_BATCH, one_epoch, workers)
        times = [time.perf_counter() for _ in steps]
    warm = times[2 * workers :]  # by then every process has started
    return {f"loader, {workers} workers (decode, cut)": (warm[-1] - warm[0]) / (len(warm) - 1) / LOADER_BATCH}


def compare(config: PretrainConfig, precisions: list[str], options: argparse.Namespace) -> dict[str, Any]:
    """Runs every variant in a process of its own; what they measured, with rates and fractions."""
    found: dict[str, Any] = {"machine": _machine(options.device), "config": config.to_json(), "flops_per_image": step_flops(config)}
    if options.views:
        loader = time_loader(config, options.images, options.workers) if options.workers else {}
        return {**found, "views": time_views(config, options.images) | loader}
    variants = [("ours", precision) for precision in precisions]
    if options.reference:
        variants.append(("reference", "fp32" if options.device == "cpu" else precisions[0]))
    found["ceiling"] = {precision: matmul_ceiling(precision, options.device) for precision in sorted({precision for _, precision in variants})}
    found["variants"] = {}
    for kind, precision in variants:
        measured = _child(options, precision, kind)
        rate = config.batch_size / measured["seconds"]["step"]
        flops = rate * found["flops_per_image"]
        measured |= {"images_per_second": rate, "flops": flops, "fraction_of_ceiling": flops / found["ceiling"][precision]}
        found["variants"][f"{kind} {precision}"] = measured
    return found


def _machine(device: str) -> dict[str, Any]:
    name = torch.cuda.get_device_name() if device == "cuda" else torch.backends.cpu.get_cpu_capability()
    return {"device": device, "name": name, "threads": torch.get_num_threads(), "torch": torch.__version__}


def _child(options: argparse.Namespace, precision: str, kind: str) -> Any:
    """Starts this module again for one measurement. Raises ValueError with the last line of what a failed one said."""
    command = [sys.executable, "-m", "pretrain.benchmark", "--child", kind, "--precision", precision]
    command += ["--preset", options.preset, "--model", options.model, "--device", options.device, "--steps", str(options.steps)]
    command += [part for assignment in options.set for part in ("--set", assignment)]
    command += ["--images", str(options.images)]
    if kind == "ours":
        command += ["--compile"] * options.compile + ["--grad-checkpointing"] * options.grad_checkpointing
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise ValueError(f"{kind} in {precision} ended with status {done.returncode}: {(done.stderr.strip().splitlines() or ['killed'])[-1]}")
    return json.loads(done.stdout.splitlines()[-1])


def table(found: dict[str, Any]) -> str:
    """The figures as a Markdown table."""
    if "views" in found:
        base = found["views"]["per image, PIL"]
        lines = ["| on one core | images/s | beside the per-image pipeline |", "|---|---|---|"]
        return "\n".join(lines + [f"| {name} | {1 / seconds:.0f} | {base / seconds:.2f} |" for name, seconds in found["views"].items()])
    variants = found["variants"]
    rows: list[tuple[str, Callable[[dict[str, Any]], str]]] = [
        (f"{part}, s", lambda v, part=part: f"{v['seconds'][part]:.3f}") for part in (*PARTS, "step")
    ]
    rows += [
        ("images/s", lambda v: f"{v['images_per_second']:.2f}"),
        ("model TFLOP/s", lambda v: f"{v['flops'] / 1e12:.3f}"),
        ("of the matmul ceiling", lambda v: f"{100 * v['fraction_of_ceiling']:.0f} %"),
        ("peak memory, GB", lambda v: f"{v['peak_bytes'] / 1e9:.2f}"),
    ]
    base = next((v for name, v in variants.items() if name.startswith("reference")), None)
    if base:
        rows.append(("speed beside the reference", lambda v: f"{v['images_per_second'] / base['images_per_second']:.2f}"))
        rows.append(("memory beside the reference", lambda v: f"{v['peak_bytes'] / base['peak_bytes']:.2f}"))
    lines = [f"| a step of {found['config']['batch_size']} images | {' | '.join(variants)} |", "|---" * (1 + len(variants)) + "|"]
    return "\n".join(lines + [f"| {name} | {' | '.join(show(v) for v in variants.values())} |" for name, show in rows])


def main(argv: list[str] | None = None) -> int:
    """0 done, 2 bad input or a variant that did not run."""
    parser = argparse.ArgumentParser(
        prog="python -m pretrain.benchmark", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", choices=sorted(name for name, preset in PRESETS.items() if preset.method == "siameseim"), default="paper")
    parser.add_argument("--model", choices=sorted(MODELS), default="vit_base", help="with the preset paper (default: %(default)s)")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="override one setting, for example batch_size=64")
    parser.add_argument("--precision", default="fp32", help="fp32, bf16, fp16, or several with commas (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=3, help="timed steps, after one to warm up (default: %(default)s)")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda (default: auto)")
    parser.add_argument("--compile", action="store_true", help="compile ours with torch.compile")
    parser.add_argument("--grad-checkpointing", action="store_true", help="ours computes the blocks again in the backward pass")
    parser.add_argument("--reference", action=argparse.BooleanOptionalAction, default=True, help="time the transcription too")
    parser.add_argument("--views", action="store_true", help="time the data path on one core, instead of the step")
    parser.add_argument("--workers", type=int, default=0, help="with --views: time the loader with so many processes too (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    parser.add_argument("--images", type=Path, help="folder of images to use (default: made for the run)")
    parser.add_argument("--child", choices=("ours", "reference"), help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    cuda = torch.cuda.is_available() if options.device == "auto" else options.device == "cuda"
    options.device = "cuda" if cuda else "cpu"
    try:
        precisions = options.precision.split(",")
        model = {} if options.model == "vit_base" else MODELS[options.model]
        config = dataclasses.replace(train.configure(options.preset, options.set), **model, precision=precisions[0])
        for precision in precisions:
            dataclasses.replace(config, precision=precision)  # says which are legal
        if options.steps < 1:
            raise ValueError(f"--steps is at least 1, not {options.steps}")
        if options.workers < 0 or (options.workers and not options.views):
            raise ValueError("--workers goes with --views and is at least 0")
        if "fp16" in precisions and not cuda:
            raise ValueError("precision fp16 needs a GPU; on a CPU take bf16 or fp32")
        if options.child:
            print(json.dumps(time_step(config, options.child == "reference", options)))
            return 0
        with tempfile.TemporaryDirectory() as made:
            if options.images is None:
                options.images = Path(made)
                make_images(options.images, min(config.batch_size, 64))
            found = compare(config, precisions, options)
    except (ValueError, OSError) as error:
        print(f"pretrain.benchmark: {error}", file=sys.stderr)
        return 2
    if options.json:
        options.json.write_text(json.dumps(found, indent=2))
    print(table(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
