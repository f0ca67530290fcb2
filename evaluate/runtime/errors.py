"""The errors a person may meet: each is one clear sentence, never a traceback."""

from pathlib import Path

from results.ending import is_full, no_room


class UserError(Exception):
    """What was wrong, what was expected and what to do, in one sentence. The command exits with status 2."""


class Skip(UserError):
    """A column cannot be measured here (a data set or a package is absent); says how to fill it.

    The record of the task says ``skipped``; other tasks go on.
    """


def in_one_sentence(error: UserError | OSError) -> str:
    """What a command says of bad input, of a file or folder that it may not touch, or of a disk that is full."""
    if isinstance(error, OSError) and is_full(error):
        return no_room(error)
    if isinstance(error, PermissionError) and error.filename:
        return f"{error.filename} cannot be read or written ({error.strerror}); allow access to it"
    return str(error)


def unwritten(path: Path, error: OSError) -> UserError:
    """What to raise where a command cannot write its result."""
    if is_full(error):
        return UserError(no_room(error))
    return UserError(f"{path} cannot be written ({error.strerror}); choose another place with --out")


def from_outside(error: Exception) -> str:
    """What an error that comes from outside this process means to a person; "" for any other.

    A disk without room, a data loading process that the system has ended, a compiler that --compile needs, or another
    process of a group that has ended or is silent.
    """
    if isinstance(error, OSError) and is_full(error):
        return in_one_sentence(error)
    text = str(error)
    first = text.splitlines()[0] if text else ""
    if "DataLoader worker" in text:
        return (
            f"a data loading process was ended from outside, perhaps for want of memory or of /dev/shm ({first}); "
            f"start again, with fewer --workers"
        )
    kind = type(error).__name__
    if kind in ("InductorError", "BackendCompilerFailed", "InvalidCxxCompiler"):
        return f"--compile failed ({first}); leave it out, or see that a C++ compiler is installed"
    if kind == "DistNetworkError":
        return f"the processes of this run cannot reach each other: {first}"
    if kind.startswith("Dist") or isinstance(error, RuntimeError) and ("by peer" in text or "gloo" in text):
        return (
            "another process of this run has ended or is silent, so this one stops too; "
            "what that one said last says why"
        )
    return ""
