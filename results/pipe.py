"""How a command ends: with its status, and in silence when nobody reads what it prints any more (``… | head``)."""

import os
import sys
from collections.abc import Callable
from typing import NoReturn

EXIT_UNREAD = 141  # as a shell names a program that the signal PIPE ended


def leave(main: Callable[..., int], *arguments: str) -> NoReturn:
    """Ends the process with the status that ``main`` returns."""
    try:
        status = main(*arguments)
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the interpreter complains as it ends
        status = EXIT_UNREAD
    sys.exit(status)
