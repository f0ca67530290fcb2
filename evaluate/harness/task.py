"""What a task is, and what makes any task a command: its command line, its environment and its record.

A task is a module ``evaluate/<name>.py`` as ``Task`` below describes it, with a docstring that says protocol, paper
column, metric and unit, rough cost and command. Its node in ``evaluate.harness.plan`` and its column in
``results.columns`` bring it into the table.
"""

import argparse
import json
import math
import os
import re
import sys
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from evaluate.checkpoints import command_line, named
from evaluate.data import layouts, sets
from evaluate.data.identity import DataIdentities, fingerprint
from evaluate.harness import estimate, protocol, rows
from evaluate.harness.plan import (
    NODES,
    Node,
    from_preset,
    identities_of,
    is_recommended,
    module_of,
    node_of,
    of_set,
    paper_config,
    recommended,
)
from evaluate.harness.suite import stale_files, work_folder
from evaluate.harness.task_options import parser_of
from evaluate.runtime import devices, scalars
from evaluate.runtime.cli import (
    EXIT_FAILED,
    EXIT_SKIPPED,
    EXIT_USER,
    loading_processes,
    make_folder,
)
from evaluate.runtime.env import Env
from evaluate.runtime.errors import Skip, UserError, from_outside, in_one_sentence
from evaluate.runtime.locks import exclusive
from evaluate.runtime.processes import end_with_parent
from evaluate.runtime.settings import Settings, as_json, override, read_config, split_overrides
from results import artifacts, record
from results.atomic import sha256

if TYPE_CHECKING:
    from evaluate.encoder import Encoder
    from evaluate.encoder.spec import EncoderSpec
    from evaluate.harness.cost import Cost, Count


class Task(Protocol):
    """What a module of evaluate/ must have to be a task. It can be imported without torch, which only ``run`` needs."""

    __doc__: str | None
    """Protocol, Metric, Cost and a command; ``--help`` prints it."""
    Config: ClassVar[type[Settings]]
    """The protocol's numbers: a frozen dataclass, a string below each field."""
    PRESETS: ClassVar[Mapping[str, Settings]]
    """At least ``paper`` and ``demo``."""

    @staticmethod
    def reads(config: Any) -> tuple[str, ...]:
        """Names of the data sets (keys of ``evaluate.data.layouts.LAYOUTS``) that must be there; without one the task
        is skipped.

        A task may also have ``reads_if_there(config)``: the sets of which each fills a column of its own; and
        ``recommended(spec)``: the preset that is the protocol of an encoder's method, its default where there is one.
        """

    @staticmethod
    def cost(config: Any, spec: "EncoderSpec", count: "Count") -> "Cost":
        """Images, operations and the numbers of processes that may share them, for the plan."""

    @staticmethod
    def run(encoder: "Encoder", config: Any, env: Env) -> dict[str, float]:
        """The metrics in percent.

        It writes only below ``env.out_dir`` and the caches beside it, and tells the rest by ``env.report``.
        """


def main(task: str, argv: list[str] | None = None) -> int:
    """The command line of one task; returns the exit status (0 ok, 1 failed, 2 bad input, 3 skipped)."""
    try:
        return _main(task, argv)
    except (UserError, PermissionError) as error:
        print(f"evaluate.{task}: {in_one_sentence(error)}", file=sys.stderr)
        return EXIT_SKIPPED if isinstance(error, Skip) else EXIT_USER


def configured(task: str, module: Any, arguments: argparse.Namespace, default: str) -> tuple[str, Settings]:
    """The preset's name and the config that the arguments give: ``--config`` or ``--preset``, and ``--set`` on top."""
    overrides = split_overrides(arguments.set)
    unknown = set(overrides) - {"", task}
    if unknown:
        raise UserError(f"--set {min(unknown)}.…: this command has only the settings of {task}")
    if arguments.config and arguments.preset:
        raise UserError("give --config or --preset, not both")
    if arguments.config:
        preset, config = read_config(arguments.config, module.Config)
    else:
        preset = arguments.preset or default
        config = from_preset(module, preset)
    return preset, override(config, {**overrides.get("", {}), **overrides.get(task, {})})


