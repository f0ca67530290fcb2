"""How a cell differs from the published one: a sentence a difference, each made from its record.

A cell rests on all that it was made from: the marks of a fine-tuning are those of what was measured on its classifier
too.
"""

import json
from collections.abc import Mapping
from typing import Any

from results.columns import FURTHER_COLUMNS

ABSENT = object()


def differences(entry: Mapping[str, Any], metric: str) -> list[str]:
    """How the protocol behind one number of a record differs from the published one, a sentence each."""
    protocol = entry.get("protocol", {})
    found = [str(protocol["other_protocol"])] if protocol.get("other_protocol") else []
    found += [f"{entry['task']}: {protocol['in_both']}"] if protocol.get("in_both") else []
    if entry.get("toy_data"):
        return found  # no cell of a toy table is the paper's, and its caption says so
    found += _of_one(entry["task"], entry, _sets_behind(entry, metric), _immaterial(entry, metric))
    for task, made in entry.get("rests_on", {}).items():
        if made:
            found += [f"{task}: trained on toy data; paper: ImageNet"] if made.get("toy_data") else []
            found += _of_one(task, made, list(made.get("subset", {})), set(made.get("immaterial", ())))
        else:
            found.append(f"{entry['task']}: rests on a result of {task} that does not say how it was made")
    framework, published_framework = (protocol.get(name) for name in ("framework", "published_framework"))
    if published_framework and framework != published_framework:
        found.append(f"measured in {framework}; the published numbers come from {published_framework}")
    estimates = protocol.get("estimates", {})
    if isinstance(estimates, dict) and metric in estimates:
        found.append(str(estimates[metric]))
    return found


def of_a_subset(entry: Mapping[str, Any], metric: str) -> bool:
    """Whether another number of images or classes than published is behind a number: no published one stands beside."""
    behind = [
        (entry, _sets_behind(entry, metric)),
        *((made, list(made.get("subset", {}))) for made in entry.get("rests_on", {}).values()),
    ]
    return any(
        part.get("limit") or part.get("toy_data") or any(name in part.get("subset", {}) for name in sets)
        for part, sets in behind
    )


def why_skipped(entry: Mapping[str, Any], metric: str) -> str:
    """Why a record of a task that ran has no such metric."""
    reasons = [
        reason for name, reason in entry.get("skipped", {}).items() if metric.startswith(f"{name}_") or metric == name
    ]
    if reasons:
        return reasons[0]
    if any(column[2] == metric for column in FURTHER_COLUMNS):
        return "its set was not there, or the record is from before it was measured"
    return f"the task with these settings measures no {metric}"


def _of_one(task: str, made: Mapping[str, Any], sets: list[str], immaterial: set[str]) -> list[str]:
    """Settings, limit, images left out and subsets of one measurement or training."""
    found, other = [], "default" if made.get("column") else "paper"  # whose protocol that of the column is
    changed = _changed_settings(made.get("config", {}), made.get("paper_config", {}), immaterial, other)
    if changed:
        found.append(f"{task}: {' · '.join(changed)}")
    if made.get("limit"):
        found.append(f"{task}: only {made['limit']} images of each set (--limit); {other}: all")
    parts = [made["subset"][name] for name in sets if name in made.get("subset", {})]
    if parts:
        found.append(f"{task}: {' · '.join(parts)}")
    for name, images in made.get("unreadable_images", {}).items():
        if images and name in sets:
            were = "1 image was" if len(images) == 1 else f"{len(images)} images were"
            found.append(f"{task}: {were} left out of {name}, since unreadable; {other}: none")
    return found


def _changed_settings(
    config: Mapping[str, Any], paper: Mapping[str, Any], immaterial: set[str], other: str
) -> list[str]:
    """``epochs 50; paper: 100`` for each setting that differs and matters, where ``other`` is "paper"."""
    names = [name for name in (*config, *(name for name in paper if name not in config)) if name not in immaterial]
    values = [(name, config.get(name, ABSENT), paper.get(name, ABSENT)) for name in names]
    return [f"{name} {_text(own)}; {other}: {_text(published)}" for name, own, published in values if own != published]


def _immaterial(entry: Mapping[str, Any], metric: str) -> set[str]:
    """The settings of a record that do not change this metric."""
    return {
        name
        for beginning, names in entry.get("immaterial", {}).items()
        if metric.startswith(beginning)
        for name in names
    }


def _sets_behind(entry: Mapping[str, Any], metric: str) -> list[str]:
    """The sets that a metric is of: the one that its name begins with (``imagenet_a_top1``), or else all read."""
    sets = list(dict.fromkeys((*entry.get("sizes", {}), *entry.get("subset", {}), *entry.get("unreadable_images", {}))))
    own = [name for name in sets if metric == name or metric.startswith(f"{name}_")]
    return own or sets


def _text(value: Any) -> str:
    if value is ABSENT:
        return "no such setting"
    return value if isinstance(value, str) else "none" if value is None else json.dumps(value)
