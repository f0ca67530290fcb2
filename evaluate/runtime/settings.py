"""Settings from the command line: ``NAME=VALUE`` texts to the fields of a frozen dataclass."""

import dataclasses
import json
import typing
from typing import Any

from evaluate.runtime.errors import UserError


def override(config: Any, assignments: dict[str, str]) -> Any:
    """A copy of a frozen dataclass with ``{"epochs": "50"}``-style text values parsed to the fields' types.

    Raises:
        UserError: an unknown field (the legal ones are listed) or a value that is not of the field's type.
    """
    hints = typing.get_type_hints(type(config))
    legal = [f.name for f in dataclasses.fields(config)]
    values: dict[str, Any] = {}
    for name, text in assignments.items():
        if name not in legal:
            raise UserError(f"unknown setting {name!r}; the settings here are {', '.join(legal)}")
        values[name] = _parse(name, text, hints[name])
    try:
        return dataclasses.replace(config, **values)
    except ValueError as error:
        raise UserError(str(error)) from error


def configure(module: Any, preset: str, assignments: dict[str, str]) -> tuple[str, Any]:
    """The preset's name and its config with settings overridden; the setting ``preset`` chooses another preset of the task.

    Raises UserError for an unknown preset or as ``override`` does.
    """
    assignments = dict(assignments)
    preset = assignments.pop("preset", preset)
    if preset not in module.PRESETS:
        raise UserError(f"there is no preset {preset!r} of {module.__name__}; the presets are {', '.join(module.PRESETS)}")
    return preset, override(module.PRESETS[preset], assignments)


def _parse(name: str, text: str, hint: Any) -> Any:
    """One value by its annotation: str as it is, everything else as JSON that must have the annotated type."""
    options = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, type(int | None)) else (hint,)
    if text in ("none", "None", "null") and type(None) in options:
        return None
    if str in options:
        return text
    try:
        value = json.loads(text.lower() if text in ("True", "False") else text)
    except json.JSONDecodeError:
        value = None
    for option in options:
        origin = typing.get_origin(option) or option
        if origin is float and isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
        if origin is tuple and isinstance(value, list):
            return tuple(value)
        if isinstance(origin, type) and isinstance(value, origin) and (origin is bool) == isinstance(value, bool):
            return value
    raise UserError(f"setting {name!r} takes a value like {hint}, not {text!r}")


def split_overrides(assignments: list[str]) -> dict[str, dict[str, str]]:
    """``["finetune.epochs=50"]`` to ``{"finetune": {"epochs": "50"}}``; a name without a dot goes under ``""``."""
    result: dict[str, dict[str, str]] = {}
    for text in assignments:
        name, separator, value = text.partition("=")
        if not separator:
            raise UserError(f"--set takes NAME=VALUE, for example finetune.epochs=50, not {text!r}")
        task, _, setting = name.rpartition(".")
        result.setdefault(task, {})[setting] = value
    return result
