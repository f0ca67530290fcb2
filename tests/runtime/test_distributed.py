"""A process leaves its group before the interpreter ends, however the command ends."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from evaluate.runtime import distributed
from evaluate.runtime.errors import UserError

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


# torch keeps the group's threads after DDP: the interpreter must not be taken down beside them
UNSEEN = """
class TakenDown:
    def __del__(self, write=sys.stdout.write):
        write("taken down")
kept = TakenDown()
torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(1, 1))
distributed.end(3)
"""


@pytest.mark.parametrize(("end", "status"), [("pass", 0), ("sys.exit(3)", 3), ("raise ValueError", 1), (UNSEEN, 3)])
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


@pytest.mark.parametrize(
    ("variables", "says"),
    [
        ({"SLURM_STEP_NUM_TASKS": "8"}, "srun started 8 copies of this command, which know nothing of each other"),
        ({"WORLD_SIZE": "2"}, "no RANK, no MASTER_PORT); start the command by torchrun, or unset WORLD_SIZE"),
        ({"WORLD_SIZE": "two", "RANK": "0", "MASTER_PORT": "1"}, "WORLD_SIZE is set to 'two'"),
        ({"WORLD_SIZE": "2", "RANK": "2", "MASTER_PORT": "1", "MASTER_ADDR": "a"}, "(RANK=2, MASTER_ADDR=a)"),
    ],
)
def test_variables_that_are_no_group_are_refused(variables, says, tmp_path) -> None:
    """A task would be measured as often as srun started it, all of them writing one folder."""
    (tmp_path / "a.pth").touch()
    command = [sys.executable, "-m", "evaluate.knn", "--ckpt", str(tmp_path / "a.pth"), "--data-root", str(tmp_path)]
    clean = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
    done = subprocess.run(
        [*command, "--device", "cpu", "--out", str(tmp_path / "out")],
        cwd=ROOT,
        env={**clean, **variables},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2 and says in done.stderr and len(done.stderr.strip().splitlines()) == 1, done.stderr


GPU = """
import sys, torch.distributed as dist
from evaluate.runtime import distributed
from evaluate.runtime.errors import UserError
dist.init_process_group = lambda backend, timeout: print(backend, int(timeout.total_seconds()) // 3600)
try:
    print(distributed.start(sys.argv[1]))
except UserError as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("gpus", "rank", "device", "found"),
    [
        ("4", "3", "cuda", "cpu:gloo,cuda:nccl 12\ncuda:3\n"),
        ("1", "3", "cuda", "cpu:gloo,cuda:nccl 12\ncuda:0\n"),
        ("2", "3", "cuda", "4 processes were started on this machine, but torch can use 2 GPUs here"),
        ("4", "3", "cuda:1", "--device cuda:1 is one GPU for 4 processes; give --device cuda"),
    ],
)
def test_a_process_takes_the_gpu_of_its_local_rank_or_the_only_one(gpus, rank, device, found, pretended) -> None:
    """NCCL itself needs cards: which group is asked for is told instead of made."""
    group = {"WORLD_SIZE": "4", "RANK": rank, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": "4"}
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1", "PRETENDED_GPUS": gpus}
    done = subprocess.run(
        [sys.executable, "-c", GPU, device],
        cwd=ROOT,
        env={**pretended, **group, **place},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0 and done.stdout.startswith(found), done.stdout + done.stderr


def test_two_processes_on_one_card_are_refused() -> None:
    distributed.require_own_cards([("a", "1"), ("b", "1"), ("a", "2")])
    with pytest.raises(UserError, match="processes 0 and 2 have the same GPU of a"):
        distributed.require_own_cards([("a", "1"), ("a", "2"), ("a", "1")])


TOGETHER = """
import sys, time
from datetime import timedelta
from evaluate.runtime import distributed
distributed.start("cpu")
statuses = [int(status) for status in sys.argv[1].split(",")]
status = statuses[distributed.rank()]
if distributed.rank() == 0:
    time.sleep(60.0 if sys.argv[2] == "alone" else 2.0)  # a lone failure must not wait for it
    print("the record is written", flush=True)
elif status and sys.argv[2] == "alone":
    sys.exit(distributed.end_together(status, timedelta(seconds=0.5)))
sys.exit(distributed.end_together(status))
"""


@pytest.mark.parametrize(
    ("statuses", "how", "expected", "written"),
    [
        ("0,0", "", 0, True),
        ("3,3", "", 3, True),
        ("2,0", "", 2, True),
        ("2,2", "", 2, True),
        ("0,1", "alone", 1, False),
    ],
)
def test_processes_end_together_and_the_status_is_that_of_the_record(statuses, how, expected, written, tmp_path):
    """torchrun ends the others as soon as one ends with another status than 0, and makes 1 of any."""
    (tmp_path / "job.py").write_text(TOGETHER)
    command = [sys.executable, "-m", "evaluate.runtime.torchrun", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*command, str(tmp_path / "job.py"), statuses, how],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == expected and ("the record is written" in done.stdout) == written, done.stderr
