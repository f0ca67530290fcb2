"""The commands behind the table: what converts and measures one checkpoint."""

import itertools
import sys
from collections.abc import Sequence
from pathlib import Path

from evaluate.checkpoints import command_line, named
from evaluate.harness import estimate, rows, suite
from evaluate.harness.executor import Job
from evaluate.harness.logs import why
from evaluate.harness.plan import COMPILED, Node, draws, task_name
from evaluate.runtime.cli import EXIT_FAILED, EXIT_SKIPPED
from evaluate.runtime.errors import UserError
from results import record, tables
from results.columns import heading_of


def measuring(
    row: str,
    checkpoint: Path,
    nodes: Sequence[Node],
    run: suite.Suite,
    table_rows: Sequence[str],
    after: tuple[str, ...] = (),
) -> list[Job]:
    """Converts one checkpoint, then measures every node on it. ``after`` are the jobs that come first."""
    log = run.out / "logs" / f"{row}-convert.log"
    if given := named.parse(checkpoint):
        run.codes[row] = given.code

    def convert() -> list[str]:
        command = [
            sys.executable,
            "-m",
            "evaluate.convert",
            str(checkpoint),
            "--out",
            str(run.encoder(row)),
            "--if-needed",
        ]
        return command + command_line.as_arguments(run.conversion.get(row, {}))

    def is_converted() -> bool:
        if not named.is_there(checkpoint):
            return False
        try:
            run.claim(row, checkpoint)
        except UserError:
            run.folders[row] = run.out / row  # the conversion says what is wrong with the file
            return False
        return run.encoder_fingerprint(row) is not None

    def converted(status: int, log: Path = log) -> int:
        told = log.read_text(errors="replace").strip()  # the certificate, or what is wrong
        if not status and not run.encoder(row).is_file():
            told = f"{told}\nit ended without writing {run.encoder(row)}".strip()
            log.write_text(f"{told}\n")
            status = EXIT_FAILED
        if status:
            run.refused.add(row)
        else:
            rows.seal_encoder(run.folders[row])
        print(f"{row}/convert: {told}{f' (log: {log})' if status else ''}", flush=True)
        return status

    jobs = [Job(f"{row}/convert", convert, log, after, is_converted, converted)]
    for seed, node in itertools.product((run.seed, *run.more_seeds), nodes):
        if seed in run.more_seeds and not draws(node, run.config(row, node)[1]):
            continue
        further = seed if seed in run.more_seeds else None
        name = task_name(row, node.name, further)
        log = run.out / "logs" / f"{name.replace('/', '-').replace(' ', '-')}.log"
        needs = (f"{row}/convert", *(task_name(row, need, further) for need in node.needs))

        def command(node: Node = node, seed: int = seed, name: str = name) -> list[str]:
            return _command(row, node, run.of_seed(seed), run.gpus.get(name, 1))

        def stands(node: Node = node, seed: int = seed) -> bool:
            return run.of_seed(seed).find(row, node) is not None

        def on_exit(status: int, node: Node = node, log: Path = log, seed: int = seed, name: str = name) -> int:
            return _note(row, node, status, log, run, table_rows, nodes, name, seed)

        def numbers(node: Node = node, seed: int = seed) -> str:
            metrics = (run.of_seed(seed).find(row, node) or {"metrics": {}})["metrics"]
            own = {node.column["metric"]: node.heading} if node.images else {}
            shown = {own.get(metric) or heading_of(node.name, metric): value for metric, value in metrics.items()}
            return ", ".join(f"{heading} {value:.1f}" for heading, value in shown.items() if heading)

        jobs.append(Job(name, command, log, needs, stands, on_exit, numbers))
    return jobs


def as_planned(work: Sequence[Job], plan: Sequence[estimate.Planned], run: suite.Suite) -> list[Job]:
    """The jobs that a plan does not leave out, each with the GPUs that it gives; what stands stays among them."""
    run.gpus = {one.name: one.gpus for one in plan}
    for job in work:
        job.slots = run.gpus.get(job.name, 1)
    beyond = {one.name for one in plan if one.state == estimate.BEYOND}
    return [job for job in work if job.name not in beyond]


def _command(row: str, node: Node, run: suite.Suite, processes: int) -> list[str]:
    several = ["-m", "evaluate.runtime.torchrun", "--standalone", "--nproc-per-node", str(processes)]
    command = [
        sys.executable,
        *(several if processes > 1 else []),
        "-m",
        f"evaluate.{node.task}",
        "--ckpt",
        named.with_class(str(run.encoder(row)), run.codes.get(row)),
        f"--name={row}",
        "--data-root",
        str(run.identities.data_root),
    ]
    settings = {
        "out": run.out,
        "config": run.write_config(row, node),
        "seed": run.seed,
        "device": run.device,
        "workers": run.workers,
    }
    command += [part for name, value in settings.items() for part in (f"--{name}", str(value))]
    command += ["--images", node.images.source] if node.images else []
    command += ["--limit", str(run.limit)] if run.limit else []
    if run.identities.for_tasks:
        command += [f"--identity={part}={known}" for part, known in run.identities.present(run.data(node)).items()]
    command += ["--keep-models"] if run.keep_models else []
    command += ["--compile"] if run.compile and node.task in COMPILED else []
    command += ["--log", run.log] if run.log else []
    command += [part for name, path in run.inputs(row, node).items() for part in ("--input", f"{name}={path}")]
    return command


def _note(
    row: str,
    node: Node,
    status: int,
    log: Path,
    run: suite.Suite,
    table_rows: Sequence[str],
    nodes: Sequence[Node],
    name: str,
    seed: int,
) -> int:
    """After a task: says how it ended, writes its record if it could not, and renders the table again.

    Returns its status: failed where it ended as if all were well, but without a record.
    """
    recorded = log.is_file() and "\nrecord: " in log.read_text(errors="replace")
    # of two runs with one OUT the later one has begun the log anew: then the record itself tells
    if not status and not recorded and run.of_seed(seed).find(row, node) is None:
        status = EXIT_FAILED
        with log.open("a") as said:
            said.write("\nit ended without a record\n")
    word = {0: "done", EXIT_SKIPPED: "skipped"}.get(status, "failed")
    reason = why(log, status)
    where = "" if str(log) in reason else f" (log: {log})"
    print(f"{name}: {word}{f': {reason}{where}' if status else ''}", flush=True)
    if status and not recorded:
        entry = record.without_run(row, node.name, word, reason, seed, run.limit)
        folder = run.folders[row].name if row in run.folders else ""
        record.write(run.out / "records", {**entry, "folder": folder, "column": node.column})
    if run.renders:
        tables.render(run.out, table_rows, run.entries(table_rows, nodes))
    return status
