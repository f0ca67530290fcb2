"""The command line of ``pretrain.train``."""

import argparse
import math
from pathlib import Path

from evaluate.runtime import compilation, devices
from evaluate.runtime.cli import at_least_one, at_least_zero
from evaluate.runtime.settings import help_text
from pretrain import checkpoint
from pretrain.config import MODELS
from pretrain.evaluations import FOLDER, Wanted, data_root_of
from pretrain.methods import METHODS, module_of, presets


def parse(argv: list[str] | None, description: str | None) -> argparse.Namespace:
    """The arguments; ends with status 2 for those that do not go together."""
    parser = argparse.ArgumentParser(
        prog="python -m pretrain.train",
        description=description,
        epilog="\n\n".join(
            f"settings of {name} for --set, with its paper's values:\n{help_text(module_of(name).PRESETS['paper'])}"
            for name in METHODS
        ),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _what_is_trained(parser)
    _how(parser)
    _what_else(parser)
    arguments = parser.parse_args(argv)
    if arguments.minutes and any(text.split("=")[0] == "epochs" for text in arguments.set):
        parser.error("give --minutes or --set epochs=…, not both")
    if arguments.minutes is not None and not 0 < arguments.minutes < math.inf:
        parser.error(f"argument --minutes: must be above 0, not {arguments.minutes}")
    if arguments.evaluate:
        root = arguments.evaluate_data_root or data_root_of(arguments.data)
        try:
            arguments.evaluate = Wanted(arguments.evaluate, arguments.every, root, arguments.evaluate_with)
        except ValueError as error:
            parser.error(str(error))
    elif arguments.evaluate_data_root or arguments.evaluate_with:
        parser.error("--evaluate-data-root and --evaluate-with go with --evaluate TASKS")
    if not arguments.save_minutes >= 0:
        parser.error(f"argument --save-minutes: must be at least 0, not {arguments.save_minutes}")
    return arguments


def _what_is_trained(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--data",
        type=Path,
        required=True,
        help="folder with one folder of images per class (only the online kNN uses the classes), a list of images "
        "(.csv, .tsv), or webdataset shards (.tar, a folder or a pattern in quotes); for clip a table of images and "
        "captions, or shards with captions",
    )
    parser.add_argument("--out", type=Path, required=True, help="folder that all processes share")
    parser.add_argument(
        "--preset",
        help="settings to start from (default: paper); A+B: those of A with what B changes of its paper's, as "
        f"demo+random_mask; the presets are {', '.join(sorted(presets()))}",
    )
    parser.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="start from the settings of another run: its config.json or a checkpoint",
    )
    parser.add_argument("--model", choices=list(MODELS), help="use this encoder instead of the preset's")
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="override one setting, for example epochs=400"
    )
    parser.add_argument(
        "--minutes",
        type=float,
        metavar="N",
        help="train for about N minutes instead of the preset's epochs; a few steps are timed first",
    )


def _how(parser: argparse.ArgumentParser) -> None:
    """What changes no number but the time, unless its help says so."""
    devices.add_option(parser)
    parser.add_argument(
        "--workers",
        type=at_least_zero,
        help="data loading processes (default: on a GPU its share of the cores, at most 16; none on a CPU; without "
        "GPUs and processes a thread reads ahead)",
    )
    parser.add_argument(
        "--micro-batch",
        type=at_least_one,
        help="largest number of images that a process takes at once (default: its whole share of the batch); "
        "BatchNorm and the loss are computed over processes x micro-batch images",
    )
    parser.add_argument(
        "--keep",
        type=at_least_one,
        default=checkpoint.KEEP,
        help="how many checkpoints are kept (default: %(default)s)",
    )
    parser.add_argument(
        "--save-minutes",
        type=float,
        default=checkpoint.SAVE_MINUTES,
        help="minutes between two saves, besides one at the end; 0: save each step (default: %(default)s)",
    )
    parser.add_argument(
        "--monitor-epochs",
        type=at_least_zero,
        help="epochs between two measurements of the features (kNN, rank, spread); "
        "0: never (default: a hundredth of the run)",
    )
    compilation.add_option(parser, "the step")
    parser.add_argument(
        "--grad-checkpointing",
        action="store_true",
        help="compute the blocks again in the backward pass: less memory, more time",
    )


def _what_else(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--evaluate",
        metavar="TASKS",
        help="measure these tasks of run_all.py, as knn,linear_fast, on snapshots of the run, beside the training; "
        f"records and report in OUT/{FOLDER}",
    )
    parser.add_argument(
        "--every",
        type=at_least_one,
        default=50,
        metavar="EPOCHS",
        help="between two snapshots for --evaluate, besides one at the end (default: %(default)s)",
    )
    parser.add_argument(
        "--evaluate-data-root",
        type=Path,
        metavar="DIR",
        help="what run_all.py takes as --data-root (default: DIR where --data is DIR/imagenet/train)",
    )
    parser.add_argument(
        "--evaluate-with",
        default="",
        metavar="OPTIONS",
        help='further options of run_all.py in quotes, as "--set knn.img_size=48 --device cpu"',
    )
    parser.add_argument(
        "--export",
        action="store_true",
        help="at the end, write OUT/export: the weights alone, and the certified encoder file",
    )
    parser.add_argument(
        "--allow-other-images",
        action="store_true",
        help="resume although images were added, removed or renamed; order and schedule are then those of neither set",
    )
    parser.add_argument("--init-only", action="store_true", help="write the randomly initialized checkpoint and stop")
    parser.add_argument("--dry-run", action="store_true", help="check the settings, print them and stop")
