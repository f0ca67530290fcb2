"""From a checkpoint to the paper's whole table.

    uv run run_all.py                                    the demo: data, three encoders and every column, in minutes
    uv run run_all.py --demo --data-root DIR             the demo on your images: pretrains on them, then measures
    uv run run_all.py --ckpt FILE --data-root DIR        any checkpoint on the real data sets, by the paper's protocols
    uv run run_all.py --ckpt FILE --data-root DIR --dry-run
    uv run run_all.py --ablate PRESET PRESET …           pretrains each preset of pretrain.train, then measures them
    uv run run_all.py --status OUT                       how far is it? from any terminal; --cancel OUT stops it

Each task runs in its own process and writes one record; the table is rendered again after each task. When you run the
same command again, it does only what is missing. Exit status: 0 all done or skipped with a reason, 1 a task failed, 2
bad input; --check-data and --calibrate also 3, data absent.
"""

import argparse
import itertools
import json
import os
import sys
from collections.abc import Collection, Mapping
from pathlib import Path

from evaluate.data import sets
from evaluate.data.identity import DataIdentities
from evaluate.encoder.spec import EncoderSpec, read_spec
from evaluate.harness import (
    clean,
    demo,
    estimate,
    executor,
    jobs,
    logs,
    options,
    plan,
    pretraining,
    quick,
    rows,
    slurm,
    slurm_arrays,
    slurm_states,
    slurm_submit,
    suite,
    watch,
)
from evaluate.harness.asked import Asked, asked, gpus_to_plan_for, more_seeds, named_checkpoints, spec_of
from evaluate.harness.cost import VIT_B
from evaluate.runtime import devices, scalars
from evaluate.runtime.cli import (
    EXIT_CTRL_C,
    EXIT_SKIPPED,
    EXIT_USER,
    loading_processes,
    make_folder,
)
from evaluate.runtime.errors import UserError, in_one_sentence
from evaluate.runtime.processes import end_with_parent
from evaluate.runtime.settings import as_json
from results import record, tables
from results.ending import is_full, leave

COMPARED = 10  # rows: of more, the sentences on each two of them are left out


def main(argv: list[str] | None = None) -> int:
    """Parses, plans, runs, renders; returns the exit status."""
    arguments = options.parse(argv, __doc__)
    end_with_parent()
    try:
        with executor.stopping_in_words():
            return run(arguments)
    except (UserError, PermissionError) as error:
        print(f"run_all.py: {in_one_sentence(error)}", file=sys.stderr)
        return EXIT_USER
    except OSError as error:
        if not is_full(error):
            raise
        print(f"run_all.py: {in_one_sentence(error)}", file=sys.stderr)
        return EXIT_USER
    except executor.Stopped as stop:
        print(f"run_all.py: {stop}", file=sys.stderr)
        return stop.status
    except KeyboardInterrupt:
        print("run_all.py: stopped; the same command goes on from here", file=sys.stderr)
        return EXIT_CTRL_C


def run(arguments: argparse.Namespace) -> int:
    """The whole of it. Raises UserError on bad input, before anything runs."""
    devices.check_word(arguments.device)
    if arguments.status:
        given = Path(os.path.abspath(arguments.status))
        return 0 if slurm_states.status(given) else watch.status(given)
    if arguments.cancel:
        given = Path(os.path.abspath(arguments.cancel))
        return 0 if slurm_states.cancel(given) else watch.cancel(given)
    slurm.check(arguments)
    scalars.require(arguments.log)
    others = arguments.ckpt or arguments.calibrate or arguments.clean
    if (arguments.demo or arguments.ablate) and others or arguments.ablate and arguments.check_data:
        raise UserError("--demo and --ablate pretrain: leave out --ckpt, --calibrate, --clean (and --check-data)")
    if arguments.clean:
        return clean.main(Path(os.path.abspath(arguments.clean)), remove=arguments.yes)
    if arguments.quick:
        specs = {row: spec_of(arguments.out, row, path) for row, path in named_checkpoints(arguments).items()}
        print(quick.fill_in(arguments, gpus_to_plan_for(arguments), specs), flush=True)
    wanted = asked(arguments)
    if arguments.dry_run:
        return dry_run(arguments, wanted)
    if arguments.check_data or arguments.calibrate:
        return examine(arguments, wanted)
    return measure(arguments, wanted)


