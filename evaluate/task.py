"""What every task shares: its environment, its overrides, its command line and its record.

A task is a module ``evaluate/<name>.py`` with, at top level and in this order, a docstring (protocol, paper column, metric and
unit, rough cost, command), ``Config`` (a frozen dataclass holding the protocol's numbers), ``PRESETS`` (``paper`` and ``demo``),
``reads(config)`` (names of the data sets it opens, keys of ``evaluate.data.layouts.LAYOUTS``) and ``run(encoder, config, env)``,
which returns the metrics in percent. ``main`` below makes any such module a command.
"""

import argparse
import dataclasses
import importlib
import json
import os
import sys
import time
import traceback
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from evaluate.errors import Skip, UserError

TASKS = ("finetune", "linear_probe", "sweep", "few_shot", "knn", "robustness", "detection", "segmentation")
EXIT_FAILED, EXIT_USER, EXIT_SKIPPED = 1, 2, 3
MOST_LOADING = 16  # data loading processes of one task, where none are asked for


@dataclass
class Env:
    """Where a task runs, as opposed to what it measures.

    A task writes only below ``out_dir``. What it learns besides its metrics goes into the record through ``report``.
    """

    data_root: Path
    out_dir: Path
    device: str = "cpu"
    workers: int = 0
    seed: int = 0
    limit: int | None = None  # at most so many images of each set; the record says so
    classifier: Path | None = None  # the fine-tuned classifier that robustness measures
    notes: dict[str, Any] = field(default_factory=dict)

    def report(self, **fields: Any) -> None:
        """Adds to the record: ``protocol`` (dict), ``images_asked``, ``images_evaluated`` (dicts by set), ``standard_error`` (dict by metric)."""
        for name, value in fields.items():
            if isinstance(value, dict):
                self.notes.setdefault(name, {}).update(value)
            else:
                self.notes[name] = value


def module_of(task: str) -> Any:
    """The module of a task; raises UserError naming the legal ones."""
    if task not in TASKS:
        raise UserError(f"there is no task {task!r}; the tasks are {', '.join(TASKS)}")
    return importlib.import_module(f"evaluate.{task}")


def override(config: Any, assignments: dict[str, str]) -> Any:
    """A copy of a frozen dataclass with ``{"epochs": "50"}``-style text values parsed to the fields' types.

    Raises:
        UserError: an unknown field (the legal ones are listed) or a value that is not of the field's type.
    """
    hints = typing.get_type_hints(type(config))
    legal = [f.name for f in dataclasses.fields(config)]
    values: dict[str, Any] = {}
    for name, text in assignments.items():
        if name not in legal:
            raise UserError(f"unknown setting {name!r}; the settings here are {', '.join(legal)}")
        values[name] = _parse(name, text, hints[name])
    try:
        return dataclasses.replace(config, **values)
    except ValueError as error:
        raise UserError(str(error)) from error


def configure(module: Any, preset: str, assignments: dict[str, str]) -> tuple[str, Any]:
    """The preset's name and its config with settings overridden; the setting ``preset`` chooses another preset of the task.

    Raises UserError for an unknown preset or as ``override`` does.
    """
    assignments = dict(assignments)
    preset = assignments.pop("preset", preset)
    if preset not in module.PRESETS:
        raise UserError(f"there is no preset {preset!r} of {module.__name__}; the presets are {', '.join(module.PRESETS)}")
    return preset, override(module.PRESETS[preset], assignments)


def _parse(name: str, text: str, hint: Any) -> Any:
    """One value by its annotation: str as it is, everything else as JSON that must have the annotated type."""
    options = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, type(int | None)) else (hint,)
    if text in ("none", "None", "null") and type(None) in options:
        return None
    if str in options:
        return text
    try:
        value = json.loads(text.lower() if text in ("True", "False") else text)
    except json.JSONDecodeError:
        value = None
    for option in options:
        origin = typing.get_origin(option) or option
        if origin is float and isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
        if origin is tuple and isinstance(value, list):
            return tuple(value)
        if isinstance(origin, type) and isinstance(value, origin) and (origin is bool) == isinstance(value, bool):
            return value
    raise UserError(f"setting {name!r} takes a value like {hint}, not {text!r}")


def split_overrides(assignments: list[str]) -> dict[str, dict[str, str]]:
    """``["finetune.epochs=50"]`` to ``{"finetune": {"epochs": "50"}}``; a name without a dot goes under ``""``."""
    result: dict[str, dict[str, str]] = {}
    for text in assignments:
        name, separator, value = text.partition("=")
        if not separator:
            raise UserError(f"--set takes NAME=VALUE, for example finetune.epochs=50, not {text!r}")
        task, _, setting = name.rpartition(".")
        result.setdefault(task, {})[setting] = value
    return result


def main(task: str, argv: list[str] | None = None) -> int:
    """The command line of one task; returns the exit status (0 ok, 1 failed, 2 bad input, 3 skipped)."""
    try:
        return _main(task, argv)
    except UserError as error:
        print(f"evaluate.{task}: {error}", file=sys.stderr)
        return EXIT_SKIPPED if isinstance(error, Skip) else EXIT_USER


