"""The errors a person may meet: each is one clear sentence, never a traceback."""


class UserError(Exception):
    """What was wrong, what was expected and what to do, in one sentence. The command exits with status 2."""


class Skip(UserError):
    """A column cannot be measured here (a data set or a package is absent); says how to fill it.

    The record of the task says ``skipped``; other tasks go on.
    """


def in_one_sentence(error: UserError | PermissionError) -> str:
    """What a command says of bad input, or of a file or folder that it may not touch."""
    if isinstance(error, PermissionError) and error.filename:
        return f"{error.filename} cannot be read or written ({error.strerror}); allow access to it"
    return str(error)