def measure(arguments: argparse.Namespace, wanted: Asked) -> int:
    """Pretrains where that is asked for, measures, renders: here, on Slurm, or as a part of what Slurm runs."""
    out = make_folder(Path(os.path.abspath(arguments.out)))
    make_folder(out / "records")
    if not (arguments.part or arguments.launch):
        watch.announce(out)
    if arguments.data_root or arguments.sets:
        data_root = Path(os.path.abspath(sets.root(arguments.data_root, arguments.sets)))
    else:
        data_root = make_toy_world(out, arguments.seed)
    identities = DataIdentities(data_root, out / "manifests", arguments.verify_data)
    nodes = wanted.nodes
    if arguments.part == slurm.DATA:
        for node in nodes:
            plan.identities_of(identities, node, wanted.configs[node.name][1])
        identities.keep()
        return 0
    if arguments.part:
        identities.take()
    where = {name: getattr(arguments, name) for name in ("seed", "limit", "device", "compile", "keep_models", "log")}
    shared = suite.Suite(
        out,
        identities,
        nodes,
        wanted.configs,
        wanted.of_encoder,
        conversion=wanted.conversion,
        more_seeds=more_seeds(arguments),
        **where,
    )
    checkpoints, work = wanted.checkpoints, list[executor.Job]()
    if wanted.presets:
        trained = pretraining.Pretraining(
            out,
            identities,
            wanted.presets,
            arguments.seed,
            arguments.device,
            wanted.minutes,
            wanted.training,
            wanted.resolved,
        )
        print(trained.plan() if arguments.ablate else demo.plan(data_root, wanted.minutes), flush=True)
        checkpoints, work = trained.checkpoints(), trained.jobs()
    for row, path in checkpoints.items():
        after = (f"{row}/{pretraining.TASK}",) if wanted.presets else ()
        work += jobs.measuring(row, path, nodes, shared, tuple(checkpoints), after)
    if arguments.part == slurm_arrays.TABLE:
        shared.renders = False  # once, below
        slurm_states.conclude(work, out)
        shared.renders = True
        return report(shared, list(checkpoints), nodes, work)
    every = {job.name for job in work}
    if arguments.part:
        work, shared.renders = slurm.only(work, arguments.part), False  # other parts run at the same time
    elif arguments.launch and not all(job.is_done() for job in work):
        return launch(arguments, checkpoints, wanted, shared, work)
    work = here(arguments, wanted, shared, work, every)
    status = report(shared, list(checkpoints), nodes, work)
    if arguments.quick:
        shown = shared.entries(list(checkpoints), nodes)
        print(quick.advice({entry.get("architecture", "") for entry in shown}))
    return status


def here(
    arguments: argparse.Namespace, wanted: Asked, run: suite.Suite, work: list[executor.Job], every: Collection[str]
) -> list[executor.Job]:
    """Runs jobs on this machine; returns those that were to be done, which a plan may have made fewer.

    Args:
        every: the names of all jobs, also of those that another process runs.
    """
    gpus: list[str] = []
    if not all(job.is_done() for job in work):  # to look for GPUs takes torch
        device = devices.resolve_device(arguments.device)
        gpus = devices.visible_gpus(device)[: arguments.gpus]
        run.device = "cuda" if gpus else device  # a job sees its own GPU alone
    slots = arguments.jobs or len(gpus) or min(2, os.cpu_count() or 1)
    forks = not (gpus or arguments.part or devices.has_unused_gpu())
    run.workers = loading_processes(arguments.workers, "cuda" if gpus else "cpu", slots)
    if not wanted.is_small and (gpus or wanted.budget or arguments.probe):
        # what a task costs follows from its encoder
        before = [job for job in work if job.name.endswith((f"/{pretraining.TASK}", "/convert"))]
        for job in before:
            row, _, kind = job.name.rpartition("/")
            if kind == pretraining.TASK and not arguments.jobs:  # on all GPUs that can share its batch
                job.slots = pretraining.processes(wanted.resolved[row], len(gpus))
        executor.run(before, slots, gpus, arguments.task_timeout, run.out, forks)
        stands = {job.name for job in work if job.is_done()} | (set(every) - {job.name for job in work})
        specs = {row: read_spec(run.encoder(row)) if row in run.folders else None for row in wanted.checkpoints}
        count = min(len(gpus), 1) if arguments.jobs else len(gpus)
        plan_of = planned(arguments, specs, wanted, count, stands)
        work = jobs.as_planned(work, plan_of, run)
    executor.run(work, slots, gpus, arguments.task_timeout, run.out, forks)
    return work