def _main(task: str, argv: list[str] | None) -> int:
    module = module_of(task)
    arguments = _parser(task, module).parse_args(argv)
    overrides = split_overrides(arguments.set)
    unknown = set(overrides) - {"", task}
    if unknown:
        raise UserError(f"--set {min(unknown)}.…: this command has only the settings of {task}")
    preset, config = configure(module, arguments.preset, {**overrides.get("", {}), **overrides.get(task, {})})

    import torch

    from evaluate import convert, distributed, encoder, resume
    from evaluate.data import layouts
    from evaluate.plan import node_of
    from results import record

    device = arguments.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    device = distributed.start(device)
    first = distributed.world()[0] == 0  # under torchrun one process converts, prints and writes the record
    out, name, node = make_folder(arguments.out), arguments.name or arguments.ckpt.stem, node_of(task, config)
    env = Env(
        data_root=layouts.root(arguments.data_root),
        out_dir=make_folder(out / name / node),
        device=device,
        workers=loading_processes(arguments.workers, device, int(os.environ.get("LOCAL_WORLD_SIZE", "1"))),
        seed=arguments.seed,
        limit=arguments.limit,
        classifier=arguments.classifier,
    )
    path = out / name / "encoder.safetensors"
    if first:
        path = convert.ensure(arguments.ckpt, path)
    loaded = encoder.load(distributed.share(path), device=device)
    entry = record.start(node, config, preset, loaded, env)
    status = _measure(module, loaded, config, env, entry)
    if not first:
        return status
    written = record.write(out / "records", entry)
    if not status:
        resume.clear(env.out_dir)
    if status:
        print(f"evaluate.{task}: {entry['reason']}", file=sys.stderr)
    else:
        print(json.dumps(entry["metrics"], indent=2))
    print(f"record: {written}")
    return status


def _measure(module: Any, encoder: Any, config: Any, env: Env, entry: dict[str, Any]) -> int:
    """Runs the task and completes its record; the exit status."""
    import torch

    from evaluate.data import layouts

    begun = time.monotonic()
    entry["data_fingerprint"] = layouts.fingerprint(env.data_root, module.reads(config))
    try:
        torch.manual_seed(env.seed)
        entry["metrics"] = {key: float(value) for key, value in module.run(encoder, config, env).items()}
        entry["status"], status = "ok", 0
    except Skip as error:
        entry["status"], entry["reason"], status = "skipped", str(error), EXIT_SKIPPED
    except UserError as error:
        entry["status"], entry["reason"], status = "failed", str(error), EXIT_USER
    except Exception as error:  # a fault of ours or of a library: the record keeps it, the log has the traceback
        traceback.print_exc()
        entry["status"], entry["reason"], status = "failed", f"{type(error).__name__}: {error}", EXIT_FAILED
    entry["seconds"] = round(time.monotonic() - begun, 2)
    entry.update(env.notes)
    return status


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


def loading_processes(asked: int | None, device: str, side_by_side: int) -> int:
    """Data loading processes of one of ``side_by_side`` processes of this machine: as asked, or what suits.

    A GPU is given this process's share of the cores but one, at most MOST_LOADING; a CPU none, which needs its cores for the training.
    """
    if asked is not None:
        return asked
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(max(cores // side_by_side - 1, 1), MOST_LOADING) if device.startswith("cuda") else 0


def make_folder(path: Path) -> Path:
    """Creates a folder and proves that it can be written; raises UserError otherwise."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(f"the output folder {path} cannot be written ({error.strerror}); choose another with --out") from error
    return path


def _parser(task: str, module: Any) -> argparse.ArgumentParser:
    settings = "\n".join(f"  {f.name} = {getattr(module.PRESETS['paper'], f.name)!r}" for f in dataclasses.fields(module.Config))
    parser = argparse.ArgumentParser(
        prog=f"python -m evaluate.{task}",
        description=module.__doc__,
        epilog=f"settings for --set, with the paper's values:\n{settings}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--ckpt", type=Path, required=True, help="a checkpoint of any known format, or an encoder.safetensors")
    parser.add_argument("--data-root", type=Path, required=True, help="folder that holds imagenet/, coco/, … (README, data layout)")
    parser.add_argument("--out", type=Path, default=Path("out"), help="records go to OUT/records, work files to OUT/NAME (default: out)")
    parser.add_argument("--name", help="name of the row (default: the checkpoint's file name)")
    parser.add_argument("--preset", choices=sorted(module.PRESETS), default="paper")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="override one setting of the preset")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: auto)")
    parser.add_argument("--workers", type=at_least_zero, help="data loading processes (default: the cores' share of a GPU, none on a CPU)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit", type=at_least_one, help="read at most so many images of each set; marked in the record")
    parser.add_argument("--classifier", type=Path, help="fine-tuned classifier (robustness only)")
    return parser
