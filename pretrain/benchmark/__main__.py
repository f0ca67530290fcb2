"""Times one optimizer step of SiameseIM by part, beside a plain baseline and the rate of a plain matrix product.

    python -m pretrain.benchmark --set batch_size=64                  the paper's model in fp32, and the plain baseline
    python -m pretrain.benchmark --set batch_size=512 --precision bf16 --compile                     on a GPU
    python -m pretrain.benchmark --views --workers 16      the data path alone: images/s a core, and of the loader
    python -m pretrain.benchmark --method byol swav --preset demo           steps of other methods beside plain loops

The plain baseline is our own code that does the same arithmetic without optimization for speed; it contains no released
code. Each variant of a step runs in its own process, one after the other, so that its peak memory is measured alone.
The ceiling is the rate of a plain matrix product of the same precision. All figures of a table come from one run on one
machine: rely on the ratios. On a CPU the plain baseline always runs in fp32, as the released code does there; on a GPU
it runs in the precision asked for, with TF32 switched off. The images are noise with a photograph's statistics, 500 x
375 pixels, about 50 kB a JPEG. Those of the timed step are read and cropped beforehand, since in a training run the
data loading processes do that at the same time.
"""

import argparse
import functools
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from evaluate.data.made_photographs import make_images
from evaluate.runtime import devices
from evaluate.runtime.cli import EXIT_USER, at_least_one, at_least_zero
from evaluate.runtime.errors import UserError
from evaluate.runtime.settings import help_text
from pretrain.benchmark import plain
from pretrain.benchmark.data_path import time_loader, time_views
from pretrain.benchmark.step import PARTS, matmul_ceiling, step_flops, time_step
from pretrain.config import MODELS
from pretrain.methods import configure, siameseim
from results.ending import leave


def compare(config: siameseim.Config, precisions: list[str], options: argparse.Namespace) -> dict[str, Any]:
    """Runs every variant in a process of its own and returns what they measured, with rates and fractions."""
    found: dict[str, Any] = {
        "machine": _machine(options.device),
        "config": config.to_json(),
        "flops_per_image": step_flops(config),
    }
    if options.views:
        loader = time_loader(config, options.images, options.workers) if options.workers else {}
        return {**found, "views": time_views(config, options.images) | loader}
    variants = [("ours", precision) for precision in precisions]
    if options.baseline:
        variants.append(("baseline", "fp32" if options.device == "cpu" else precisions[0]))
    found["ceiling"] = {
        precision: matmul_ceiling(precision, options.device)
        for precision in sorted({precision for _, precision in variants})
    }
    found["variants"] = {}
    for kind, precision in variants:
        measured = _child(options, precision, kind)
        rate = config.batch_size / measured["seconds"]["step"]
        flops = rate * found["flops_per_image"]
        measured |= {
            "images_per_second": rate,
            "flops": flops,
            "fraction_of_ceiling": flops / found["ceiling"][precision],
        }
        found["variants"][f"{kind} {precision}"] = measured
    return found


def _machine(device: str) -> dict[str, Any]:
    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else torch.backends.cpu.get_cpu_capability()
    return {"device": device, "name": name, "threads": torch.get_num_threads(), "torch": torch.__version__}


def _child(options: argparse.Namespace, precision: str, kind: str) -> Any:
    """Starts this module again for one measurement. Raises ValueError with the last line of what a failed one said."""
    command = [sys.executable, "-m", "pretrain.benchmark", "--child", kind, "--precision", precision]
    command += ["--preset", options.preset, "--device", options.device, "--steps", str(options.steps)]
    command += ["--model", options.model] if options.model else []
    command += [part for assignment in options.set for part in ("--set", assignment)]
    command += ["--images", str(options.images)]
    if kind == "ours":
        command += ["--compile"] * options.compile + ["--grad-checkpointing"] * options.grad_checkpointing
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["killed"])[-1]
        raise ValueError(f"{kind} in {precision} ended with status {done.returncode}: {reason}")
    return json.loads(done.stdout.splitlines()[-1])


def _seconds(part: str, measured: dict[str, Any]) -> str:
    return f"{measured['seconds'][part]:.3f}"


