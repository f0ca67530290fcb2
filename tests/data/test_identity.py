"""The identity of data: what changes it, and what does not."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from evaluate.data import identity, imagenet
from evaluate.data.identity import DataIdentities
from evaluate.runtime.errors import UserError
from tests.worlds import WNIDS, write_folder


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for split in ("train", "val"):
        write_folder(tmp_path / "data/imagenet" / split, 6, seed=1)
    return tmp_path / "data"


def val_of(root: Path, store: Path, **options: bool) -> str:
    return DataIdentities(root, store, **options)["imagenet/val"]


def some(root: Path) -> Path:
    return sorted((root / "imagenet/val").rglob("*.png"))[5]


def age(path: Path, seconds: float) -> None:
    about = path.stat()
    os.utime(path, (about.st_atime, about.st_mtime + seconds))


@pytest.mark.parametrize(
    "change",
    [
        lambda path: path.write_bytes(path.read_bytes() + b"x"),
        lambda path: path.unlink(),
        lambda path: path.rename(path.with_name("another.png")),
        lambda path: age(path, 5),  # its time alone: it may be another picture of the same size
        lambda path: shutil.copy(path, path.with_name("one_more.png")),
    ],
    ids=["content", "absent", "renamed", "time", "added"],
)
def test_a_file_that_changed_alone_gives_another_identity(root: Path, tmp_path: Path, change) -> None:
    before = val_of(root, tmp_path / "store")
    assert val_of(root, tmp_path / "store") == before
    other = DataIdentities(root, tmp_path / "store")["imagenet/train"]
    change(some(root))
    assert val_of(root, tmp_path / "store") != before
    assert DataIdentities(root, tmp_path / "store")["imagenet/train"] == other


def test_a_copy_whose_times_all_changed_is_the_same_data_by_a_sample_of_contents(root: Path, tmp_path: Path) -> None:
    before = val_of(root, tmp_path / "store")
    copy = tmp_path / "elsewhere"
    shutil.copytree(root, copy, copy_function=shutil.copy)  # new times
    for path in copy.rglob("*.png"):
        age(path, 1000)
    assert val_of(copy, tmp_path / "store") == before
    assert val_of(root, tmp_path / "store") == before == val_of(copy, tmp_path / "store"), "both places are known now"
    for path in (copy / "imagenet/val").rglob("*.png"):  # other pictures of the same names and sizes
        content = bytearray(path.read_bytes())
        content[-20] ^= 1
        path.write_bytes(content)
        age(path, 2000)
    assert val_of(copy, tmp_path / "store") != before


def test_verify_data_reads_every_file(root: Path, tmp_path: Path) -> None:
    before = val_of(root, tmp_path / "store", verify=True)
    path = some(root)
    about, content = path.stat(), bytearray(path.read_bytes())
    content[-20] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))  # nothing but its content tells
    assert val_of(root, tmp_path / "store") == val_of(root, tmp_path / "store")
    assert val_of(root, tmp_path / "store", verify=True) != before


def test_what_one_process_has_found_out_is_believed_by_those_that_take_it(root: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    first = DataIdentities(root, store)
    first.of_sets(("imagenet", "imagenet_a"))
    first.keep()
    before = first["imagenet/val"]
    age(some(root), 100)

    def taken(data_root: Path = root, verify: bool = False) -> DataIdentities:
        other = DataIdentities(data_root, store, verify)
        other.take()
        return other

    assert taken()["imagenet/val"] == before != val_of(root, store)  # without looking at the files
    assert taken(verify=True)["imagenet/val"] != before
    shutil.copytree(root, tmp_path / "elsewhere")
    assert taken(tmp_path / "elsewhere")["imagenet/val"] != before
    assert taken()["imagenet-a"] == "absent"
    write_folder(root / "imagenet-a", 2)
    assert taken()["imagenet-a"] != "absent"  # it has come since
    (store / identity.FOUND).write_text("{")
    assert taken()["imagenet/val"] != before


def test_links_are_followed_class_by_class_and_circles_end(root: Path, tmp_path: Path) -> None:
    linked = tmp_path / "linked/imagenet/val"
    linked.mkdir(parents=True)
    for wnid in WNIDS[:2]:
        (linked / wnid).symlink_to(root / "imagenet/val" / wnid)
    first = val_of(tmp_path / "linked", tmp_path / "store")
    (linked / WNIDS[0]).unlink()
    (linked / WNIDS[2]).symlink_to(root / "imagenet/val" / WNIDS[2])
    assert val_of(tmp_path / "linked", tmp_path / "store") != first
    (linked / "circle").symlink_to(linked)
    assert val_of(tmp_path / "linked", tmp_path / "store") not in (first, "absent")


def test_contents_of_lists_count(root: Path, tmp_path: Path) -> None:
    path = root / "imagenet/1percent.txt"
    path.write_text("a.png\nb.png\n")
    about = path.stat()
    before = DataIdentities(root, tmp_path / "store")["imagenet/1percent.txt"]
    path.write_text("a.png\nc.png\n")
    os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))
    assert DataIdentities(root, tmp_path / "store")["imagenet/1percent.txt"] != before
    assert DataIdentities(root, tmp_path / "store")["imagenet/10percent.txt"] == "absent"


def test_a_damaged_manifest_is_none(root: Path, tmp_path: Path) -> None:
    before = val_of(root, tmp_path / "store")
    (manifest,) = (tmp_path / "store").glob("imagenet-val-*.npz")
    for content in (b"", manifest.read_bytes()[:100], b"not an archive"):
        manifest.write_bytes(content)
        assert val_of(root, tmp_path / "store") == before


def test_a_folder_that_cannot_be_read_is_named(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: str) -> None:
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(identity.os, "scandir", refuse)
    with pytest.raises(UserError, match="the folder .*imagenet/val cannot be read"):
        val_of(root, tmp_path / "store")


def test_what_is_kept_of_images_goes_by_the_identity(root: Path, tmp_path: Path) -> None:
    sets = [imagenet.val_set(root, identities={"imagenet/val": name}) for name in ("a", "b")]
    assert sets[0].fingerprint != sets[1].fingerprint
    plain = imagenet.val_set(root).fingerprint
    age(some(root), 3)
    assert imagenet.val_set(root).fingerprint != plain and np.array_equal(sets[0].labels, sets[1].labels)