def report(run: suite.Suite, shown: list[str], nodes: tuple[plan.Node, ...], work: list[executor.Job]) -> int:
    """Prints the table, where it lies, the time of each part and what failed; the exit status."""
    out = run.out
    if run.renders:
        entries = run.entries(shown, nodes)
        few = shown if len(shown) <= COMPARED else []
        pairs = [tables.paired(out, entries, first, second) for first, second in itertools.combinations(few, 2)]
        print("", *(pair for pair in pairs if pair), sep="\n")
        print(f"\n{tables.render(out, shown, entries)}")
        print("tables: " + ", ".join(str(out / file) for file, _ in tables.FORMATS.values()))
    print("seconds: " + ", ".join(f"{job.name} {job.seconds:.0f}" for job in work if job.seconds))
    failed = [job for job in work if job.status not in (0, EXIT_SKIPPED)]
    for job in failed:
        print(f"{job.name} failed: {logs.why(job.log, job.status or 0)} (log: {job.log})", file=sys.stderr)
    return int(bool(failed))


def launch(
    arguments: argparse.Namespace,
    checkpoints: Mapping[str, Path],
    wanted: Asked,
    run: suite.Suite,
    work: list[executor.Job],
) -> int:
    """Submits what is to be done as jobs of Slurm and leaves them to it."""
    stands = {job.name for job in work if job.is_done()}
    specs = {row: read_spec(run.encoder(row)) or read_spec(path) for row, path in checkpoints.items()}
    gpus = 0 if arguments.device == "cpu" else arguments.gpus or slurm.GPUS
    listed = planned(arguments, specs, wanted, gpus, stands)
    said = slurm.options(arguments.slurm)
    tasks = slurm.tasks(arguments, checkpoints, wanted.nodes, listed, stands)
    slurm_submit.submit(tasks, run.out, said, slurm.minutes_of(said.get("time")))
    return 0


def make_toy_world(out: Path, seed: int) -> Path:
    """The demo's data, made once."""
    from evaluate.data import toy

    print("toy world: making it, or taking the one that stands", flush=True)
    return toy.make(out / "data", toy.World(seed=seed))


def planned(
    arguments: argparse.Namespace,
    specs: Mapping[str, EncoderSpec | None],
    wanted: Asked,
    gpus: int,
    stands: Collection[str],
) -> list[estimate.Planned]:
    """What each task costs and how many GPUs it gets, printed; measures this machine first where that is asked for.

    Args:
        specs: by row, of its encoder; None before the conversion.
        gpus: of this machine that may be used; 0 on a CPU.
        stands: the tasks, ROW/NODE, that need not run.
    """
    out, root = Path(arguments.out), sets.root(arguments.data_root, arguments.sets)
    unknown = [row for row, spec in specs.items() if not spec]
    if arguments.probe:
        from evaluate.harness import probe

        device = devices.resolve_device(arguments.device)
        every = [config for _, config in wanted.configs.values()]
        side = next((side for config in every if (side := getattr(config, "img_size", None))), 224)
        workers = loading_processes(arguments.workers, device, max(gpus, 1))
        print("probe: measuring this machine, which takes half a minute", flush=True)
        spec = next((spec for spec in specs.values() if spec and spec.recipes != "pyramid"), VIT_B)
        estimate.keep(probe.measure(spec, side, device, workers, root), make_folder(out))
    speed = estimate.kept(out, gpus)
    listed, seeds = [], more_seeds(arguments)
    for row, known in specs.items():
        configs = wanted.of_encoder(known)
        listed += estimate.plan({row: known}, wanted.nodes, configs, root, speed, arguments.limit, seeds, stands)
    if wanted.budget:
        listed = estimate.within(listed, wanted.budget)
    listed = estimate.allocate(listed, max(gpus, 1))
    print(estimate.table(listed, gpus, speed, Path(os.path.abspath(out))), flush=True)
    if unknown:
        named = ", ".join(unknown) if len(unknown) < 10 else f"{len(unknown)} rows"
        print(f"{named}: taken for a ViT-B/16 of SiameseIM's, since the checkpoint is not converted yet")
    return listed


