"""The options of a conversion on a command line: what a file does not say of its encoder, the user says here.

Without torch, so that ``--help`` answers at once. The fields that ``--assume`` may name are checked by the conversion.
"""

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

from evaluate.runtime.errors import UserError

TEXTS = {
    "branch": "which encoder of the file, for example target (default: the one that the method's own evaluation uses)",
    "format": "format of the file, a name from docs/conversion.md (default: recognized by its keys)",
    "prefix": "prefix of the encoder's keys, or the path of its state dict (default: found automatically)",
    "normalize": "mean and std of the pixels: imagenet, half, clip or none (default: what the file says)",
}


def add_options(parser: argparse._ActionsContainer, of_rows: bool = False) -> None:
    """Adds --branch, --format, --prefix, --normalize and --assume; with ``of_rows`` the last takes one row's too."""
    for name, text in TEXTS.items():
        parser.add_argument(f"--{name}", help=text)
    parser.add_argument(
        "--encoder",
        metavar="FILE.py:CLASS",
        help="the class that the weights are of, where they are of your own (docs/own_encoder.md); FILE@my.py:CLASS "
        "says it of one checkpoint",
    )
    parser.add_argument(
        "--assume",
        action="append",
        default=[],
        metavar="[ROW:]NAME=VALUE" if of_rows else "NAME=VALUE",
        help="a fact about the encoder that overrides what the file says, for example num_heads=12 or "
        "activation=quick_gelu; repeatable" + ("; for one row only: ROW:num_heads=12" if of_rows else ""),
    )


def options(arguments: argparse.Namespace, row: str = "", rows: Sequence[str] = ()) -> dict[str, Any]:
    """What ``evaluate.checkpoints.conversion.convert`` takes besides its files; only what was said.

    Args:
        arguments: parsed, with what ``add_options`` adds.
        row: the row of the table whose options are asked for.
        rows: all of them.

    Raises:
        UserError: a format that there is not; an assumption that is not NAME=VALUE, is said twice, or is of a row that
            there is not.
    """
    said: dict[str, Any] = {name: getattr(arguments, name) for name in TEXTS if getattr(arguments, name)}
    if "format" in said:
        from evaluate.checkpoints import formats  # takes torch

        formats.by_name(said["format"])
    general: dict[str, str] = {}
    own: dict[str, str] = {}
    for text in arguments.assume:
        place, mark, value = text.partition("=")
        of, colon, name = place.rpartition(":")
        if not mark or not name or not value:
            raise UserError(f"--assume takes NAME=VALUE, as num_heads=12, not {text!r}")
        if colon and of not in rows:
            known = f"the rows are {', '.join(rows)}" if rows else "one checkpoint has no rows to choose from"
            raise UserError(f"--assume {text}: there is no row {of!r}; {known}")
        if colon and of != row:
            continue
        wanted = own if colon else general
        if name in wanted:
            raise UserError(f"--assume {name} is given twice; give it once")
        wanted[name] = value
    return {**said, **({"assume": {**general, **own}} if general or own else {})}


def as_arguments(said: Mapping[str, Any]) -> list[str]:
    """The same options as arguments of a command."""
    texts = [f"--{name}={said[name]}" for name in TEXTS if name in said]
    return texts + [f"--assume={name}={value}" for name, value in said.get("assume", {}).items()]
