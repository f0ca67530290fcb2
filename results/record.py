"""The record: one immutable JSON a measurement, written once and atomically by the code that measured it.

Its key is a hash of what can change the number, and of nothing else: see ``identity``.
"""

import contextlib
import glob
import hashlib
import importlib.metadata
import json
import platform
import subprocess
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, TypedDict

from results import reading
from results.atomic import atomic_write

# 2: paper_config, inputs, work; 3: sizes, subset, rests_on, immaterial, without which a cell cannot be marked rightly.
# A record of another schema is not found again, so its task is measured anew.
SCHEMA = 3
PACKAGES = (
    "torch",
    "torchvision",
    "timm",
    "numpy",
    "scikit-learn",
    "onedl-mmengine",
    "onedl-mmcv",
    "onedl-mmdetection",
    "onedl-mmsegmentation",
    "faster-coco-eval",
)
Status = Literal["ok", "skipped", "failed"]


class Identity(TypedDict):
    """What can change a number, and nothing else; the key of a record is a hash of it."""

    schema: int
    """Of the record's form and of the code's protocols as a whole."""
    task: str
    """Name of the node (``evaluate.harness.plan``) that was measured."""
    config: dict[str, Any]
    """Every setting of the task, resolved."""
    seed: int
    """Of everything that is drawn."""
    limit: int | None
    """At most so many images of each set were read; None: all."""
    encoder_fingerprint: str | None
    """Digest of the encoder's tensors and of what its spec says; None where there was no encoder."""
    data_fingerprint: str | None
    """Digest of the data sets that the task reads."""
    inputs: dict[str, str | None]
    """SHA-256 of each file that another task made, by name."""


class Record(Identity):
    """One measurement."""

    key: str
    """16 hexadecimal digits, a hash of the identity."""
    encoder: str
    """Name of the row."""
    encoder_source: dict[str, Any]
    """Format, branch, epoch and sha256 of the file that the encoder came from; ``assumed``: what no file said of it,
    ``remark``: what its training says of itself, in sentences that the table repeats."""
    preset: str
    """Name of the preset that the config began as."""
    paper_config: dict[str, Any]
    """The paper's settings of the task as they were when it was measured; a cell with other settings is marked."""
    toy_data: bool
    """True for data that this project made: never in a table with published numbers."""
    status: Status
    """ok: there are metrics; skipped, failed: ``reason`` says why not."""
    reason: str
    """One sentence; empty where the status is ok."""
    metrics: dict[str, float]
    """By name, in percent."""
    unit: str
    """Always percent."""
    standard_error: dict[str, float]
    """By metric, in percent points, where the task knows it."""
    protocol: dict[str, Any]
    """What a reader must know to compare: pooling, head, test resolution, framework, schedule and the like."""
    epoch_rule: str
    """Always the final epoch: nothing is chosen on the test split."""
    images_asked: dict[str, int]
    """By set: how many images it has."""
    images_evaluated: dict[str, int]
    """By set: how many were read; fewer than asked for only where the user allowed it."""
    sizes: dict[str, dict[str, int]]
    """By set: how many images and classes lie there, whatever the limit."""
    subset: dict[str, str]
    """By set that is not as published: its images and classes beside the published numbers; the cell is marked."""
    unreadable_images: dict[str, list[str]]
    """By set: the images that could not be read and were left out, as the user allowed; they mark the cell."""
    rests_on: dict[str, dict[str, Any]]
    """By task whose result was measured here: how that was made (settings, the paper's, limit, seed, images).

    Its marks are this cell's too; {} where it does not say."""
    immaterial: dict[str, list[str]]
    """By beginning of a metric's name, "" for all: settings that do not change it here and so mark nothing."""
    skipped: dict[str, str]
    """By set of a task that ran: why there is no number of it."""
    data: dict[str, str]
    """By part of the data root: the identity of what was read (``evaluate.data.identity``)."""
    files: dict[str, str]
    """SHA-256 of each file that the task made for another one, by its name in ``work``."""
    work: str
    """The folder below OUT where the task kept its files."""
    device: str
    hardware: dict[str, Any]
    """Of a GPU: its name, its memory in GiB, the driver and CUDA; empty on a CPU."""
    versions: dict[str, str]
    """Of Python and of the packages that can change a number."""
    git: dict[str, Any]
    """Commit, and whether the tree was changed; empty outside a checkout."""
    started_utc: str
    """ISO 8601."""
    seconds: float
    """From the start of the task to its end, without the conversion."""
    estimate: dict[str, Any]
    """``seconds``, as the plan of a run estimates them for this device and as many processes, ``source`` (of which
    speed), and where it is known ``memory`` in bytes. Only of what was measured; absent in older records."""
    memory: dict[str, int]
    """Bytes at most: ``process``, of the first process without its loading processes, and on a GPU ``gpu``, of its
    tensors; absent in older records."""
    architecture: str
    """Of the encoder, as papers name it (``ViT-B/16``); absent in older records."""
    column: dict[str, str]
    """Of a labelled set besides ImageNet, the column that it brings along: ``heading``, ``metric``, ``group`` (what
    stands over its columns) and ``sets`` (how run_all.py's --sets names it); empty for every other."""
    resamples: dict[str, list[float]]
    """By metric of detection and segmentation: its values on 200 draws of as many images, with replacement, in percent.
    The draws are the same for every encoder, so two records are compared draw by draw; absent in older records."""
    artifacts: dict[str, str]
    """By name, what each file is that the task left in ``work`` (``results.artifacts``); absent in older records."""
    checksum: str
    """SHA-256 of all other fields: a record that somebody edited is no record; absent in older ones."""


