"""Settings: the fields of a frozen dataclass, read strictly from text or JSON, and described for ``--help``.

Every config of this project derives from ``Settings``. Bounds and choices stand in the annotations (``PositiveInt``,
``Literal``), the meaning of a field in the string below it. Types are strict: 2.7 is no number of epochs, ``true`` is
no seed, infinity no learning rate.
"""

import ast
import dataclasses
import inspect
import json
import textwrap
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from annotated_types import Ge, Gt, Interval, Le, Lt
from pydantic import ConfigDict, TypeAdapter, ValidationError

from evaluate.runtime.errors import UserError

Probability = Annotated[float, Ge(0), Le(1)]


@dataclass(frozen=True)
class Settings:
    """Base of every config: strict types, no unknown names, finite numbers."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


Config = TypeVar("Config", bound=Settings)


def as_json(config: Settings) -> dict[str, Any]:
    """A config as JSON gives it back: tuples as lists."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def from_json(kind: type[Config], values: Mapping[str, Any]) -> Config:
    """A config from plain values; a field that is not among them has its default.

    Raises:
        UserError: one sentence with the setting, its value and what is legal.
    """
    try:
        return TypeAdapter(kind).validate_json(json.dumps(values))
    except ValidationError as error:
        raise UserError(_sentence(kind, values, error)) from None


def override(config: Config, assignments: Mapping[str, str]) -> Config:
    """A copy of a config with ``{"epochs": "50"}``-style text values. Raises UserError as ``from_json`` does."""
    hints = typing.get_type_hints(type(config), include_extras=True)
    values = {name: _value(text, hints[name]) if name in hints else text for name, text in assignments.items()}
    return from_json(type(config), {**as_json(config), **values})


def read_config(path: Path, kind: type[Config]) -> tuple[str, Config]:
    """The preset's name and the config that a file holds: a record, or what ``run_all.py`` writes for its tasks.

    Raises:
        UserError: an unreadable file, one of another form, or a config that is not legal.
    """
    try:
        content = json.loads(path.read_text())
        preset, values = content["preset"], content["config"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"--config {path} holds no settings ({type(error).__name__}: {error}); give a record, or a file that has "
            f"preset and config"
        ) from error
    if not isinstance(values, dict) or not isinstance(preset, str):
        raise UserError(f"--config {path} holds no settings: config must be an object and preset a name; give a record")
    return preset, from_json(kind, values)


def split_overrides(assignments: Sequence[str]) -> dict[str, dict[str, str]]:
    """``["finetune.epochs=50"]`` to ``{"finetune": {"epochs": "50"}}``; a name without a dot goes under ``""``."""
    result: dict[str, dict[str, str]] = {}
    for text in assignments:
        name, separator, value = text.partition("=")
        if not separator:
            raise UserError(f"--set takes NAME=VALUE, for example finetune.epochs=50, not {text!r}")
        task, _, setting = name.rpartition(".")
        result.setdefault(task, {})[setting] = value
    return result


def help_text(config: Settings) -> str:
    """A line for each setting: its name, its value here, what is legal, and its meaning."""
    hints, meanings = typing.get_type_hints(type(config), include_extras=True), field_docs(type(config))
    lines = []
    for field in dataclasses.fields(config):
        value = json.dumps(as_json(config)[field.name])
        lines.append(f"  {field.name} = {value}")
        text = f"{_first_upper(legal_values(hints[field.name]))}. {meanings.get(field.name, '')}".strip()
        lines += textwrap.wrap(text, 100, initial_indent="      ", subsequent_indent="      ")
    return "\n".join(lines)


def field_docs(kind: type) -> dict[str, str]:
    """The string below each field of a dataclass and of its bases, by the field's name."""
    found: dict[str, str] = {}
    for cls in reversed(kind.__mro__):
        if not dataclasses.is_dataclass(cls):
            continue
        body = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0].body  # type: ignore[attr-defined]  # a class
        for field, below in zip(body, body[1:], strict=False):
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(below, ast.Expr):
                found[field.target.id] = " ".join(str(ast.literal_eval(below.value)).split())
    return found


def legal_values(hint: Any) -> str:
    """What an annotation allows, in words: "a whole number above 0", "one of cls, mean, or none"."""
    options = [option for option in _options(hint) if option is not types.NoneType]
    text = " or ".join(_legal_option(option) for option in options)
    return f"{text}, or none" if types.NoneType in _options(hint) else text


def _options(hint: Any) -> tuple[Any, ...]:
    return typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)


def _legal_option(hint: Any, plural: bool = False) -> str:
    bounds = ""
    if typing.get_origin(hint) is Annotated:
        hint, *constraints = typing.get_args(hint)
        bounds = _bounds(constraints)
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return f"{'names' if plural else 'one'} of {', '.join(map(str, arguments))}"
    if origin is tuple:
        count = "" if arguments[-1] is Ellipsis else f"{len(arguments)} "
        return f"a list of {count}{_legal_option(arguments[0], plural=True)}"
    names = {
        int: ("a whole number", "whole numbers"),
        float: ("a number", "numbers"),
        bool: ("true or false", "true or false"),
        str: ("text", "texts"),
    }
    return names[hint][plural] + bounds


def _bounds(constraints: Sequence[Any]) -> str:
    parts: list[Any] = []
    for constraint in constraints:
        parts += list(constraint) if isinstance(constraint, Interval) else [constraint]
    low = next((part for part in parts if isinstance(part, Ge | Gt)), None)
    high = next((part for part in parts if isinstance(part, Le | Lt)), None)
    if isinstance(low, Ge) and isinstance(high, Le):
        return f" from {low.ge} to {high.le}"
    words = [f"from {low.ge} on" if isinstance(low, Ge) else f"above {low.gt}"] if low else []
    words += [f"at most {high.le}" if isinstance(high, Le) else f"below {high.lt}"] if high else []
    return f" {' and '.join(words)}" if words else ""


def _value(text: str, hint: Any) -> Any:
    """A setting's text as plain data: as it is where the setting is a text or a name, else as JSON."""
    options = _options(hint)
    if types.NoneType in options and text in ("none", "None", "null"):
        return None
    if any(option is str or typing.get_origin(option) is Literal for option in options):
        return text
    try:
        return json.loads(text.lower() if text in ("True", "False") else text)
    except json.JSONDecodeError:
        return text  # which the validation names


def _sentence(kind: type[Settings], values: Mapping[str, Any], error: ValidationError) -> str:
    """The first fault that a validation found, in one sentence."""
    fault = error.errors()[0]
    if not fault["loc"]:  # two settings that contradict each other
        return str(fault.get("ctx", {}).get("error", fault["msg"]))
    name = str(fault["loc"][0])
    hints = typing.get_type_hints(kind, include_extras=True)
    fields = [field.name for field in dataclasses.fields(kind)]
    if name not in fields:
        return f"unknown setting {name!r}; the settings here are {', '.join(fields)}"
    finite = "finite: " if fault["type"] == "finite_number" else ""
    return f"setting {name!r} is {finite}{legal_values(hints[name])}, not {values[name]!r}"


def _first_upper(text: str) -> str:
    return text[:1].upper() + text[1:]
