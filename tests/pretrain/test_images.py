"""What a run reads: every image below --data once, of train alone, and the same ones at each start."""

import os
import shutil
from pathlib import Path

import pytest
import torch

from pretrain import checkpoint
from pretrain.data.images import DataError, ImageFolder
from pretrain.faults import Faults
from tests.pretrain.runs import EVERY_STEP, STEPS, Run, content, same, write_images


def write_classes(folder: Path, *places: str, count: int = 2) -> Path:
    for place in places:
        write_images(folder / place / "made", count)
        for image in sorted((folder / place / "made/n1").iterdir()):
            image.rename(folder / place / image.name)
        shutil.rmtree(folder / place / "made")
    return folder


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    """24 images of three classes."""
    return write_classes(tmp_path_factory.mktemp("images") / "train", "a", "a-b", "c", count=8)


@pytest.fixture(scope="module")
def whole(images, tmp_path_factory) -> Path:
    """The output of a run to its end, with a checkpoint of each step."""
    run = Run(images, tmp_path_factory.mktemp("whole") / "out", *EVERY_STEP, "--keep", "9")
    assert run.statuses() == [0], run.said()
    assert run.said().splitlines()[0] == f"pretrain: 24 images of 3 classes in {images}"
    return run.out


@pytest.mark.parametrize("linked", [("a", "a-b", "c"), ("c",)])
def test_linked_classes_give_the_same_bits(images, whole, linked, tmp_path):
    folder = tmp_path / "links"
    folder.mkdir()
    for place in ("a", "a-b", "c"):
        if place in linked:
            (folder / place).symlink_to(images / place)
        else:
            shutil.copytree(images / place, folder / place)
    (folder / "around").symlink_to(folder)
    assert Run(folder, tmp_path / "out").statuses() == [0]
    assert same(content(tmp_path / "out"), content(whole))


def test_order_is_that_of_the_paths(images):
    found = ImageFolder(images)
    assert found.paths == sorted(images.rglob("*.png")) and found.paths[8].parent.name == "a-b"
    assert found.classes == ["a"] * 8 + ["a-b"] * 8 + ["c"] * 8


def test_what_is_hidden_or_drawn_by_a_run_is_not_trained_on(images, whole, tmp_path):
    folder = shutil.copytree(images, tmp_path / "images")
    shutil.copytree(folder / "a", folder / "a/.ipynb_checkpoints")
    shutil.copytree(folder / "a", folder / "@eaDir")
    for name in ("run1", "run1", "run2"):
        run = Run(folder, folder / name)
        assert run.statuses() == [0] and run.said().startswith("pretrain: 24 images of 3 classes")
        assert same(content(run.out), content(whole)) and (run.out / "batch.png").is_file()
    assert len(ImageFolder(folder)) == 24
    run = Run(folder, folder)
    assert run.statuses() == [2] and "is the training folder" in run.said()


@pytest.mark.parametrize(
    ("places", "says"),
    [
        (("train/a", "val/a"), "holds train beside val.*did you mean --data {}/train?"),
        (("train/a", "test"), "holds train beside test"),
        (("x/Training/a", "x/validation/a"), "{}/x holds Training beside validation.*--data {}/x/Training?"),
        (("train2017", "val2017"), "--data {}/train2017?"),
        (("part1/a", "part1/b", "part2/a"), "the class folder a in several places, part1/a and part2/a"),
    ],
)
def test_a_slip_of_the_path_begins_no_run(places, says, tmp_path):
    folder = write_classes(tmp_path / "data", *places)
    with pytest.raises(DataError, match=says.replace("{}", str(folder)).replace("?", r"\?")):
        ImageFolder(folder)


def test_held_out_images_behind_a_link_are_found(tmp_path):
    folder = write_classes(tmp_path / "data", "train/a", "val/a")
    (folder / "train/b").symlink_to(folder)
    with pytest.raises(DataError, match="the class folder a in several places, a and b/val/a"):
        ImageFolder(folder / "train")


def test_classes_may_hold_one_folder_of_images_each(tmp_path):
    found = ImageFolder(write_classes(tmp_path, "a/images", "b/images", "train/images"))
    assert found.classes == ["a", "a", "b", "b", "train", "train"]


def test_a_link_that_leads_nowhere_is_named(images, tmp_path):
    folder = shutil.copytree(images, tmp_path / "images")
    (folder / "c/lost.png").symlink_to(folder / "nowhere")
    found = ImageFolder(folder)
    with pytest.raises(DataError, match="lost.png cannot be read"):
        found.read(found.names.index("c/lost.png"))


def started(whole: Path, out: Path, step: int = 3, **changes) -> Path:
    """An output folder whose newest checkpoint is an early one of a run, with some fields changed or, if None, gone."""
    shutil.copytree(whole, out)
    early = next(path for path in checkpoint.checkpoints(out) if torch.load(path, weights_only=True)["step"] == step)
    state = {**torch.load(early, weights_only=True), **changes}
    for path in checkpoint.checkpoints(out):
        path.unlink()
    kept = {name: value for name, value in state.items() if value is not None}
    with (out / checkpoint.NAME).open("wb+") as file:
        checkpoint._write_with_checksum(file, kept)
    return out


def test_a_run_goes_on_with_its_own_images_alone(images, whole, tmp_path):
    out = started(whole, tmp_path / "out")
    folder = shutil.copytree(images, tmp_path / "images")
    assert Run(folder, shutil.copytree(out, tmp_path / "copy")).statuses() == [0]  # they may lie elsewhere
    assert same(content(tmp_path / "copy"), content(whole))
    (folder / "a/000.png").rename(folder / "a/renamed.png")
    run = Run(folder, out)
    assert run.statuses() == [2] and content(out)["step"] == 3
    last = run.said().splitlines()[-1]
    assert "holds a run on other images (24 images before and 24 now, of other names)" in last
    assert "--allow-other-images" in last
    shutil.rmtree(folder / "a")
    run = Run(folder, out, "--allow-other-images")
    assert run.statuses() == [0] and "goes on with other images (24 images before and 16 now" in run.said()
    assert content(out)["images"] == ImageFolder(folder).identity and content(out)["step"] == STEPS // 3 * 2
    assert Run(folder, out).statuses() == [0]  # they are its own from then on


def test_checkpoints_of_before_resume(images, whole, tmp_path):
    out = started(whole, tmp_path / "out", images=None)
    assert Run(images, out).statuses() == [0] and same(content(out), content(whole))
    watch = Faults(ImageFolder(images), tmp_path)
    watch.load_state_dict({"damaged": [0, 9], "skipped": 1, "in_a_row": 0})
    assert watch.state_dict()["damaged"] == ["a-b/001.png", "a/000.png"]
    watch.load_state_dict({"damaged": ["a/000.png", "gone.png"], "skipped": 1, "in_a_row": 0})
    assert watch.state_dict()["damaged"] == ["a/000.png"]


def test_the_names_of_the_images_are_their_identity(images, tmp_path):
    copy = shutil.copytree(images, tmp_path / "copy")
    assert ImageFolder(copy).identity == ImageFolder(images).identity
    assert ImageFolder(Path(os.path.relpath(copy))).identity == ImageFolder(images).identity
    (copy / "a/000.png").rename(copy / "c/000.PNG")
    assert ImageFolder(copy).identity["digest"] != ImageFolder(images).identity["digest"]