def identity(
    task: str,
    config: Mapping[str, Any],
    *,
    seed: int,
    limit: int | None,
    encoder_fingerprint: str | None,
    data_fingerprint: str | None,
    inputs: Mapping[str, str | None],
) -> Identity:
    """The identity of a measurement: the one place that says what it is made of."""
    return Identity(
        schema=SCHEMA,
        task=task,
        config=dict(config),
        seed=seed,
        limit=limit,
        encoder_fingerprint=encoder_fingerprint,
        data_fingerprint=data_fingerprint,
        inputs=dict(inputs),
    )


def key_of(fields: Mapping[str, Any]) -> str:
    """16 hexadecimal digits that name what was measured, from a record or its identity."""
    text = json.dumps({name: fields[name] for name in Identity.__annotations__}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def path_of(folder: Path, encoder: str, fields: Mapping[str, Any]) -> Path:
    """Where the record of a row and an identity lies below a folder of records."""
    return folder / f"{encoder}-{fields['task']}-{key_of(fields)}.json"


def find(folder: Path, encoder: str, fields: Mapping[str, Any]) -> dict[str, Any] | None:
    """The ``ok`` record of exactly this identity, or None."""
    try:
        entry = reading.read_file(path_of(folder, encoder, fields), SCHEMA, Identity.__annotations__)
    except reading.NotARecord:
        return None
    same = entry["encoder"] == encoder and key_of(entry) == key_of(fields)
    return entry if same and entry["status"] == "ok" else None


def without_run(encoder: str, task: str, status: str, reason: str, seed: int, limit: int | None) -> dict[str, Any]:
    """The record of a task that did not come to write one: it was not started, or its process was ended."""
    known = identity(task, {}, seed=seed, limit=limit, encoder_fingerprint=None, data_fingerprint=None, inputs={})
    ended = {"encoder": encoder, "paper_config": {}, "status": status, "reason": reason, "metrics": {}, "work": ""}
    return {**known, **ended, "started_utc": utc_now()}


def write(folder: Path, entry: Mapping[str, Any], replace: bool = False) -> Path:
    """Writes a record atomically; an ``ok`` one already there under the same key stays as it is, unless ``replace``."""
    folder.mkdir(parents=True, exist_ok=True)
    path = path_of(folder, entry["encoder"], entry)
    if not replace and find(folder, entry["encoder"], entry):
        return path
    if (
        path.is_dir() and not path.is_symlink()
    ):  # whoever made it: a file cannot take its name, and it is not ours to remove
        path.rename(path.with_name(f"{path.name}.{time.time_ns()}.odd"))
    with atomic_write(path) as written:
        whole = {**entry, "key": key_of(entry)}
        written.write_text(json.dumps({**whole, "checksum": reading.checksum(whole)}, indent=1))
    return path


def read(folder: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """All records in a folder, oldest first, and a sentence for what lies there besides; that is never an error."""
    return reading.read_folder(folder, SCHEMA, Identity.__annotations__)


def read_all(folder: Path) -> list[dict[str, Any]]:
    """The records alone, as ``read``."""
    return read(folder)[0]


def of(folder: Path, encoder: str, task: str) -> list[dict[str, Any]]:
    """The records of one row and task, whatever their settings; reads no others."""
    found = []
    for path in sorted(folder.glob(f"{glob.escape(encoder)}-{task}-*.json")):
        with contextlib.suppress(reading.NotARecord):
            found.append(reading.read_file(path, SCHEMA, Identity.__annotations__))
    return [entry for entry in found if (entry["encoder"], entry["task"]) == (encoder, task)]


def utc_now() -> str:
    """The time as ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def versions() -> dict[str, str]:
    """Installed versions of what can change a number."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "absent"
    return found


def git_state() -> dict[str, Any]:
    """Commit and whether the tree is changed; empty outside a checkout."""
    here = Path(__file__).parent
    try:
        commit = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=True
        ).stdout.strip()
        dirty = bool(
            subprocess.run(
                ["git", "status", "--porcelain"], cwd=here, capture_output=True, text=True, check=True
            ).stdout
        )
    except (OSError, subprocess.CalledProcessError):
        return {}
    return {"commit": commit, "dirty": dirty}
