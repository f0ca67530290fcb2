"""Starts jobs by a fork server (``evaluate.harness.fork_server``), or as subprocesses where none is wanted or can be.

A forked job is this process's own child, as a subprocess is.
"""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

from evaluate.harness.fork_server import DENSE, needed
from evaluate.runtime.processes import adopt_orphans

ROOT = Path(__file__).parents[2]  # the jobs run the code of this checkout, wherever run_all.py was called
SERVER = "evaluate.harness.fork_server"
LOG = "imports.log"  # of the servers, beside the jobs' own
ROOM = " " * 4096  # in a server's command line, for that of a job


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
                self.returncode = -number
        if self.pid is not None:
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
