"""The toy world is made of its parameters and nothing else."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from evaluate.data import layouts, textures, toy

TINY = toy.World(
    unlabelled_per_class=2,
    train_per_class=3,
    val_per_class=2,
    list_per_class=2,
    shifted_per_class=1,
    corrupted_per_class=1,
)
MAKE = (
    "import sys; from pathlib import Path; from evaluate.data import toy; print(toy.make(Path(sys.argv[1]), "
    "toy.World(*map(int, sys.argv[2:]))))"
)


def made(folder, world):
    """In a process of its own: random states must not be inherited."""
    values = [str(value) for value in vars(world).values()]
    command = [sys.executable, "-W", "ignore", "-c", MAKE, str(folder), *values]
    return Path(
        subprocess.run(
            command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2]
        ).stdout.strip()
    )


def content(root):
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in root.rglob("*")
        if path.is_file()
    }


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return made(tmp_path_factory.mktemp("first"), TINY)


def test_the_same_parameters_give_the_same_bytes(world, tmp_path):
    assert content(made(tmp_path, TINY)) == content(world)


def test_every_set_stands_in_its_layout(world):
    for name in set(layouts.LAYOUTS) - {
        "imagenet_10percent",
        "voc",
        "voc2012",
        *layouts.FURTHER,
        *layouts.MORE_TO_LEARN,
    }:  # no column of the demo reads these
        layouts.require(world, name)
    assert len(list((world / "imagenet-c").glob("*/*/*/*.JPEG"))) == 15 * 5 * len(toy.WNIDS)
    assert (world / "contact_sheet.png").stat().st_size > 10_000
    assert json.loads((world / "world.json").read_text())["train_per_class"] == 3


def test_a_world_that_stands_is_taken_as_it_is(world):
    before = (world / "world.json").stat().st_mtime_ns
    assert toy.make(world.parent, TINY) == world and (world / "world.json").stat().st_mtime_ns == before


def test_another_seed_is_another_world(world, tmp_path):
    other = toy.World(**{**vars(TINY), "seed": 1})
    assert toy.make(tmp_path, other).name != world.name


def test_classes_cannot_be_told_by_their_colors():
    """The mean color of a picture differs more inside the classes than between them, in each channel."""
    means = np.array(
        [[toy.paint(c, 32, np.random.default_rng([c, i])).mean((0, 1)) for i in range(40)] for c in range(10)]
    )
    assert (means.mean(1).std(0) < 0.3 * means.std(1).mean(0)).all()


def test_images_for_pretraining_are_none_of_the_labeled_ones(world):
    def digests(part):
        return {hashlib.sha256(path.read_bytes()).hexdigest() for path in (world / part).rglob("*.JPEG")}

    unlabelled = digests("unlabelled")
    assert len(unlabelled) == 20 and not unlabelled & (digests("imagenet/train") | digests("imagenet/val"))


def test_captions_tell_texture_and_colors(world):
    header, *lines = (world / toy.CAPTIONS).read_text().splitlines()
    assert header == "filepath\ttitle" and len(lines) == 2 * len(toy.WNIDS)
    for line in lines:
        name, text = line.split("\t")
        figure, ground = text.split(f" {toy.TEXTURES[toy.WNIDS.index(Path(name).parent.name)]} on ")
        shades = {word.split()[0] for word in (figure, ground)}
        hues = [word.split()[1] for word in (figure, ground)]
        assert (world / name).is_file() and shades == {"light", "dark"} and set(hues) <= set(textures.HUES)


def test_the_named_colors_are_those_of_the_picture():
    """The mean of the named colors' hues points where the mean of the pixels does, which noise does not move."""
    for index in range(20):
        generator = np.random.default_rng(index)
        textures.texture("checks", 32, generator)
        ground, figure = textures.colors(generator)
        text = toy.caption(3, 32, np.random.default_rng(index))
        assert text == f"{textures.name_of(figure)} checks on {textures.name_of(ground)}"
        picture = toy.paint(3, 256, np.random.default_rng(index))
        assert np.abs(picture.mean((0, 1)) - (ground + figure) / 2).max() < 12


def test_a_world_without_captions_gets_them(world):
    before = (world / toy.CAPTIONS).read_bytes()
    (world / toy.CAPTIONS).unlink()
    assert toy.make(world.parent, TINY) == world and (world / toy.CAPTIONS).read_bytes() == before
