"""The one lister: links are followed, cycles end, what systems leave behind is left out, a closed folder is named."""

import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

import run_all
from evaluate.data import archives, imagenet, layouts, listing
from evaluate.data.identity import snapshot
from evaluate.runtime.cli import EXIT_USER
from tests.worlds import WNIDS, write_folder, write_world

DROPPINGS = ("lost+found", "Thumbs.db", "desktop.ini", ".DS_Store", "__MACOSX", "@eaDir", "._a.png", "$RECYCLE.BIN")
ORDINARY = [  # root, without the right to enter every folder
    *("setpriv", "--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-dac_override,-dac_read_search")
]


def names(root: Path, leave_out: Path | None = None) -> list[str]:
    return sorted(name for name, _ in listing.walk(root, lambda entry: None, leave_out))


def drop(folder: Path) -> None:
    """What systems leave behind: a folder with a picture, or a file."""
    for name in DROPPINGS:
        if "." in name[1:]:
            (folder / name).write_bytes(b"x")
        else:
            (folder / name).mkdir()
            shutil.copy(next(folder.parent.rglob("n*.png")), folder / name / "picture.png")


def test_links_are_followed_and_cycles_end(tmp_path: Path) -> None:
    root, away = tmp_path / "root", tmp_path / "away"
    (root / "a").mkdir(parents=True), (away / "inner").mkdir(parents=True)
    (root / "a/1.png").touch(), (away / "inner/2.png").touch()
    (root / "linked").symlink_to(away)
    (root / "a/up").symlink_to(root)
    (away / "inner/back").symlink_to(away / "inner")  # to a real folder, reached through a link
    (root / "itself").symlink_to("itself")
    (root / "nowhere.png").symlink_to("absent")
    os.mkfifo(root / "pipe.png")
    assert names(root) == ["a/1.png", "itself", "linked/inner/2.png", "nowhere.png"]
    assert names(root, leave_out=away) == ["a/1.png", "itself", "nowhere.png"]
    assert snapshot(root).names == ("a/1.png", "linked/inner/2.png")


def test_droppings_are_no_class_no_image_and_no_change(tmp_path: Path) -> None:
    root = write_world(tmp_path, train=3, val=1)
    before = [
        imagenet.train_set(root),
        imagenet.val_set(root),
        imagenet.robustness_set("imagenet_r", root, "imagenet-r"),
    ]
    structure = snapshot(root / "imagenet/train").structure
    for folder in ("imagenet/train", "imagenet/val", "imagenet-r", f"imagenet/train/{WNIDS[0]}"):
        drop(root / folder)
    after = [
        imagenet.train_set(root),
        imagenet.val_set(root),
        imagenet.robustness_set("imagenet_r", root, "imagenet-r"),
    ]
    assert [images.files for images in after] == [images.files for images in before]
    assert snapshot(root / "imagenet/train").structure == structure
    with tarfile.open(root / "imagenet-r.tar", "w") as tar:
        tar.add(root / "imagenet-r", "./imagenet-r")
        tar.add(root / "imagenet-r", "__MACOSX/imagenet-r")
    found = [member.name for files in archives.folders(root / "imagenet-r.tar").values() for member in files]
    assert sorted(found) == sorted(file.name for file in before[2].files)


@pytest.fixture
def closed(tmp_path: Path) -> Path:
    return write_world(tmp_path / "data", train=6, val=1)


@pytest.mark.skipif(os.geteuid() == 0 and not shutil.which("setpriv"), reason="root may enter every folder")
@pytest.mark.parametrize(
    ("part", "mode", "command", "says"),
    [
        (part, mode, command, says)
        for part, mode, says in (
            (f"imagenet/train/{WNIDS[1]}", 0o000, f"the folder {{}}/imagenet/train/{WNIDS[1]} cannot be read"),
            (f"imagenet/train/{WNIDS[1]}", 0o444, f"the folder {{}}/imagenet/train/{WNIDS[1]} cannot be read"),
            ("imagenet", 0o000, "{}/imagenet/train cannot be read"),
        )
        for command in ("check", "task", "pretrain")
    ]
    + [
        ("imagenet/1percent.txt", 0o000, command, "{}/imagenet/1percent.txt cannot be read")
        for command in ("check", "task")
    ]
    + [
        (
            f"imagenet/val/{WNIDS[1]}/{WNIDS[1]}_0.png",
            0o000,
            "check",
            "_0.png cannot be read or written (Permission denied)",
        )
    ],
)
def test_what_one_may_not_enter_is_one_sentence(closed: Path, part: str, mode: int, command: str, says: str) -> None:
    (closed / "x.pth").touch()
    (closed / part).chmod(mode)
    arguments = {
        "check": ["run_all.py", "--check-data", "--tasks", "few_shot", "--data-root", str(closed)],
        "task": [
            "-m",
            "evaluate.few_shot",
            "--ckpt",
            f"{closed}/x.pth",
            "--data-root",
            str(closed),
            "--out",
            str(closed / "out"),
        ],
        "pretrain": [
            "-m",
            "pretrain.train",
            "--preset",
            "demo",
            "--device",
            "cpu",
            "--data",
            str(closed / "imagenet/train"),
            "--out",
            str(closed / "out"),
        ],
    }[command]
    user = ORDINARY if os.geteuid() == 0 else []
    done = subprocess.run([*user, sys.executable, *arguments], capture_output=True, text=True)
    (closed / part).chmod(0o755)
    assert done.returncode == EXIT_USER and says.format(closed) in done.stderr, done.stderr
    assert all("Permission denied" in line for line in done.stderr.splitlines())


@pytest.mark.parametrize("given", ["imagenet", "imagenet/train", f"imagenet/train/{WNIDS[0]}", ".."])
def test_a_data_root_too_deep_or_too_high_is_said(
    tmp_path: Path, given: str, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "above/data"
    write_folder(root / "imagenet/train", 1)
    assert run_all.main(["--check-data", "--data-root", str(root / given), "--tasks", "knn"]) == EXIT_USER
    assert f"did you mean --data-root {root}?" in capsys.readouterr().err
    assert layouts.root(root) == root