def table(found: dict[str, Any]) -> str:
    """The figures as a Markdown table."""
    if "views" in found:
        base = found["views"]["per image, PIL"]
        lines = ["| on one core | images/s | beside the per-image pipeline |", "|---|---|---|"]
        return "\n".join(
            lines
            + [f"| {name} | {1 / seconds:.0f} | {base / seconds:.2f} |" for name, seconds in found["views"].items()]
        )
    variants = found["variants"]
    rows: list[tuple[str, Callable[[dict[str, Any]], str]]] = [
        (f"{part}, s", functools.partial(_seconds, part)) for part in (*PARTS, "step")
    ]
    rows += [
        ("images/s", lambda v: f"{v['images_per_second']:.2f}"),
        ("model TFLOP/s", lambda v: f"{v['flops'] / 1e12:.3f}"),
        ("of the matmul ceiling", lambda v: f"{100 * v['fraction_of_ceiling']:.0f} %"),
        ("peak memory, GB", lambda v: f"{v['peak_bytes'] / 1e9:.2f}"),
    ]
    base = next((v for name, v in variants.items() if name.startswith("baseline")), None)
    if base:
        rows.append(
            ("speed beside the plain baseline", lambda v: f"{v['images_per_second'] / base['images_per_second']:.2f}")
        )
        rows.append(("memory beside the plain baseline", lambda v: f"{v['peak_bytes'] / base['peak_bytes']:.2f}"))
    lines = [
        f"| a step of {found['config']['batch_size']} images | {' | '.join(variants)} |",
        "|---" * (1 + len(variants)) + "|",
    ]
    return "\n".join(lines + [f"| {name} | {' | '.join(show(v) for v in variants.values())} |" for name, show in rows])


def _compare_methods(options: argparse.Namespace) -> int:
    settings = [*options.set, "precision=fp32"]
    configs = {name: configure(f"{name}_{options.preset}", settings, options.model) for name in options.method}
    with tempfile.TemporaryDirectory() as made:
        images = options.images or Path(made)
        if options.images is None:
            make_images(images, min(max(config.batch_size for config in configs.values()), 64))
        found = {name: plain.compare(config, images, options.steps, options.device) for name, config in configs.items()}
    if options.json:
        options.json.write_text(json.dumps({"machine": _machine(options.device), **found}, indent=2))
    print(plain.table(found))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m pretrain.benchmark",
        description=__doc__,
        epilog=f"settings for --set, with the paper's values:\n{help_text(siameseim.PAPER)}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--preset", choices=sorted(siameseim.PRESETS), default="paper", help="settings to start from (default: paper)"
    )
    parser.add_argument("--model", choices=list(MODELS), help="use this encoder instead of the preset's")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="override one setting, for example batch_size=64",
    )
    parser.add_argument(
        "--method",
        nargs="+",
        choices=list(plain.PLAIN),
        default=[],
        help="time the steps of these methods in fp32, each in turn with a plain loop over its own modules",
    )
    parser.add_argument(
        "--precision",
        default="fp32",
        help="fp32, tf32, bf16_products, bf16, fp16, or several with commas (default: %(default)s)",
    )
    parser.add_argument(
        "--steps", type=at_least_one, default=3, help="timed steps, after one to warm up (default: %(default)s)"
    )
    devices.add_option(parser)
    parser.add_argument("--compile", action="store_true", help="run our step through torch.compile")
    parser.add_argument(
        "--grad-checkpointing", action="store_true", help="our step computes the blocks again in the backward pass"
    )
    parser.add_argument(
        "--baseline", action=argparse.BooleanOptionalAction, default=True, help="time the plain baseline too"
    )
    parser.add_argument(
        "--reference",
        dest="baseline",
        action=argparse.BooleanOptionalAction,
        default=argparse.SUPPRESS,
        help=argparse.SUPPRESS,
    )
    parser.add_argument("--views", action="store_true", help="time the data path on one core, instead of the step")
    parser.add_argument(
        "--workers",
        type=at_least_zero,
        default=0,
        help="with --views: time the loader with so many processes too (default: %(default)s)",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures to this file")
    parser.add_argument("--images", type=Path, help="folder of images to use (default: made for the run)")
    parser.add_argument("--child", choices=("ours", "baseline"), help=argparse.SUPPRESS)
    return parser


def main(argv: list[str] | None = None) -> int:
    """The command line: 0 done, 2 bad input or a variant that did not run."""
    options = _parser().parse_args(argv)
    try:
        options.device = devices.resolve_device(options.device)
        if ":" in options.device:
            torch.cuda.set_device(options.device)
        if options.method:
            return _compare_methods(options)
        precisions = options.precision.split(",")
        config, *_ = (
            configure(options.preset, [*options.set, f"precision={precision}"], options.model)
            for precision in precisions
        )
        assert isinstance(config, siameseim.Config)  # --preset takes no other
        if options.workers and not options.views:
            raise UserError("--workers has an effect only with --views; add --views or remove --workers")
        if "fp16" in precisions and options.device == "cpu":
            raise UserError("precision fp16 needs a GPU; on a CPU take bf16 or fp32")
        if options.child:
            print(json.dumps(time_step(config, options.child == "baseline", options)))
            return 0
        with tempfile.TemporaryDirectory() as made:
            if options.images is None:
                options.images = Path(made)
                make_images(options.images, min(config.batch_size, 64))
            found = compare(config, precisions, options)
    except (UserError, ValueError, OSError) as error:
        print(f"pretrain.benchmark: {error}", file=sys.stderr)
        return EXIT_USER
    if options.json:
        options.json.write_text(json.dumps(found, indent=2))
    print(table(found))
    return 0


if __name__ == "__main__":
    leave(main)
