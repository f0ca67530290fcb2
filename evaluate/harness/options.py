"""The command line of ``run_all.py``."""

import argparse
from pathlib import Path

from evaluate.checkpoints import command_line
from evaluate.data.published_sets import READY
from evaluate.harness import demo, plan, quick, slurm
from evaluate.harness.pretraining import START, TASK
from evaluate.runtime import compilation, devices, scalars
from evaluate.runtime.cli import add_keep_models, at_least_one, at_least_zero


def parse(argv: list[str] | None, description: str | None) -> argparse.Namespace:
    """The arguments; ``description`` is what ``--help`` says first."""
    parser = argparse.ArgumentParser(
        prog="run_all.py", description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    _what(parser.add_argument_group("what is measured, and on which images"))
    _settings(parser.add_argument_group("with which settings"))
    _machine(parser.add_argument_group("on which machine, and how much of it"))
    _instead(parser.add_argument_group("looking and checking, instead of a run"))
    return parser.parse_args(argv)


def _what(parser: argparse._ArgumentGroup) -> None:
    parser.add_argument(
        "--ckpt",
        nargs="+",
        default=[],
        metavar="[NAME=]FILE",
        help="checkpoints of any known format, a folder of them or a pattern (in quotes); each is a row of the table, "
        "called NAME, or by the part of its path that tells it from the others (default: run the demo)",
    )
    parser.add_argument(
        "--data-root",
        type=Path,
        help="folder that holds imagenet/, coco/, lvis/, ade20k/, imagenet-a/ … (default: the demo's toy world)",
    )
    parser.add_argument(
        "--demo",
        action="store_true",
        help="pretrain SiameseIM and MAE on the images of --data-root and measure both beside a random encoder (what "
        "happens without --ckpt too)",
    )
    parser.add_argument(
        "--ablate",
        nargs="+",
        default=[],
        metavar="[NAME=]PRESET",
        help="pretrain these presets of pretrain.train on the images of --data-root (default: the demo's toy world), a "
        "row of the table each, and measure them. A+B is preset A with what B changes of the paper's run, as "
        f"demo+random_mask; A{START} is its random start. --set {TASK}.NAME=VALUE is for all of them",
    )
    parser.add_argument(
        "--minutes",
        type=float,
        help=f"of each pretraining on small copies of your images (default: {demo.MINUTES:g} with --demo; with "
        "--ablate as many epochs as the presets say, on the images)",
    )
    extra = ", ".join(node.name for node in plan.NODES if node.extra)
    parser.add_argument(
        "--tasks",
        default="",
        help=f"comma-separated, of {', '.join(node.name for node in plan.NODES)} (default: all but {extra})",
    )
    ready = ", ".join(name for name in READY if not name.startswith("vtab_"))
    parser.add_argument(
        "--sets",
        nargs="+",
        default=[],
        metavar="SET",
        help="with --ckpt: measure other labelled sets, a column for each of their tasks: a TOML file that describes "
        f"them (docs/own_images.md), or the name of a ready one below --data-root: {ready}, vtab_…. Without --tasks "
        "they alone are measured; --tasks all is the paper's columns too",
    )
    parser.add_argument(
        "--seed",
        type=int,
        default=0,
        help="random seed of the tasks, and of the demo's world and pretraining (default: 0)",
    )
    parser.add_argument(
        "--seeds",
        type=at_least_one,
        default=1,
        help="repeat the tasks that draw something with so many seeds, from --seed on; the table has their mean and "
        "standard deviation (default: 1)",
    )
    parser.add_argument(
        "--limit", type=at_least_one, help="read at most so many images of each set; the cells are marked"
    )
    parser.add_argument("--out", type=Path, default=Path("out"), help="records, logs and tables go here (default: out)")
    add_keep_models(parser)
    scalars.add_option(parser)


def _settings(parser: argparse._ArgumentGroup) -> None:
    parser.add_argument(
        "--preset",
        choices=("paper", "demo"),
        help="default: demo on the toy world and with --minutes, else paper, and the linear probe of the encoder's "
        "method where it has one",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="TASK.NAME=VALUE",
        help="override a setting of a task, for example finetune.epochs=50",
    )
    command_line.add_options(parser, of_rows=True)


def _machine(parser: argparse._ArgumentGroup) -> None:
    devices.add_option(parser)
    parser.add_argument(
        "--jobs",
        type=at_least_one,
        help="tasks at a time (default: on GPUs as many as the plan lets run at once, else two on a CPU); with "
        "it, each task takes one GPU",
    )
    parser.add_argument(
        "--gpus",
        type=at_least_one,
        help="use at most so many GPUs of this machine; with --dry-run: plan for a machine that has so many (default: "
        "all). The plan gives each task 1, 2, 4 or 8 of them, with which its numbers are those of one",
    )
    parser.add_argument(
        "--budget",
        help="do only what so many GPU-hours pay for (8h, 30m, 2d), the cheapest tasks first; the plan says what is "
        "left out and what that costs",
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help=f"a quick look: {', '.join(quick.TASKS)} within --budget {quick.GPU_BUDGET} of a GPU; on a CPU within "
        f"{quick.CORE_BUDGET} of a core, on as many images of each set as that pays for (kept in OUT)",
    )
    parser.add_argument(
        "--probe",
        action="store_true",
        help="measure this machine for half a minute before the plan is made; kept in OUT for later plans",
    )
    parser.add_argument(
        "--workers",
        type=at_least_zero,
        help="data loading processes per task (default: on a GPU its share of the cores, at most 16; none on a CPU)",
    )
    compilation.add_option(parser, f"the forward passes of {', '.join(plan.COMPILED)}")
    parser.add_argument(
        "--task-timeout",
        type=float,
        default=60.0,
        metavar="MINUTES",
        help="end a task that has printed nothing for so many minutes; 0: never (default: 60)",
    )
    parser.add_argument(
        "--launch",
        choices=("slurm",),
        help="submit each task as a job of Slurm and leave (docs/slurm.md); --gpus N: of a node (default: "
        f"{slurm.GPUS}); --device cpu: ask for none; with --dry-run: print what would be submitted",
    )
    parser.add_argument(
        "--slurm",
        action="append",
        default=[],
        metavar="NAME=VALUE,…",
        help="sbatch's options for every job, as partition=gpu,time=8:00:00,account=lab; time is needed",
    )
    parser.add_argument("--part", help=argparse.SUPPRESS)  # what one job of --launch does


def _instead(parser: argparse._ArgumentGroup) -> None:
    parser.add_argument("--dry-run", action="store_true", help="print the plan and stop")
    parser.add_argument(
        "--status",
        type=Path,
        metavar="OUT",
        help="from any terminal: how each task of the runs of OUT stands (waiting, running, done, skipped, failed, "
        "interrupted), how far it is, and its log; also after a kill or the end",
    )
    parser.add_argument(
        "--cancel",
        type=Path,
        metavar="OUT",
        help="from any terminal of the same machine: ask the runs of OUT to stop as Ctrl-C does, and wait until they "
        "have; the command that began one goes on from there",
    )
    parser.add_argument(
        "--check-data",
        action="store_true",
        help="check counts, classes and some images of every set that the tasks read, and stop; with --demo: only "
        "imagenet must be there, and may be a part",
    )
    parser.add_argument(
        "--subset", action="store_true", help="with --check-data: sets with fewer images than published are meant so"
    )
    parser.add_argument(
        "--verify-data",
        action="store_true",
        help="identify the data by the contents of every file, not by names, sizes and times; with --check-data: read "
        "every image in full",
    )
    parser.add_argument(
        "--calibrate",
        type=Path,
        metavar="FINETUNED",
        help="check whether this released fine-tuned checkpoint reaches its published accuracy on this data, and stop",
    )
    parser.add_argument(
        "--clean",
        type=Path,
        metavar="OUT",
        help="list the files that no row of the table needs (caches, training states), with sizes, and stop",
    )
    parser.add_argument("--yes", action="store_true", help="with --clean: remove the listed files")
