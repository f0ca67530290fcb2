"""The files that the tasks have left, as their records name them."""

from collections.abc import Mapping, Sequence
from typing import Any

from results import artifacts


def of(rows: Sequence[tuple[str, Mapping[str, Mapping[str, Any]]]]) -> dict[str, Any]:
    """What each file is, and which each task of a row has left, with its folder below OUT.

    Args: rows: the name of a row and its records by task.
    """
    left = []
    for label, entries in rows:
        for task, entry in entries.items():
            told = entry.get("artifacts")
            names = [name for name in told if name in artifacts.FILES] if isinstance(told, dict) else []
            if names:
                left.append((label, task, str(entry.get("work", "")), names))
    named = {name for *_, names in left for name in names}
    return {"left": left, "meanings": [(name, told) for name, told in artifacts.FILES.items() if name in named]}
