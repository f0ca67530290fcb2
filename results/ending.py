"""How a command ends where its output has no place: a disk without room is one sentence, a reader that has left
(``… | head``) none.
"""

import errno
import os
import sys
from collections.abc import Callable
from typing import NoReturn

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
EXIT_NO_ROOM = 2
EXIT_UNREAD = 141  # as a shell names a program that the signal PIPE ended


def leave(main: Callable[..., int], *arguments: str) -> NoReturn:
    """Ends the process with the status that ``main`` returns."""
    try:
        status = main(*arguments)
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the interpreter complains as it ends
        status = EXIT_UNREAD
    except OSError as error:
        if not is_full(error):
            raise
        print(no_room(error), file=sys.stderr)
        status = EXIT_NO_ROOM
    sys.exit(status)


def is_full(error: OSError) -> bool:
    """Whether a disk, or somebody's share of it, had no room for what was written."""
    return error.errno in FULL


def no_room(error: OSError) -> str:
    """What a person is told of such an error."""
    where = f"{error.filename} cannot be written" if error.filename else "a file cannot be written"
    return (
        f"{where} ({error.strerror}); make room and start the same command again: what is finished stands, and it goes "
        f"on from there"
    )