def _main(task: str, argv: list[str] | None) -> int:
    end_with_parent()
    module = module_of(task)
    arguments = parser_of(task, module).parse_args(argv)
    data_root = arguments.data_root if arguments.images else layouts.root(arguments.data_root)
    measured = sets.choose([arguments.images], data_root) if arguments.images else ()
    if len(measured) > 1:
        raise UserError(f"--images {arguments.images} has several sets; name one: FILE.toml:NAME")
    own_node = of_set(task, measured[0]) if measured else None
    preset, config = configured(task, module, arguments, own_node.preset if own_node else "paper")
    node = own_node or node_of(task, config)
    arguments.ckpt = Path(named.with_class(str(arguments.ckpt), arguments.encoder))
    inputs = _inputs(arguments, node)
    device = devices.resolve_device(arguments.device)
    scalars.require(arguments.log)
    name = rows.check_name(arguments.name or next(iter(rows.named_checkpoints([str(arguments.ckpt)]))))

    from evaluate import encoder as encoders
    from evaluate.encoder import own as own_classes
    from evaluate.runtime import distributed

    device = distributed.start(device)
    first = distributed.rank() == 0  # under torchrun one process converts, prints and writes the record
    out = make_folder(arguments.out)
    make_folder(out / "records")  # now, not when hours have been spent
    if (given := named.parse(arguments.ckpt)) and given.code:
        own_classes.allow(given.code)
    path, data = distributed.broadcast_object(_prepare(arguments, out, name, node, config) if first else None)
    encoder = encoders.load(path, device=device)
    own = "" if arguments.preset or arguments.config else recommended(node, encoder.spec)
    if own:
        preset, config = configured(task, module, arguments, own)
        if first:
            print(is_recommended(node, own), flush=True)
    identity = record.identity(
        node.name,
        as_json(config),
        seed=arguments.seed,
        limit=arguments.limit,
        encoder_fingerprint=encoder.fingerprint,
        data_fingerprint=fingerprint(data),
        inputs={name: sha256(file) if file.is_file() else None for name, file in inputs.items()},
    )
    row_folder = rows.folder_of_encoder(out, path) or path.parent
    if row_folder.parent != Path(os.path.abspath(out)):  # an encoder file that lies elsewhere
        row_folder = make_folder(out / name)
    env = Env(
        data_root=data_root,
        out_dir=make_folder(work_folder(row_folder, identity)),
        device=device,
        workers=loading_processes(arguments.workers, device, int(os.environ.get("LOCAL_WORLD_SIZE", "1"))),
        seed=arguments.seed,
        limit=arguments.limit,
        identities=data,
        images=node.images,
        inputs=inputs,
        compile=arguments.compile,
        keep_models=arguments.keep_models,
    )
    entry = {**start(identity, preset, node, encoder, env), "encoder": name, "data": data}
    if not first:
        return distributed.end_together(measure(module, encoder, config, env, entry))
    with exclusive(env.out_dir / rows.LOCK, f"{name}/{node.name}"):
        standing = record.find(out / "records", name, identity)
        if standing and not stale_files(out, standing) and distributed.world_size() == 1:
            print(json.dumps(standing["metrics"], indent=2))
            print(f"record: {record.path_of(out / 'records', name, identity)} stands already")
            return 0
        scalars.choose(arguments.log, f"{name}/{node.name}")
        status = measure(module, encoder, config, env, entry)
        entry["files"] = {
            file: sha256(env.out_dir / file) for file in made_for_others(node) if (env.out_dir / file).is_file()
        }
        entry["artifacts"] = artifacts.found(env.out_dir)
        written = record.write(out / "records", entry, replace=standing is not None)
        _say(task, entry, written, env.out_dir)
        scalars.end()  # what a network may hold up comes after the record
    return distributed.end_together(status)


def _say(task: str, entry: dict[str, Any], written: Path, folder: Path) -> None:
    """Prints the metrics, or why there are none, and where the record is; what a measured task went on from goes."""
    from evaluate.runtime import training_state

    if entry["status"] == "ok":
        training_state.clear(folder)
        print(json.dumps(entry["metrics"], indent=2))
    else:
        print(f"evaluate.{task}: {entry['reason']}", file=sys.stderr)
    print(f"record: {written}")


def _prepare(
    arguments: argparse.Namespace, out: Path, name: str, node: Node, config: Settings
) -> tuple[Path, dict[str, str]]:
    """The row's encoder file, converted if need be, and the identities of the data: what one process does for all."""
    from evaluate.checkpoints import conversion

    known = dict(text.split("=", 1) for text in arguments.identity)
    identities = DataIdentities(arguments.data_root, out / "manifests", known=known)
    data = identities_of(identities, node, config)
    said = command_line.options(arguments)
    given = named.parse(arguments.ckpt)
    source = given.weights if given and given.code else arguments.ckpt
    if source and rows.folder_of_encoder(out, source) and not said:
        return Path(os.path.abspath(source)), data
    folder = rows.claim_folder(Path(os.path.abspath(out)), name, rows.source_id(arguments.ckpt, said))
    with exclusive(folder / rows.LOCK, f"converting {arguments.ckpt}"):
        path = conversion.ensure(arguments.ckpt, folder / rows.ENCODER, **said)
        if path == folder / rows.ENCODER:
            rows.seal_encoder(folder)
    return Path(os.path.abspath(path)), data


