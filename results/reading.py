"""Reads records from a folder into which people, file systems and killed processes put other things too.

Nothing that lies there ends a run: what is no record is passed over and named, once.
"""

import contextlib
import hashlib
import json
import math
import os
import stat
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from results.escape import plain

MAX_BYTES = 16 * 1024**2  # a record has kilobytes
STATUSES = ("ok", "skipped", "failed")
NAMED = 5  # of several files with one fault
REQUIRED = {  # of every record, also of one that a task did not come to write itself
    "task": str,
    "encoder": str,
    "config": dict,
    "seed": int,
    "limit": int | None,
    "encoder_fingerprint": str | None,
    "data_fingerprint": str | None,
    "inputs": dict,
    "status": str,
    "reason": str,
    "metrics": dict,
    "started_utc": str,
}
OPTIONAL = {  # what a table, or whoever finds a record, takes out of one
    "encoder_source": dict,
    "preset": str,
    "paper_config": dict,
    "toy_data": bool,
    "standard_error": dict,
    "protocol": dict,
    "sizes": dict,
    "subset": dict,
    "rests_on": dict,
    "immaterial": dict,
    "unreadable_images": dict,
    "skipped": dict,
    "images_asked": dict,
    "images_evaluated": dict,
    "data": dict,
    "files": dict,
    "work": str,
    "folder": str,
    "versions": dict,
    "git": dict,
    "architecture": str,
    "resamples": dict,
    "checksum": str,
}
VALUES = {  # of the dictionaries among these
    "metrics": int | float,
    "subset": str,
    "rests_on": dict,
    "immaterial": list,
    "unreadable_images": list,
    "sizes": dict,
    "skipped": str,
    "data": str,
    "files": str,
    "versions": str,
    "resamples": list,
}


MADE = {  # of what a record rests on
    "config": dict,
    "paper_config": dict,
    "limit": int | None,
    "toy_data": bool,
    "subset": dict,
    "immaterial": list,
}


class NotARecord(ValueError):
    """Why a file is no record; the end of a sentence that begins with its name."""


class OtherSchema(NotARecord):
    """A record of another version of the code, whose numbers do not stand beside this one's."""


def read_file(path: Path, schema: int, fields: Collection[str] = ()) -> dict[str, Any]:
    """The record in a file. Raises NotARecord, whatever lies there: also a pipe, which is not waited for.

    Args:
        fields: names that it must have, besides REQUIRED.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise NotARecord("is no file")
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # it may have become a pipe since
        with open(handle, "rb") as file:
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                raise NotARecord("is no file")
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise NotARecord(f"cannot be read ({error.strerror or error})") from None
    if len(content) > MAX_BYTES:
        raise NotARecord(f"has more than {MAX_BYTES // 1024**2} MB")
    try:
        entry = json.loads(content.decode())
    except (
        ValueError,
        RecursionError,
    ) as error:  # no UTF-8, no JSON, numbers of thousands of digits, lists in lists in lists
        raise NotARecord(f"is no JSON ({type(error).__name__})") from None
    return checked(entry, schema, fields)


def checked(entry: Any, schema: int, fields: Collection[str] = ()) -> dict[str, Any]:
    """The entry itself where each field that is relied on has its type. Raises NotARecord, or its OtherSchema."""
    if not isinstance(entry, dict) or type(entry.get("schema")) is not int:
        raise NotARecord("has no schema, as every record has")
    if entry["schema"] != schema:
        raise OtherSchema(f"is of schema {entry['schema']}; this version reads schema {schema}")
    missing = [name for name in (*REQUIRED, *fields) if name not in entry]
    if missing:
        raise NotARecord(f"has no {missing[0]}")
    _check_types(entry, {**REQUIRED, **OPTIONAL})
    for name, kind in VALUES.items():
        _check_types(entry.get(name, {}), dict.fromkeys(entry.get(name, {}), kind))
    for made in entry.get("rests_on", {}).values():
        _check_types(made, MADE)
    for names in (
        *entry.get("immaterial", {}).values(),
        *(made.get("immaterial", []) for made in entry.get("rests_on", {}).values()),
    ):
        if not all(isinstance(name, str) for name in names):
            raise NotARecord("has names of another type in immaterial")
    if entry["status"] not in STATUSES:
        raise NotARecord(f"has the status {plain(entry['status'])[:40]!r}, none of {', '.join(STATUSES)}")
    if not all(_is_finite(value) for value in entry["metrics"].values()):
        raise NotARecord("has a metric that is no finite number")
    for values in entry.get("resamples", {}).values():
        if not _are_finite(values):
            raise NotARecord("has a resample that is no finite number")
    if "checksum" in entry and entry["checksum"] != checksum(entry):
        raise NotARecord("was edited: its checksum is not that of its contents")
    if not entry["encoder"] or "/" in entry["encoder"] or "\0" in entry["encoder"]:
        raise NotARecord("has an encoder's name that is none")
    return entry


def checksum(entry: Mapping[str, Any]) -> str:
    """SHA-256 of a record's fields, whatever their order and the file's layout; the checksum itself is left out."""
    text = json.dumps({name: value for name, value in entry.items() if name != "checksum"}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def read_folder(folder: Path, schema: int, fields: Collection[str] = ()) -> tuple[list[dict[str, Any]], list[str]]:
    """The records in a folder, oldest first, and a sentence for what lies there besides under the name of a record."""
    entries: list[dict[str, Any]] = []
    faults: dict[str, list[str]] = {}
    others: dict[str, list[str]] = {}
    try:
        names = sorted(entry.name for entry in os.scandir(folder) if entry.name.endswith(".json"))
    except FileNotFoundError:
        return [], [f"{plain(str(folder))} is a link to nothing"] if folder.is_symlink() else []
    except OSError as error:
        return [], [f"{plain(str(folder))} cannot be read ({error.strerror or error})"]
    for name in names:
        try:
            entries.append(read_file(folder / name, schema, fields))
        except OtherSchema as fault:
            others.setdefault(str(fault), []).append(plain(name))
        except NotARecord as fault:
            faults.setdefault(str(fault), []).append(plain(name))
    where = plain(folder.name)
    problems = [
        f"{where}/{name} is not a record and was passed over: it {why}"
        for why, names in faults.items()
        for name in names[:NAMED]
    ]
    problems += [
        f"{len(names) - NAMED} more in {where}/ likewise: {why}" for why, names in faults.items() if len(names) > NAMED
    ]
    for why, names in others.items():
        listed = ", ".join(names[:NAMED]) + (", …" if len(names) > NAMED else "")
        problems.append(
            f"not shown, since it {why}: {listed} (of {where}/, {len(names)} in all); the same command measures again"
        )
    return sorted(entries, key=lambda entry: entry["started_utc"]), problems


def _check_types(values: Mapping[str, Any], kinds: Mapping[str, Any]) -> None:
    """Raises NotARecord naming a value of another type."""
    for name, kind in kinds.items():
        if name in values and not _is(values[name], kind):
            raise NotARecord(f"has a value of another type at {plain(name)[:40]}")


def _is(value: Any, kind: Any) -> bool:
    """Whether a JSON value is of a type; true and false are no numbers."""
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))


def _is_finite(value: float) -> bool:
    with contextlib.suppress(OverflowError):  # a whole number beyond every float
        return math.isfinite(value)
    return False


def _are_finite(values: list[Any]) -> bool:
    """Whether all are finite numbers; there may be thousands."""
    with contextlib.suppress(OverflowError, ValueError):
        return set(map(type, values)) <= {int, float} and math.isfinite(math.fsum(values))
    return False
