"""What every task shares: its environment, its overrides, its command line and its record.

A task is a module ``evaluate/<name>.py`` with, at top level and in this order, a docstring (protocol, paper column, metric and
unit, rough cost, command), ``Config`` (a frozen dataclass holding the protocol's numbers), ``PRESETS`` (``paper`` and ``demo``),
``reads(config)`` (names of the data sets it opens, keys of ``evaluate.data.layouts.LAYOUTS``) and ``run(encoder, config, env)``,
which returns the metrics in percent. ``main`` below makes any such module a command.
"""

import argparse
import dataclasses
import json
import os
import sys
import time
import traceback
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from evaluate.harness.plan import as_json, module_of, paper_config
from evaluate.runtime.cli import EXIT_FAILED, EXIT_SKIPPED, EXIT_USER, at_least_one, at_least_zero, loading_processes, make_folder
from evaluate.runtime.env import Env
from evaluate.runtime.errors import Skip, UserError
from evaluate.runtime.settings import configure, split_overrides
from results.atomic import sha256
from results.record import SCHEMA, git_state, versions


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

    from evaluate import encoder
    from evaluate.checkpoints import conversion
    from evaluate.data import layouts
    from evaluate.harness.plan import node_of
    from evaluate.runtime import distributed, training_state
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
        path = conversion.ensure(arguments.ckpt, path)
    loaded = encoder.load(distributed.share(path), device=device)
    entry = start(node, config, preset, loaded, env)
    status = _measure(module, loaded, config, env, entry)
    if not first:
        return status
    written = record.write(out / "records", entry)
    if not status:
        training_state.clear(env.out_dir)
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


def start(task: str, config: Any, preset: str, encoder: Any, env: Any) -> dict[str, Any]:
    """Everything about a run that is known before it begins."""
    return {
        "schema": SCHEMA,
        "task": task,
        "encoder": env.out_dir.parent.name,
        "preset": preset,
        "config": as_json(config),
        "paper_config": as_json(paper_config(task)),
        "seed": env.seed,
        "limit": env.limit,
        "encoder_fingerprint": encoder.fingerprint,
        "encoder_source": encoder.source,
        "data_fingerprint": None,
        "toy_data": (env.data_root / "world.json").is_file(),
        "classifier": sha256(env.classifier) if env.classifier and env.classifier.is_file() else None,
        "status": "failed",
        "reason": "",
        "metrics": {},
        "unit": "percent",
        "protocol": {},
        "epoch_rule": "final epoch",
        "images_asked": {},
        "images_evaluated": {},
        "standard_error": {},
        "device": env.device,
        "versions": versions(),
        "git": git_state(),
        "started_utc": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": 0.0,
    }
