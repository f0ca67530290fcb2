"""A user's own class as an encoder (docs/own_encoder.md): how its file is read, and how it is asked.

The file is run only in a process whose command line names it (``allow``); an encoder file holds its digest, never a
path. What the class raises becomes one sentence with the line of the user's file.
"""

import contextlib
import hashlib
import io
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from evaluate.encoder.spec import EncoderSpec
from evaluate.runtime.errors import UserError

METHODS = ("features", "pooled", "normalization")


@dataclass(frozen=True)
class Own:
    """A class that the command line named."""

    made: type[nn.Module]
    """The class itself."""
    label: str
    """FILE.py:CLASS without folders."""
    file: str
    """Its path."""
    sha256: str
    """Of its file's contents, as they were run."""


_allowed: dict[tuple[str, str], Own] = {}  # by digest of the file and FILE.py:CLASS


def allow(code: str) -> Own:
    """Runs a user's file, named as FILE.py:CLASS, and lets this process build encoders of its class.

    Raises:
        UserError: no such file or class, a class without the three methods, or a file that raises or prints.
    """
    path, _, name = code.rpartition(":")
    label = f"{Path(path).name}:{name}"
    try:
        source = Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); give a class as FILE.py:CLASS") from error
    module = ModuleType(f"own_encoder_{hashlib.sha256(source).hexdigest()[:16]}")
    module.__file__ = path
    with blamed(label, path), silent(label):
        exec(compile(source, path, "exec"), module.__dict__)
    made = getattr(module, name, None)
    if not (isinstance(made, type) and issubclass(made, nn.Module)):
        raise UserError(f"{path} has no class {name} that is a torch.nn.Module; give a class as FILE.py:CLASS")
    for method in METHODS:
        if not callable(getattr(made, method, None)):
            raise UserError(f"{label} has no method {method}; docs/own_encoder.md says which three it needs")
    found = Own(made, label, path, hashlib.sha256(source).hexdigest())
    _allowed[found.sha256, label] = found
    return found


def create(spec: EncoderSpec) -> Any:
    """A model of a user's class in eval mode. Raises UserError where the command line does not name this very class."""
    own = of(spec)
    with blamed(own.label, own.file):
        return own.made().eval()


def of(spec: EncoderSpec) -> Own:
    """The class of an encoder. Raises UserError where this process may not run it."""
    own = _allowed.get((spec.code_sha256, spec.model))
    if own is None:
        known = [other for _, other in _allowed if other == spec.model]
        why = (
            f"{spec.model} is not as it was when this encoder was made" if known else "its file is run only when named"
        )
        raise UserError(
            f"this encoder is of a user's class, {spec.model}: {why}; give --ckpt FILE@{spec.model} with the path of "
            f"its file (SHA-256 {spec.code_sha256[:12]}…)"
        )
    return own


def call(spec: EncoderSpec, method: Callable[..., Any], *arguments: Any) -> Any:
    """What a method of a user's model gives; what it raises is said in one sentence."""
    with blamed(spec.model, of(spec).file):
        return method(*arguments)


def last_map(found: Any) -> Tensor:
    """(B, C, h, w) from patch tokens (B, N, D) of a square grid, or the last of several maps."""
    if not isinstance(found, Tensor):
        return found[-1]
    side = round(found.shape[1] ** 0.5)
    return found.transpose(1, 2).unflatten(2, (side, side))


@contextlib.contextmanager
def blamed(label: str, file: str) -> Iterator[None]:
    """Says of an exception out of a user's file which one it was, and in which of its lines."""
    try:
        yield
    except (UserError, torch.OutOfMemoryError):
        raise
    except (Exception, SystemExit) as error:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
        line = error.lineno if isinstance(error, SyntaxError) else lines[-1] if lines else None
        said = " ".join(str(error).split())[:200]
        where = f" in line {line} of {file}" if line else ""
        raise UserError(f"{label} raised {type(error).__name__}{f' ({said})' if said else ''}{where}") from error


@contextlib.contextmanager
def silent(label: str) -> Iterator[None]:
    """Raises UserError where a user's code prints."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        yield
    if said := out.getvalue().strip():
        raise UserError(f"{label} prints ({said.splitlines()[0][:80]!r}); an encoder must print nothing")
