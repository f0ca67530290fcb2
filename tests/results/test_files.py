"""A file is whole or not there."""

import importlib
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from results import atomic
from results.atomic import atomic_write, remove_partial, sha256

KILLED = """
import os, signal, sys
from pathlib import Path
from results.atomic import atomic_write
with atomic_write(Path(sys.argv[1])) as written:
    written.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_it_takes_the_name_when_all_is_written(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("old")
    with atomic_write(path) as written:
        assert written.suffix == ".json"  # numpy and the formats go by it
        written.write_text("new")
        assert path.read_text() == "old" and list(tmp_path.glob("*.json")) == [path]
    assert path.read_text() == "new" and list(tmp_path.iterdir()) == [path]


def test_a_folder_is_written_likewise(tmp_path):
    with atomic_write(tmp_path / "model") as written:
        written.mkdir()
        (written / "config.json").write_text("{}")
    assert [path.name for path in tmp_path.rglob("*")] == ["model", "config.json"]


def test_a_failure_leaves_what_was_there(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("old")
    with pytest.raises(RuntimeError), atomic_write(path) as written:
        written.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_a_kill_leaves_what_was_there(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("old")
    done = subprocess.run([sys.executable, "-c", KILLED, str(path)])
    assert done.returncode == -signal.SIGKILL
    assert path.read_text() == "old" and list(tmp_path.glob("*.json")) == [path]
    assert [half.name.startswith(".a.json.") for half in tmp_path.glob("*.part")] == [True]  # it says whose it was
    remove_partial(tmp_path, "b.json")
    assert list(tmp_path.glob("*.part"))
    remove_partial(tmp_path, "a.*")
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="absent"), atomic_write(tmp_path / "absent" / "a.json"):
        pass


def test_digest(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    assert sha256(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


@pytest.mark.parametrize("module", ["evaluate.runtime.training_state", "evaluate.mm.resume"])
def test_a_training_killed_again_and_again_in_its_saves_leaves_one_half_at_most(module, tmp_path):
    module = importlib.import_module(module)
    name = "iter_10.pt" if module.__name__.endswith("mm.resume") else module.FILE
    (tmp_path / f".{name}.abc.part").mkdir()
    (tmp_path / f".{name}.abc.part" / name).write_text("half")
    module.save(tmp_path, 20 if "mm" in module.__name__ else "identity", {})
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.parametrize(
    ("umask", "file", "folder"), [(0o022, 0o644, 0o755), (0o002, 0o664, 0o775), (0o077, 0o600, 0o700)]
)
def test_what_is_written_has_the_mode_that_the_umask_gives(umask: int, file: int, folder: int, tmp_path: Path) -> None:
    def write(path: Path) -> object:
        return save_file({"a": torch.zeros(2)}, path)  # which makes a file for its owner alone

    def write_folder(path: Path) -> None:
        path.mkdir()
        write(path / "model.safetensors")
        (path / "config.json").write_text("{}")

    before = os.umask(umask)
    try:
        for name, put in (
            ("a.safetensors", write),
            ("a.json", lambda path: path.write_text("{}")),
            ("model", write_folder),
        ):
            with atomic_write(tmp_path / name) as written:
                put(written)
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.rglob("*")}
    assert modes.pop("model") == folder and set(modes) == {
        "a.safetensors",
        "a.json",
        "model.safetensors",
        "config.json",
    }
    assert set(modes.values()) == {file}


def test_a_script_keeps_its_x(tmp_path: Path) -> None:
    with atomic_write(tmp_path / "a.sh") as written:
        written.write_text("")
        written.chmod(0o700)
    assert stat.S_IMODE((tmp_path / "a.sh").stat().st_mode) & 0o744 == 0o744


SAVING = """
import sys, time
from pathlib import Path
from results.atomic import atomic_write, remove_partial
path = Path(sys.argv[1])
for number in range(40):
    remove_partial(path.parent, path.name)
    with atomic_write(path) as written:
        with written.open("w") as file:
            for _ in range(20):
                file.write(sys.argv[2] * 1000)
                file.flush()
                time.sleep(0.0005)
"""


def test_processes_that_save_one_name_leave_each_other_alone(tmp_path: Path) -> None:
    path = tmp_path / "state.pt"
    processes = [
        subprocess.Popen([sys.executable, "-c", SAVING, str(path), sign], stderr=subprocess.PIPE) for sign in "abc"
    ]
    errors = [process.communicate()[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], errors
    content = path.read_text()
    assert len(content) == 20_000 and len(set(content)) == 1 and list(tmp_path.iterdir()) == [path]


def test_only_what_the_dead_have_left_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    here, away = atomic.machine(), "0" * 8
    owners = {
        "mine": f"{here}-{os.getpid()}",
        "dead": f"{here}-{done.pid}",
        "away": f"{away}-{done.pid}",
        "long away": f"{away}-1",
    }
    halves = {name: tmp_path / f".a.json.{owner}-xyz.part" for name, owner in owners.items()}
    for half in halves.values():
        half.mkdir()
        (half / "a.json").write_text("half")
    yesterday = time.time() - atomic.FOREIGN_SECONDS - 60
    for path in (halves["long away"] / "a.json", halves["long away"]):
        os.utime(path, (yesterday, yesterday))
    remove_partial(tmp_path, "a.json")
    assert {name for name, half in halves.items() if half.exists()} == {"mine", "away"}


def test_a_zombie_is_dead(tmp_path: Path) -> None:
    zombie = subprocess.Popen([sys.executable, "-c", ""])
    while (
        Path(f"/proc/{zombie.pid}").is_dir()
        and "Z" not in Path(f"/proc/{zombie.pid}/stat").read_text().rpartition(")")[2].split()[0]
    ):
        time.sleep(0.01)
    assert not atomic._is_alive(zombie.pid)
    zombie.wait()
    assert atomic._is_alive(os.getpid()) and atomic._is_alive(1) and not atomic._is_alive(10**30)


IN_A_SMALL_DISK = """
mount -t tmpfs -o size=300k tmpfs "$1" || exit 99
exec "$0" -c '
import sys, torch
from pathlib import Path
from safetensors.torch import save_file
from results.atomic import atomic_write
from results.ending import leave
folder, how = Path(sys.argv[1]), sys.argv[2]
def main():
    (folder / "a").write_text("earlier")
    with atomic_write(folder / "a") as written:
        if how == "torch":
            torch.save({"x": torch.zeros(10**6)}, written)
        elif how == "safetensors":
            save_file({"x": torch.zeros(10**6)}, written)
        elif how == "bytes":
            written.write_bytes(bytes(10**6))
        else:
            raise RuntimeError("no fault of the disk")
try:
    leave(main)
finally:
    assert (folder / "a").read_text() == "earlier" and len(list(folder.iterdir())) == 1
' "$1" "$2"
"""


@pytest.mark.parametrize("how", ["torch", "safetensors", "bytes", "another error"])
def test_a_full_disk_is_named_whoever_writes(how: str, tmp_path: Path) -> None:
    command = ["unshare", "--mount", "bash", "-c", IN_A_SMALL_DISK, sys.executable, str(tmp_path), how]
    root = Path(atomic.__file__).parents[1]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=120)
    if done.returncode in (1, 99) and ("unshare" in done.stderr or "mount" in done.stderr):
        pytest.skip("a small disk can be mounted by root alone")
    if how == "another error":
        assert done.returncode == 1 and "no fault of the disk" in done.stderr
        return
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith(f"{tmp_path / 'a'} cannot be written (No space left on device); make room")
    assert done.stderr.count("\n") == 1
