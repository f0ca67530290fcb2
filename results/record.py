"""The record: one immutable JSON a measurement, written once and atomically by the code that measured it.

Its key is a hash of what can change the number, and of nothing else: see ``identity``.
"""

import hashlib
import importlib.metadata
import json
import platform
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, TypedDict

from results.atomic import atomic_write

SCHEMA = 2  # 2: paper_config, inputs, work; a record of schema 1 is not found again, so its task is measured anew
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
    """Format, branch and sha256 of the file that the encoder came from."""
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
    data: dict[str, str]
    """By part of the data root: the identity of what was read (``evaluate.data.identity``)."""
    files: dict[str, str]
    """SHA-256 of each file that the task made for another one, by its name in ``work``."""
    work: str
    """The folder below OUT where the task kept its files."""
    device: str
    versions: dict[str, str]
    """Of Python and of the packages that can change a number."""
    git: dict[str, Any]
    """Commit, and whether the tree was changed; empty outside a checkout."""
    started_utc: str
    """ISO 8601."""
    seconds: float
    """From the start of the task to its end, without the conversion."""


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
    path = path_of(folder, encoder, fields)
    if not path.is_file():
        return None
    entry = json.loads(path.read_text())
    return entry if entry["status"] == "ok" else None


def without_run(encoder: str, task: str, status: str, reason: str, seed: int, limit: int | None) -> dict[str, Any]:
    """The record of a task that did not come to write one: it was not started, or its process was ended."""
    known = identity(task, {}, seed=seed, limit=limit, encoder_fingerprint=None, data_fingerprint=None, inputs={})
    ended = {"encoder": encoder, "paper_config": {}, "status": status, "reason": reason, "metrics": {}, "work": ""}
    return {**known, **ended, "started_utc": utc_now()}


def write(folder: Path, entry: Mapping[str, Any], replace: bool = False) -> Path:
    """Writes a record atomically; an ``ok`` record already there under the same key is left as it is, unless ``replace``."""
    folder.mkdir(parents=True, exist_ok=True)
    path = path_of(folder, entry["encoder"], entry)
    if not replace and path.is_file() and json.loads(path.read_text())["status"] == "ok":
        return path
    with atomic_write(path) as written:
        written.write_text(json.dumps({**entry, "key": key_of(entry)}, indent=1))
    return path


def read_all(folder: Path) -> list[dict[str, Any]]:
    """All records below a folder, oldest first. Raises ValueError naming a file that is not one."""
    entries = []
    for path in sorted(folder.glob("*.json")):
        try:
            entry = json.loads(path.read_text())
            entry["status"], entry["task"], entry["metrics"]
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is not a record ({error}); move it away") from error
        entries.append(entry)
    return sorted(entries, key=lambda entry: entry["started_utc"])


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
        commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=True).stdout.strip()
        dirty = bool(subprocess.run(["git", "status", "--porcelain"], cwd=here, capture_output=True, text=True, check=True).stdout)
    except (OSError, subprocess.CalledProcessError):
        return {}
    return {"commit": commit, "dirty": dirty}
