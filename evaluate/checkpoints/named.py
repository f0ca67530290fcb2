"""Checkpoints that name their model: a model of timm's, or a user's class (no torch).

    timm:MODEL                  timm's model with random weights
    timm:MODEL@FILE             with the weights of a file
    FILE.py:CLASS               a user's class as it initializes itself
    WEIGHTS@FILE.py:CLASS       with the weights of a file; also an encoder file that was made of this class

Such a text stands wherever a path of a checkpoint does. A user's file is run only because it is named here, and a name
comes only from a command line.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path

from evaluate.checkpoints import files
from evaluate.runtime.errors import UserError
from results.atomic import sha256

TIMM = "timm:"
CLASS = re.compile(r"(?:(?P<weights>.+)@)?(?P<code>.+\.py:[A-Za-z_]\w*)")


@dataclass(frozen=True)
class Named:
    """A checkpoint that says of which model it is."""

    weights: Path | None
    """None: random, or what the class makes of itself."""
    model: str = ""
    """timm's name."""
    code: str = ""
    """FILE.py:CLASS."""

    @property
    def label(self) -> str:
        """What it is, without folders."""
        return self.model or Path(self.code).name

    @property
    def row(self) -> str:
        """A name for its row of the table."""
        return self.model or self.code.rpartition(":")[2]

    def __str__(self) -> str:
        if self.model:
            return f"{TIMM}{self.model}" + (f"@{self.weights}" if self.weights else "")
        return (f"{self.weights}@" if self.weights else "") + self.code


def parse(path: Path | str) -> Named | None:
    """What a text names; None for a path alone, as for every path that exists."""
    text = str(path)
    if os.path.exists(text):
        return None
    if text.startswith(TIMM):
        model, _, file = text.removeprefix(TIMM).partition("@")
        return Named(Path(file) if file else None, model=model)
    matched = CLASS.fullmatch(text)
    if not matched:
        return None
    return Named(Path(matched["weights"]) if matched["weights"] else None, code=matched["code"])


def absolute(path: Path | str) -> Path:
    """The same from any folder."""
    given = parse(path)
    if not given:
        return Path(os.path.abspath(path))
    weights = Path(os.path.abspath(given.weights)) if given.weights else None
    return Path(str(Named(weights, given.model, os.path.abspath(given.code) if given.code else "")))


def check(path: Path | str) -> None:
    """Raises UserError where a file that a text names is absent."""
    given = parse(path)
    named = [Path(path)] if not given else [given.weights] if given.weights else []
    for file in named:
        if not file.exists():
            raise UserError(f"there is no checkpoint {file}; give the path of an existing file")
    if given and given.code and not _code_file(given).is_file():
        raise UserError(f"there is no file {_code_file(given)}; give a class as FILE.py:CLASS")


def is_there(path: Path) -> bool:
    """Whether every file that a text names exists."""
    try:
        check(path)
    except UserError:
        return False
    return True


def weights_of(path: Path | str) -> Path | None:
    """The weights file; None where the weights are no file's. Raises UserError where it is absent."""
    given = parse(path)
    weights = given.weights if given else Path(path)
    return files.weights_file(weights) if weights else None


def digests(path: Path | str) -> tuple[str, str]:
    """SHA-256 of the weights, "" without a file, and of what describes them: JSON files beside them, or a user's
    code."""
    given, weights = parse(path), weights_of(path)
    of_weights, of_json = files.digests(weights) if weights else ("", "")
    return of_weights, sha256(_code_file(given)) if given and given.code else of_json


def with_class(path: str, code: str | None) -> str:
    """A checkpoint of a user's class ``FILE.py:CLASS``, where a text names none itself."""
    row, separator, file = path.partition("=")
    if not code or parse(file if separator and not os.path.exists(path) else path):
        return path
    return f"{path}@{code}"


def _code_file(given: Named) -> Path:
    return Path(given.code.rpartition(":")[0])
