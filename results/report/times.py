"""What each task took: time beside what was estimated, and memory."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

Entry = Mapping[str, Any]


def table(rows: Sequence[tuple[str, Mapping[str, Entry]]]) -> dict[str, Any]:
    """Seconds by row and task, with the device, the estimate and the peak of the memory where a record has them.

    Args: rows: the name of a row and its records by task.
    """
    tasks = list(dict.fromkeys(task for _, entries in rows for task in entries))
    lines = []
    for label, entries in rows:
        cells = [_cell(entries.get(task, {})) for task in tasks]
        whole = sum(cell["seconds"] for cell in cells if cell)
        lines.append((label, cells, duration(whole) if whole else ""))
    longest = max((cell["seconds"] for _, cells, _ in lines for cell in cells if cell), default=1) or 1
    told = {
        source: None
        for _, entries in rows
        for entry in entries.values()
        if (source := str(_part(entry, "estimate").get("source", "")))
    }
    return {"tasks": tasks, "rows": lines, "longest": longest, "sources": list(told)}


def _cell(entry: Entry) -> dict[str, Any] | None:
    seconds = _number(entry.get("seconds"))
    if seconds is None:
        return None
    estimated = _number(_part(entry, "estimate").get("seconds"))
    memory = _part(entry, "memory")
    peaks = {name: peak for name in ("process", "gpu") if (peak := _number(memory.get(name)))}
    expected = _number(_part(entry, "estimate").get("memory"))
    told = [f"{'GPU ' if name == 'gpu' else ''}{gib(peak)}" for name, peak in peaks.items()]
    if told and expected is not None:  # of the last: on a GPU of its tensors, elsewhere of the process
        told[-1] += f" (est. {gib(expected)})"
    return {
        "seconds": seconds,
        "text": duration(seconds),
        "device": device(entry),
        "estimate": estimated,
        "below": " · ".join([*([f"est. {duration(estimated)}"] if estimated is not None else []), *told]),
        "peaks": peaks,
    }


def _part(entry: Entry, name: str) -> Mapping[str, Any]:
    """A field of a record that holds others; {} in an older record."""
    found = entry.get(name)
    return found if isinstance(found, dict) else {}


def _number(value: Any) -> float | None:
    """A finite number that is not negative, else None."""
    return float(value) if type(value) in (int, float) and 0 <= value < math.inf else None


def duration(seconds: float) -> str:
    """``57 s``, ``3 min 20 s``, ``2 h 05 min``."""
    if seconds < 60:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"


def gib(count: float) -> str:
    """Bytes as ``0.8 GiB``."""
    return f"{count / 2**30:.1f} GiB"


def device(entry: Entry) -> str:
    """What a record was measured on."""
    hardware = entry.get("hardware")
    told = (
        ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in hardware.items())
        if isinstance(hardware, dict)
        else ""
    )
    return f"{entry.get('device', 'unknown')}{f' ({told})' if told else ''}"
