"""No process outlives the one that it works for."""

import ctypes
import os
import signal
import sys
import threading
import time

PARENT = "SIAMESE_EVAL_PARENT"  # the environment variable that says for whom a command works
PR_SET_PDEATHSIG = 1  # Linux: prctl's "send me this signal when my parent ends"
WATCH_SECONDS = 1.0


def end_with_parent() -> None:
    """Ends this process soon after the one that started it, however that one ends; does nothing in a command that a
    person started.
    """
    parent = os.environ.pop(PARENT, "")
    if not parent.isdigit():
        return
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    threading.Thread(target=_watch, args=(int(parent),), daemon=True).start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(WATCH_SECONDS)
    os.kill(os.getpid(), signal.SIGTERM)  # a command that saves on it does
    time.sleep(5 * WATCH_SECONDS)
    os._exit(1)
