"""One import, many jobs: a process that has imported what jobs need, and forks each of them.

To import torch, timm and mmdet takes as long as many a small task, and each ``python -m MODULE …`` does it anew. On a
machine without GPUs ``Servers`` therefore asks a server for it: a process of one thread, which imports what a module
needs when it is asked for it the first time. There are two, each started when a job needs it. One is for detection and
segmentation; it is forked from the other, so that the mm* packages are never in another task.

A request goes through the server's standard input, a socket: the command, its environment, the three standard files,
and a pipe. The server forks twice. The process between ends at once, and its child falls to the launcher, which has
asked the kernel for such orphans (``adopt_orphans``). So a job is the launcher's own child, as one that Popen started:
the launcher waits for it, signals its session and learns its exit status, and the job watches the launcher
(``evaluate.runtime.processes``). The job says its number through the pipe. No job ends with its server. A pipe that is
closed without a number means that there is no job, which is then started as a subprocess.

In the child ``serve`` returns, and what follows is an ordinary interpreter that runs a module and ends as it will: with
a traceback, by ``os._exit``, by a signal. It differs from a subprocess in two things: what an import prints is in
``imports.log``, beside the jobs' logs, and all jobs of a server order their sets of texts alike (one hash seed).
"""

import contextlib
import ctypes
import gc
import importlib
import json
import os
import runpy
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from evaluate.harness.plan import NODES
from evaluate.runtime.processes import PARENT, killed_with_parent

MOST_BYTES = 2**20  # of a request; the kernel takes fewer

# What is imported for a module, which then imports little more; never itself, since it runs as __main__.
ENCODERS = ("evaluate.checkpoints.conversion", "evaluate.checkpoints.export")
IMAGES = (*ENCODERS, "evaluate.harness.task", "evaluate.classification.imported")  # of a task that is not below
DENSE = (*ENCODERS, "evaluate.harness.task", "evaluate.mm.imported")
IMPORTS = {
    "evaluate.convert": ENCODERS,
    "evaluate.detection": DENSE,
    "evaluate.few_shot": (*IMAGES, "sklearn.linear_model"),
    "evaluate.linear_segmentation": DENSE,
    "evaluate.segmentation": DENSE,
    "pretrain.train": (*ENCODERS, "pretrain.imported", "torch.utils.tensorboard"),
}


def serve(channel: socket.socket) -> list[str]:
    """Forks a process for each request; returns in each of them, with its command. Ends with the channel."""
    while True:
        request, files, _, _ = socket.recv_fds(channel, MOST_BYTES, 4)
        if not request:
            os._exit(0)
        command, environment = json.loads(request)
        prepare(command[2])
        between = os.fork()
        if not between:
            between = os.getpid()
            if os.fork():
                os._exit(0)
            while os.getppid() == between:  # until the launcher has it
                time.sleep(0.001)
            channel.detach()
            become(command, environment, files)
            return list(command)
        os.waitpid(between, 0)
        for file in files:
            os.close(file)


def needed(module: str) -> tuple[str, ...]:
    """What is to be imported for a module."""
    tasks = {f"evaluate.{node.task}" for node in NODES}
    return IMPORTS.get(module, IMAGES if module in tasks else ())


def prepare(module: str) -> None:
    """Imports what a module needs. What cannot be imported is for the job to say.

    Ends the process where an import has started a thread, which a forked one would lack.
    """
    for name in needed(module):
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    if len(os.listdir("/proc/self/task")) > 1:
        print(f"{module}: an import has started a thread; from here on each job is a subprocess", flush=True)
        os._exit(1)
    gc.freeze()  # a collection that looks at what was imported would copy its memory


def become(command: Sequence[str], environment: Mapping[str, str], files: Sequence[int]) -> None:
    """Makes this forked process what a new one would be, then says its number: from here on it can be signaled."""
    if os.getppid() != int(environment[PARENT]):
        os._exit(1)  # nobody is left whom it could work for
    os.setsid()
    for place, file in enumerate(files[:3]):
        os.dup2(file, place)
    os.environ.clear()
    os.environ.update(environment)
    show(command)
    if "torch" in sys.modules:  # Python seeds its own generator after a fork
        sys.modules["torch"].default_generator.seed()
        sys.modules["numpy"].random.seed()
    os.write(files[3], str(os.getpid()).encode())
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))


def show(command: Sequence[str]) -> None:
    """Lets ``ps`` show a job's command line, not its server's, as far as there is room."""
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    start, end = int(fields[45]), int(fields[46])  # of the memory that ps reads; 0 where that is not said
    words = b"\0".join(map(os.fsencode, command))[: max(end - start - 1, 0)]
    ctypes.memset(start, 0, end - start)
    ctypes.memmove(start, words, len(words))


def main() -> None:
    """Serves, and in each child runs the module that was asked for."""
    killed_with_parent()
    _, _, module, *sys.argv[1:] = serve(socket.socket(fileno=0))
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
