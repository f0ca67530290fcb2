"""No process outlives the one that it works for."""

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

PARENT = "SIAMESE_EVAL_PARENT"  # the environment variable that says for whom a command works
PR_SET_PDEATHSIG = 1  # Linux: prctl's "send me this signal when my parent ends"
PR_SET_CHILD_SUBREAPER = 36  # and "make me the parent of those below me whose parent ends"
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


def killed_with_parent() -> None:
    """Lets the kernel kill this process when the one that it works for ends; for a process that keeps nothing, and that
    may have one thread alone. On Linux only.
    """
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(os.environ[PARENT]):
        os._exit(1)  # it ended before


def adopt_orphans(yes: bool) -> bool:
    """Whether the kernel will give this process those that it has started by others, when these others end; where it
    does not, init gets them. Those that it does not wait for are listed as defunct until it ends.
    """
    return sys.platform == "linux" and ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, int(yes), 0, 0, 0) == 0


def beginning(pid: int) -> str:
    """When a process of this machine began, in its kernel's words; empty where there is none.

    A number is given again after its process has ended: number and beginning together name one process. A process that
    has ended, but that its parent has not looked after, is none.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()  # its name may hold anything
        return "" if fields[0] in ("Z", "X") else fields[19]
    except (FileNotFoundError, ProcessLookupError):
        if sys.platform == "linux":
            return ""
    asked = subprocess.run(["ps", "-o", "stat=,lstart=", "-p", str(pid)], capture_output=True, text=True)
    state, _, began = asked.stdout.strip().partition(" ")
    return "" if state.startswith("Z") else began.strip()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(WATCH_SECONDS)
    os.kill(os.getpid(), signal.SIGTERM)  # a command that saves on it does
    time.sleep(5 * WATCH_SECONDS)
    os._exit(1)
