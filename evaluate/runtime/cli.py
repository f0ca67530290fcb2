"""What the commands share: exit statuses, checks of arguments, output folders."""

import argparse
import os
import tempfile
from pathlib import Path

from evaluate.runtime.errors import UserError

EXIT_FAILED, EXIT_USER, EXIT_SKIPPED = 1, 2, 3
EXIT_SAVED = 75  # "try again": saved on a signal, the same command goes on
EXIT_CTRL_C = 130
MAX_WORKERS = 16  # data loading processes of one task, where none are asked for


def at_least_one(text: str) -> int:
    """For argparse: a whole number from 1 on."""
    return _whole_number(text, 1)


def at_least_zero(text: str) -> int:
    """For argparse: a whole number from 0 on."""
    return _whole_number(text, 0)


def _whole_number(text: str, least: int) -> int:
    value = int(text)
    if value < least:
        raise argparse.ArgumentTypeError(f"must be at least {least}, not {value}")
    return value


def add_keep_models(parser: argparse._ActionsContainer) -> None:
    """Adds ``--keep-models``, which every task and ``run_all.py`` take."""
    parser.add_argument(
        "--keep-models",
        action="store_true",
        help="keep the trained detectors and segmenters beside their records too (0.4 and 0.7 GB each for a ViT-B); "
        "classifiers and linear heads are always kept",
    )


def loading_processes(asked: int | None, device: str, side_by_side: int) -> int:
    """Data loading processes of one of ``side_by_side`` processes of this machine: as asked, or what suits.

    A GPU is given this process's share of the cores but one, at most MAX_WORKERS; a CPU none, which needs its cores for
    the training.
    """
    if asked is not None:
        return asked
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    given = os.environ.get("SLURM_CPUS_PER_TASK", "")  # a cluster need not bind a job to its cores
    cores = min(cores, int(given)) if given.isdigit() else cores
    return min(max(cores // side_by_side - 1, 1), MAX_WORKERS) if device.startswith("cuda") else 0


def output_folder(path: Path) -> Path:
    """An output folder of ``run_all.py`` that is there; raises UserError for any other path."""
    if not (path / "records").is_dir():
        raise UserError(
            f"{path} is no output folder of run_all.py: it has no records/; give the folder that was given as --out"
        )
    return path


def make_folder(path: Path) -> Path:
    """Creates a folder and proves that it can be written; raises UserError otherwise."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):  # a name of its own: any number of processes may ask at once
            pass
    except OSError as error:
        raise UserError(
            f"the output folder {path} cannot be written ({error.strerror}); choose another with --out"
        ) from error
    return path
