"""The rows of a table: each is of one encoder, also where several have one name."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Entry = Mapping[str, Any]


def by_row(entries: Sequence[Entry]) -> dict[str, list[Entry]]:
    """The records of each row by its label, in the order in which the encoders were first measured.

    A label is the encoder's name; where several encoders have one name, it goes on with what tells them apart: their
    branch, their epoch, or the beginning of their fingerprint.
    """
    rows: dict[str, list[Entry]] = {}
    names = list(dict.fromkeys(entry["encoder"] for entry in entries))
    for name in names:
        encoders = _by_encoder([entry for entry in entries if entry["encoder"] == name])
        for label, own in zip(_labels(name, encoders), encoders.values(), strict=True):
            while label in rows or label != name and label in names:  # somebody called an encoder so
                label += "'"
            rows[label] = own
    return rows


def labels_of(names: Iterable[str], entries: Sequence[Entry]) -> list[str]:
    """The labels of rows that are asked for by label or by the encoder's name; one without a record is a row too."""
    rows = by_row(entries)
    labels: list[str] = []
    for name in names:
        labels += (
            [name] if name in rows else [label for label, own in rows.items() if own[0]["encoder"] == name] or [name]
        )
    return list(dict.fromkeys(labels))


def choose(entries: Sequence[Entry]) -> dict[str, tuple[Entry, list[Entry], list[Entry]]]:
    """Of one row, by task: the record to show; the other ``ok`` ones, of other settings, data or limit; and one record
    for each seed of what is shown, that record first.

    ``ok`` comes before anything else, all images before a part of them, the paper's settings before others, then the
    newest.
    """
    tasks: dict[str, list[Entry]] = {}
    for entry in sorted(entries, key=_rank):
        tasks.setdefault(entry["task"], []).append(entry)
    chosen = {}
    for task, own in tasks.items():
        shown = own[-1]
        others = [entry for entry in own[:-1] if entry["status"] == "ok" and how_it_differs(entry, shown)]
        seeds = {shown["seed"]: shown}
        for entry in reversed(others if shown["status"] == "ok" else []):
            if entry["seed"] not in seeds and _is_of_another_seed_alone(entry, shown):
                seeds[entry["seed"]] = entry
        others = [entry for entry in others if not any(entry is one for one in seeds.values())]
        chosen[task] = (shown, others, list(seeds.values()))
    return chosen


def how_it_differs(entry: Entry, shown: Entry) -> str:
    """In what a record's identity differs from that of the one shown: ``limit 100, epochs 50``; empty for the same."""
    parts = [f"{name} {_text(entry[name])}" for name in ("limit", "seed") if entry[name] != shown[name]]
    settings = {**shown["config"], **entry["config"]}
    changed = [name for name in settings if entry["config"].get(name) != shown["config"].get(name)]
    parts += [f"{name} {_text(entry['config'].get(name))}" for name in changed[:3]] + (
        ["…"] if len(changed) > 3 else []
    )
    parts += ["other data"] if entry["data_fingerprint"] != shown["data_fingerprint"] else []
    parts += ["another classifier"] if entry["inputs"] != shown["inputs"] else []
    return ", ".join(parts)


def _is_of_another_seed_alone(entry: Entry, shown: Entry) -> bool:
    """Whether two measurements differ in their seed alone: another seed's classifier is another file."""
    same = all(entry[name] == shown[name] for name in ("config", "limit", "data_fingerprint"))
    settings = [{task: made.get("config") for task, made in one.get("rests_on", {}).items()} for one in (entry, shown)]
    return same and set(entry["inputs"]) == set(shown["inputs"]) and settings[0] == settings[1]


def _rank(entry: Entry) -> tuple[bool, bool, int, bool, str]:
    limit = entry["limit"]
    papers = entry.get("paper_config") == entry["config"]
    return entry["status"] == "ok", limit is None, limit or 0, papers, entry["started_utc"]


def _by_encoder(entries: Sequence[Entry]) -> dict[str | None, list[Entry]]:
    """The records of one name by the encoder's fingerprint; None: of what never became an encoder.

    A task that was not started knows no fingerprint: its record belongs to the encoder whose folder it names, or to the
    only one.
    """
    found: dict[str | None, list[Entry]] = {}
    folders: dict[str, str] = {}
    for entry in entries:
        if entry["encoder_fingerprint"] is not None:
            found.setdefault(entry["encoder_fingerprint"], []).append(entry)
            folders[entry.get("work", "").partition("/")[0]] = entry["encoder_fingerprint"]
    for entry in entries:
        if entry["encoder_fingerprint"] is None:
            folder = entry.get("folder", "")
            own = folders.get(folder) if folder else next(iter(found), None) if len(found) == 1 else None
            found.setdefault(own, []).append(entry)
    return found


def _labels(name: str, encoders: Mapping[str | None, Sequence[Entry]]) -> list[str]:
    fingerprints = [fingerprint for fingerprint in encoders if fingerprint is not None]
    if len(encoders) == 1:
        return [name]
    told: dict[str | None, str] = {
        None: f"{name} (no encoder)",
        **{key: f"{name} ({facts})" for key, facts in _what_tells_apart(encoders, fingerprints).items()},
    }
    return [told[fingerprint] for fingerprint in encoders]


def _what_tells_apart(encoders: Mapping[str | None, Sequence[Entry]], fingerprints: Sequence[str]) -> dict[str, str]:
    """By fingerprint: the branch, the epoch, or as many digits of the fingerprint as it takes."""
    sources = {fingerprint: encoders[fingerprint][0].get("encoder_source", {}) for fingerprint in fingerprints}
    for fact, words in (("branch", "{}"), ("epoch", "epoch {}")):
        values = [str(source[fact]) for source in sources.values() if source.get(fact) not in (None, "")]
        if len(values) == len(fingerprints) == len(set(values)):
            return {fingerprint: words.format(value) for fingerprint, value in zip(fingerprints, values, strict=True)}
    digits = next((count for count in (8, 16) if len({key[:count] for key in fingerprints}) == len(fingerprints)), None)
    return {fingerprint: fingerprint[:digits] for fingerprint in fingerprints}


def _text(value: Any) -> str:
    return "all" if value is None else str(value)
