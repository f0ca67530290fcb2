"""A file is whole or not there."""

import importlib
import signal
import subprocess
import sys

import pytest

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