def made_for_others(node: Node) -> list[str]:
    """The files that a node makes for other nodes, by their names in its folder."""
    return sorted({file for other in NODES for needed, file in other.inputs.values() if needed == node.name})


def start(identity: record.Identity, preset: str, node: Node, encoder: "Encoder", env: Env) -> dict[str, Any]:
    """Everything about a run that is known before it begins; the status is failed until it has ended."""
    return {
        **identity,
        "encoder": env.out_dir.parent.name,
        "encoder_source": encoder.source,
        "architecture": encoder.spec.architecture,
        "preset": preset,
        "paper_config": as_json(paper_config(node)),
        "toy_data": env.images is None and layouts.is_toy(env.data_root),
        "column": node.column,
        "status": "failed",
        "reason": "",
        "metrics": {},
        "unit": "percent",
        "standard_error": {},
        "protocol": {},
        "epoch_rule": "final epoch",
        "images_asked": {},
        "images_evaluated": {},
        **{
            name: {}
            for name in ("sizes", "subset", "unreadable_images", "rests_on", "immaterial", "skipped", "resamples")
        },
        "work": f"{env.out_dir.parent.name}/{env.out_dir.name}",
        "data": dict(env.identities),
        "files": {},
        "device": env.device,
        "hardware": devices.hardware(env.device),
        "versions": record.versions(),
        "git": record.git_state(),
        "started_utc": record.utc_now(),
        "seconds": 0.0,
        "estimate": {},
        "memory": {},
    }


def measure(module: Any, encoder: "Encoder", config: Settings, env: Env, entry: dict[str, Any]) -> int:
    """Runs a task and completes its record; the exit status."""
    import torch

    from evaluate.runtime import distributed

    begun = time.monotonic()
    try:
        if env.images:
            env.images.require()
        for name in () if env.images else module.reads(config):
            layouts.require(env.data_root, name)
        torch.manual_seed(env.seed)
        if env.compile:
            env.report(protocol={"compiled": True})
        entry["metrics"] = {key: float(value) for key, value in module.run(encoder, config, env).items()}
        strange = [key for key, value in entry["metrics"].items() if not math.isfinite(value)]
        if strange:
            raise UserError(
                f"{strange[0]} is not a finite number; the encoder's features are too large, or the training diverged"
            )
        entry["status"], status = "ok", 0
    except Skip as error:
        entry["status"], entry["reason"], status = "skipped", str(error), EXIT_SKIPPED
    except (UserError, PermissionError) as error:
        entry["status"], entry["reason"], status = "failed", in_one_sentence(error), EXIT_USER
    except torch.OutOfMemoryError as error:
        entry["status"], entry["reason"], status = "failed", out_of_memory(error, config), EXIT_USER
    except Exception as error:  # a fault of ours or of a library: the record keeps it, the log has the traceback
        reason = from_outside(error)
        if not reason:
            traceback.print_exc()
        entry["status"], entry["reason"] = "failed", reason or f"{type(error).__name__}: {error}"
        status = EXIT_FAILED
    entry["seconds"] = round(time.monotonic() - begun, 2)
    entry["memory"] = devices.peak_memory(env.device)
    if status == 0:
        try:
            out, size = env.out_dir.parent.parent, distributed.world_size()
            entry["estimate"] = estimate.of_task(module, config, encoder.spec, env, out, size)
        except Exception:  # what was measured does not fail for want of it
            traceback.print_exc()
    entry.update(env.notes)
    protocol.complete(entry)
    return status


def out_of_memory(error: Exception, config: Settings) -> str:
    """One sentence that names the setting, if there is one, and what it changes."""
    found = re.search(r"total capacity of [\d.]+ \w+", str(error))
    of = f" (a {found[0]})" if found else ""
    if "micro_batch" not in as_json(config):
        return f"the GPU's memory{of} is too small for this encoder; take a larger GPU"
    return (
        f"the GPU's memory{of} does not hold a micro-batch of this encoder; take a larger GPU, or a smaller --set "
        f"micro_batch: where images of a micro-batch are mixed or normalized together, the cell is then marked"
    )


def _inputs(arguments: argparse.Namespace, node: Node) -> dict[str, Path]:
    """``--input NAME=FILE`` by name. Raises UserError for a name that the task does not know."""
    given = {}
    for text in arguments.input:
        name, separator, file = text.partition("=")
        if not separator or name not in node.inputs:
            legal = ", ".join(f"{name}=FILE" for name in node.inputs) or "none"
            raise UserError(f"--input {text}: the inputs of {node.task} are {legal}")
        given[name] = Path(file)
    return given
