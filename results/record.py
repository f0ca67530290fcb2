"""The record: one immutable JSON a (encoder, task, config), written once and atomically by the code that measured it.

Its key is a hash of what can change the number, and of nothing else: the task, its config, seed and image limit, the encoder's
fingerprint, the data's fingerprint, and the classifier where one is measured.
"""

import hashlib
import importlib.metadata
import json
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from results.atomic import whole

SCHEMA = 2  # 2: paper_config, the paper's settings of the task as they were when it was measured
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
KEY_FIELDS = ("schema", "task", "config", "seed", "limit", "encoder_fingerprint", "data_fingerprint", "classifier")


def key(entry: dict[str, Any]) -> str:
    """16 hexadecimal digits that name what was measured."""
    text = json.dumps({name: entry[name] for name in KEY_FIELDS}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def path_of(folder: Path, entry: dict[str, Any]) -> Path:
    """Where a record lies."""
    return folder / f"{entry['encoder']}-{entry['task']}-{key(entry)}.json"


def find(folder: Path, encoder: str, fields: dict[str, Any]) -> dict[str, Any] | None:
    """The ``ok`` record of exactly these KEY_FIELDS, or None."""
    path = path_of(folder, {"encoder": encoder, **fields})
    if not path.is_file():
        return None
    entry = json.loads(path.read_text())
    return entry if entry["status"] == "ok" else None


def without_run(encoder: str, task: str, status: str, reason: str, seed: int, limit: int | None) -> dict[str, Any]:
    """The record of a task that did not come to write one: it was not started, or its process was ended."""
    absent = dict.fromkeys(("encoder_fingerprint", "data_fingerprint", "classifier"))
    now = datetime.now(UTC).isoformat(timespec="seconds")
    known = {"schema": SCHEMA, "task": task, "encoder": encoder, "config": {}, "paper_config": {}, "seed": seed, "limit": limit}
    return {**known, **absent, "status": status, "reason": reason, "metrics": {}, "started_utc": now}


def write(folder: Path, entry: dict[str, Any]) -> Path:
    """Writes a record atomically; an ``ok`` record already there under the same key is left as it is."""
    folder.mkdir(parents=True, exist_ok=True)
    path = path_of(folder, entry)
    if path.is_file() and json.loads(path.read_text())["status"] == "ok":
        return path
    with whole(path) as written:
        written.write_text(json.dumps({**entry, "key": key(entry)}, indent=1))
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
