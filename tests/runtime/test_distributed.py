"""A process leaves its group before the interpreter ends, however the command ends."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = """
import atexit, sys
import torch.distributed
atexit.register(lambda: print("left" if not torch.distributed.is_initialized() else "still in the group"))
from evaluate.runtime import distributed
distributed.start("cpu")
distributed.barrier()
{end}
"""


@pytest.mark.parametrize(("end", "status"), [("pass", 0), ("sys.exit(3)", 3), ("raise ValueError", 1)])
def test_the_group_is_left_at_every_end(end: str, status: int) -> None:
    """Otherwise its threads may still run when the interpreter ends: 'terminate called without an active exception',
    and a task whose record is written ends with status -6.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    environment = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT.format(end=end)],
            cwd=ROOT,
            env={**environment, "RANK": str(rank)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    for process in processes:
        said = process.communicate(timeout=120)[0]
        assert (process.returncode, said) == (status, "left\n")
