"""The options of a task's command, ``python -m evaluate.<task>``."""

import argparse
from pathlib import Path
from typing import Any

from evaluate.checkpoints import command_line
from evaluate.harness.plan import COMPILED, NODES, OF_SETS
from evaluate.runtime import compilation, devices, scalars
from evaluate.runtime.cli import add_keep_models, at_least_one, at_least_zero
from evaluate.runtime.settings import help_text


def parser_of(task: str, module: Any) -> argparse.ArgumentParser:
    """The parser of a task, whose module's docstring and settings it shows."""
    parser = argparse.ArgumentParser(
        prog=f"python -m evaluate.{task}",
        description=module.__doc__,
        epilog=f"settings for --set, with the paper's values:\n{help_text(module.PRESETS['paper'])}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--ckpt",
        type=Path,
        required=True,
        help="a checkpoint of any known format, an encoder.safetensors, timm:MODEL[@FILE], or FILE@my.py:CLASS",
    )
    parser.add_argument(
        "--data-root", type=Path, required=True, help="folder that holds imagenet/, coco/, … (README, data layout)"
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("out"),
        help="records go to OUT/records, other files to OUT/NAME (default: out)",
    )
    command_line.add_options(parser)
    parser.add_argument("--name", help="name of the row (default: the checkpoint's file name)")
    own = "that of the encoder's method where it has one, else paper" if hasattr(module, "recommended") else "paper"
    if any(module == task for module, *_ in OF_SETS.values()):
        parser.add_argument(
            "--images", metavar="SET", help="another labelled set than ImageNet: FILE.toml, FILE.toml:NAME, or a name"
        )
    parser.add_argument("--preset", choices=sorted(module.PRESETS), help=f"settings to start from (default: {own})")
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help="take the settings of a record, or of a file that run_all.py wrote"
    )
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="override one setting")
    devices.add_option(parser)
    parser.add_argument(
        "--workers",
        type=at_least_zero,
        help="data loading processes (default: on a GPU its share of the cores, at most 16; none on a CPU)",
    )
    if task in COMPILED:
        compilation.add_option(parser, "the encoder's and the classifier's forward passes")
    parser.add_argument("--seed", type=int, default=0, help="random seed of the task (default: 0)")
    parser.add_argument(
        "--limit", type=at_least_one, help="read at most so many images of each set; the record says so"
    )
    parser.add_argument("--identity", action="append", default=[], help=argparse.SUPPRESS)  # PART=IDENTITY of the data
    add_keep_models(parser)
    scalars.add_option(parser)
    named = sorted({name for node in NODES if node.task == task for name in node.inputs})
    if named:
        parser.add_argument(
            "--input",
            action="append",
            default=[],
            metavar="NAME=FILE",
            help=f"a file that another task made: {', '.join(named)}",
        )
    for name in named:
        parser.add_argument(
            f"--{name}", action="append", dest="input", type=f"{name}={{}}".format, help=argparse.SUPPRESS
        )
    parser.set_defaults(input=[], images=parser.get_default("images"), compile=False)
    return parser
