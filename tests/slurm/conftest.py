"""A real Slurm of one node, started and stopped by the tests; they are skipped where its programs are absent."""

import getpass
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

FOLDER = "SIAMESE_EVAL_SLURM"  # names the folder into which Debian's packages were unpacked (docs/slurm.md)
PROGRAMS = ("munged", "slurmctld", "slurmd", "slurmstepd", "sbatch", "srun", "squeue", "scontrol", "scancel", "sinfo")
CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmdPort={node_port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
MpiDefault=none
SwitchType=switch/none
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=1,sched_interval=2,bf_interval=2
SlurmctldParameters=preempt_send_user_signal
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
JobRequeue=1
KillWait=5
MinJobAge=3600
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 RealMemory=1000 State=UNKNOWN
PartitionName=low Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1 PreemptMode=REQUEUE GraceTime=15
PartitionName=high Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
"""


@dataclass
class Cluster:
    """A running Slurm of one node of two cores."""

    environment: dict[str, str]
    """With which its commands find it."""

    def ask(self, *command: str) -> str:
        """What a command of Slurm prints."""
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=60)
        return done.stdout + done.stderr


def _programs() -> tuple[dict[str, str], dict[str, str]]:
    """The paths of PROGRAMS, and what the environment needs for them; skips where one is absent."""
    environment, root = dict(os.environ), os.environ.get(FOLDER)
    if root:
        places = [str(Path(root) / "usr" / name) for name in ("bin", "sbin")]
        libraries = [str(path) for path in (*Path(root).glob("usr/lib/*"), *Path(root).glob("usr/lib/*/slurm-wlm"))]
        environment["PATH"] = ":".join([*places, environment["PATH"]])
        environment["LD_LIBRARY_PATH"] = ":".join([*libraries, environment.get("LD_LIBRARY_PATH", "")])
    found = {}
    for name in PROGRAMS:
        names = (name, f"{name}-wlm")  # Debian's alternatives
        path = next((path for one in names if (path := shutil.which(one, path=environment["PATH"]))), None)
        if path is None:
            pytest.skip(f"no Slurm here: {name} is neither on PATH nor in the folder that {FOLDER} names")
        found[name] = path
    return found, environment


def _free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    programs, environment = _programs()
    folder = tmp_path_factory.mktemp("slurm")
    for name in ("munge", "state", "spool"):
        (folder / name).mkdir(mode=0o755)
    host = socket.gethostname().partition(".")[0]
    plugins = next(iter(Path(os.environ.get(FOLDER, "/")).glob("usr/lib/*/slurm-wlm")), None)
    text = CONFIGURATION.format(
        host=host, user=getpass.getuser(), folder=folder, controller_port=_free_port(), node_port=_free_port()
    )
    (folder / "slurm.conf").write_text(text + (f"PluginDir={plugins}\n" if plugins else ""))
    environment["SLURM_CONF"] = str(folder / "slurm.conf")
    key = folder / "munge/key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o400)
    places = {"key-file": "key", "socket": "socket", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
    munged = [programs["munged"], "--foreground", "--force", *(f"--{k}={folder}/munge/{v}" for k, v in places.items())]
    daemons = [
        munged,
        [programs["slurmctld"], "-D", "-c"],
        [programs["slurmd"], "-D", "-d", programs["slurmstepd"]],
    ]
    started: list[subprocess.Popen[bytes]] = []
    try:
        for number, command in enumerate(daemons):
            with (folder / f"daemon{number}.log").open("wb") as log:
                # a group of its own: Ctrl-C on the tests must not end it before its jobs are cancelled
                started.append(
                    subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
                )
            deadline = time.monotonic() + 10
            while number == 0 and not (folder / "munge/socket").exists() and time.monotonic() < deadline:
                time.sleep(0.05)
        made = Cluster(environment)
        deadline = time.monotonic() + 60
        while "idle" not in (said := made.ask(programs["sinfo"], "--noheader", "--format=%T")):
            if time.monotonic() > deadline or any(one.poll() is not None for one in started):
                logs = "\n".join(path.read_text(errors="replace")[-1500:] for path in sorted(folder.glob("*.log")))
                pytest.fail(f"Slurm does not start: {said}\n{logs}")
            time.sleep(0.2)
        yield made
        made.ask("scancel", "--user", getpass.getuser())  # of this cluster alone: SLURM_CONF names it
        deadline = time.monotonic() + 30
        while made.ask("squeue", "--noheader").strip() and time.monotonic() < deadline:
            time.sleep(0.5)
    finally:
        for one in reversed(started):
            one.terminate()
        for one in reversed(started):
            try:
                one.wait(20)
            except subprocess.TimeoutExpired:
                one.kill()