def dry_run(arguments: argparse.Namespace, wanted: Asked) -> int:
    """Prints what would run, and of checkpoints what it would cost."""
    nodes, checkpoints = wanted.nodes, wanted.checkpoints
    for row, values in wanted.resolved.items():
        print(f"{row} ({wanted.presets[row]}): pretraining: {json.dumps(values)}")
    specs: dict[str, EncoderSpec | None] = {}
    if arguments.ckpt:
        specs = {row: spec_of(arguments.out, row, path) for row, path in checkpoints.items()}
        same = {
            (row, node.name, json.dumps(as_json(wanted.of_encoder(spec)[node.name][1])))
            for (row, spec), node in itertools.product(specs.items(), nodes)
        }
        recorded = {
            plan.task_name(entry["encoder"], entry["task"], None if entry["seed"] == arguments.seed else entry["seed"])
            for entry in record.read_all(Path(arguments.out) / "records")
            if entry["status"] == "ok"
            and entry["limit"] == arguments.limit
            and entry["seed"] in (arguments.seed, *more_seeds(arguments))
            and (entry["encoder"], entry["task"], json.dumps(entry["config"])) in same
        }
        gpus = gpus_to_plan_for(arguments)
        listed = planned(arguments, specs, wanted, gpus, recorded)
        if arguments.launch:
            stands = {f"{row}/convert" for row in specs if (Path(arguments.out) / row / rows.ENCODER).is_file()}
            tasks = slurm.tasks(arguments, checkpoints, nodes, listed, stands)
            numbers = slurm_arrays.numbered(checkpoints, slurm_states.kept(Path(arguments.out)).get("rows", {}))
            print(slurm_arrays.printed(slurm_arrays.arrays(tasks, numbers, {}), slurm.options(arguments.slurm)))
            return 0
        if not gpus:
            print("--gpus N plans for a machine with N GPUs")
    for name, path in checkpoints.items():
        for node in nodes:
            preset, config = wanted.of_encoder(specs.get(name))[node.name]
            compiled = ", compiled" if arguments.compile and node.task in plan.COMPILED else ""
            print(f"{name} ({wanted.presets.get(name, path)}): {node.name} ({preset}{compiled}): {config}")
    return 0


def examine(arguments: argparse.Namespace, wanted: Asked) -> int:
    """Looks at the data before hours are spent on them: what the tasks read, or whether a released checkpoint gives its
    accuracy.
    """
    from evaluate import calibrate
    from evaluate.data import check

    root = sets.root(arguments.data_root, arguments.sets)
    if arguments.calibrate:
        options = ["--data-root", str(root), "--device", arguments.device, "--out", str(arguments.out)]
        options += ["--workers", str(arguments.workers)] if arguments.workers is not None else []
        return calibrate.main(["--ckpt", str(arguments.calibrate), *options])
    names = [name for node in wanted.nodes for name in plan.data_sets(node, wanted.configs[node.name][1])]
    samples = sys.maxsize if arguments.verify_data else check.SAMPLES
    if arguments.demo:  # it takes what is there
        return check.report(root, ["imagenet", *names], samples, subset=True, needed=["imagenet"])
    labelled = {node.images.name: node.images for node in wanted.nodes if node.images}
    return check.report(root, names, samples, subset=arguments.subset, labelled=labelled.values())


if __name__ == "__main__":
    leave(main)
