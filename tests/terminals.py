"""What a process shows on a terminal that a test has made for it."""

import os


def shown_on(reader: int) -> bytes:
    """All that is written to a pseudo-terminal's other end, until that is closed; closes this one."""
    shown = b""
    try:
        while part := os.read(reader, 65536):
            shown += part
    except OSError:  # the other end is closed
        pass
    os.close(reader)
    return shown
