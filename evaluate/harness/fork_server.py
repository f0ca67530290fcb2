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
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

from evaluate.harness.plan import NODES
from evaluate.runtime.processes import PARENT, adopt_orphans, killed_with_parent

ROOT = Path(__file__).parents[2]
SERVER = "evaluate.harness.fork_server"
LOG = "imports.log"
MOST_BYTES = 2**20  # of a request; the kernel takes fewer
ROOM = " " * 4096  # in a server's command line, for that of a job

# What is imported for a module, which then imports little more; never itself, since it runs as __main__.
ENCODERS = ("evaluate.checkpoints.conversion", "evaluate.checkpoints.export")
IMAGES = (*ENCODERS, "evaluate.harness.task", "evaluate.classification.imported")  # of a task that is not below
DENSE = (*ENCODERS, "evaluate.harness.task", "evaluate.mm.imported")
IMPORTS = {
    "evaluate.convert": ENCODERS,
    "evaluate.detection": DENSE,
    "evaluate.few_shot": (*IMAGES, "sklearn.linear_model"),
    "evaluate.segmentation": DENSE,
    "pretrain.train": (*ENCODERS, "pretrain.imported", "torch.utils.tensorboard"),
}


class Forked:
    """A process that a server was asked for; it answers as a Popen does."""

    def __init__(self, pipe: int, server: "Server", alone: Callable[[], "subprocess.Popen[bytes] | None"]) -> None:
        self.pid: int | None = None
        """None until it is there."""
        self.returncode: int | None = None
        self._pipe, self._server, self._alone = pipe, server, alone
        self._popen: subprocess.Popen[bytes] | None = None  # what ``alone`` started

    def poll(self) -> int | None:
        """Its exit status; None before its end."""
        if self.pid is None and self.returncode is None:
            self._hear(wait=False)
        if self.pid is None or self.returncode is not None:
            return self.returncode
        if self._popen:
            self.returncode = self._popen.poll()
        elif (ended := os.waitpid(self.pid, os.WNOHANG)) != (0, 0):
            self.returncode = os.waitstatus_to_exitcode(ended[1])
        return self.returncode

    def signal(self, number: int) -> None:
        """Signals it and all that it started. Before its process is there, it is ended at once and its server with it.

        Raises ProcessLookupError where it has ended.
        """
        if self.pid is None and self.returncode is None:
            self._alone = lambda: None
            self._server.kill()
            self._hear(wait=True)
        if self.pid is None:
            self.returncode = -number if self.returncode is None else self.returncode
        else:
            os.killpg(self.pid, number)

    def _hear(self, wait: bool) -> None:
        """Takes the number from the pipe if it is there; where nobody is left to write one, starts a subprocess."""
        os.set_blocking(self._pipe, wait)
        try:
            number = os.read(self._pipe, 100)
        except BlockingIOError:
            return
        os.close(self._pipe)
        if number:
            self.pid = int(number)
        elif popen := self._alone():
            self._popen, self.pid = popen, popen.pid
        else:
            self.returncode = -signal.SIGKILL


class Server:
    """One server, from the launcher's side; ``above`` forks it where there is one."""

    def __init__(self, environment: Mapping[str, str], log: Path, above: "Server | None") -> None:
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        command = [sys.executable, "-m", SERVER, ROOM]
        self._process: Forked | subprocess.Popen[bytes]
        with theirs, log.open("ab") as said:
            if above:
                files = (theirs.fileno(), said.fileno(), said.fileno())
                self._process = above.fork(command, environment, files, lambda: None)
            else:
                self._process = start_alone(command, environment, said, theirs.fileno())

    def fork(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        files: tuple[int, int, int],
        alone: Callable[[], "subprocess.Popen[bytes] | None"],
    ) -> Forked:
        """Asks for a process.

        Args:
            command: ``[sys.executable, "-m", MODULE, …]``.
            files: its standard input, output and error.
            alone: starts it where the server does not.

        Raises: OSError: the server has ended, or the request is too long for it.
        """
        pipe, answer = os.pipe()
        try:
            request = json.dumps([list(command), dict(environment)]).encode()
            socket.send_fds(self._channel, [request], [*files, answer])
        except OSError:
            os.close(pipe)
            raise
        finally:
            os.close(answer)
        return Forked(pipe, self, alone)

    def kill(self) -> None:
        """Ends it; the jobs that it has forked go on."""
        self._channel.close()
        if self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                end_group(self._process, signal.SIGKILL)
        while self._process.poll() is None:
            time.sleep(0.001)


class Servers:
    """The servers of a launcher, as its jobs need them.

    Args: wanted: whether there may be any.
    """

    def __init__(self, wanted: bool) -> None:
        self._wanted = wanted
        self._servers: dict[bool, Server] = {}  # by whether it is for dense tasks

    def start(
        self, command: Sequence[str], environment: Mapping[str, str], log: Path
    ) -> "Forked | subprocess.Popen[bytes]":
        """Starts a job, whose output goes to ``log``, by a server where that can be: a module, with one thread."""

        def alone() -> subprocess.Popen[bytes]:
            with log.open("wb") as said:
                return start_alone(command, environment, said)

        if self._wanted and list(command[:2]) == [sys.executable, "-m"] and environment["OMP_NUM_THREADS"] == "1":
            with contextlib.suppress(OSError), log.open("wb") as said:
                server = self._server(needed(command[2]) == DENSE, environment, log.with_name(LOG))
                return server.fork(command, environment, (0, said.fileno(), said.fileno()), alone)
        return alone()

    def end(self) -> None:
        """Ends them; the jobs that they have forked go on."""
        for server in reversed(self._servers.values()):
            server.kill()

    def _server(self, dense: bool, environment: Mapping[str, str], log: Path) -> Server:
        if dense not in self._servers:
            above = self._server(False, environment, log) if dense else None
            self._servers[dense] = Server(environment, log, above)
        return self._servers[dense]


@contextlib.contextmanager
def serving(wanted: bool) -> Iterator[Servers]:
    """Servers for the jobs that start while the block runs; none where they are not wanted, or cannot be."""
    servers = Servers(wanted and adopt_orphans(True))
    try:
        yield servers
    finally:
        servers.end()
        if wanted:
            adopt_orphans(False)


def end_group(process: "Forked | subprocess.Popen[bytes]", number: int) -> None:
    """Signals a process and what it started. Raises ProcessLookupError where all of them have ended."""
    if isinstance(process, Forked):
        process.signal(number)
    else:
        os.killpg(process.pid, number)


def start_alone(
    command: Sequence[str], environment: Mapping[str, str], log: IO[bytes], stdin: int | None = None
) -> "subprocess.Popen[bytes]":
    """A subprocess in this checkout's folder.

    It has a session of its own: a job is ended with all that it started, and Ctrl-C reaches it through this process
    alone.
    """
    return subprocess.Popen(
        command, stdin=stdin, stdout=log, stderr=subprocess.STDOUT, env=environment, cwd=ROOT, start_new_session=True
    )


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
