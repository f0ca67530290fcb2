"""Images with captions: tables with any separator, webdataset's shards, and which caption goes with which image."""

import io
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from evaluate.runtime.errors import UserError
from pretrain import checkpoint, train
from pretrain.data import loader
from pretrain.data.images import DataError, decode
from pretrain.data.pairs import Pairs, open_images
from pretrain.methods import clip, mae
from tests.pretrain.runs import write_captions, write_images

CONFIG = replace(clip.PRESETS["demo"], batch_size=4, epochs=2)
TABLES = {  # a file's name: its content of three images
    "tabs.tsv": 'filepath\ttitle\nn1/000.png\ta "red" dog, running\nn1/001.png\ttwo cats\nn1/002.png\t"\n',
    "commas.csv": 'n1/000.png,"a ""red"" dog, running"\nn1/001.png,two cats\nn1/002.png,""""\n',
    "semicolons.csv": 'Caption;n;Image\n"a ""red"" dog, running";7;n1/000.png\n'
    'two cats;8;n1/001.png\n"""";9;n1/002.png\n',
    "tabs.csv": 'n1/000.png\ta "red" dog, running\r\n\r\nn1/001.png\ttwo cats\r\nn1/002.png\t"\r\n',
}


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    return write_images(tmp_path_factory.mktemp("pairs"), 8)


def write_shard(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def members_of(images: Path, numbers: range) -> dict[str, bytes]:
    """Each image, its caption and what else img2dataset writes."""
    found = {}
    for number in numbers:
        found[f"./{number:05d}.png"] = (images / f"n1/{number:03d}.png").read_bytes()
        found[f"./{number:05d}.json"] = b"{}"
        found[f"./{number:05d}.txt"] = f"picture {number} é\n".encode()
    return found


@pytest.fixture(scope="module")
def shards(images, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    write_shard(folder / "00001.tar", members_of(images, range(5, 8)))
    write_shard(folder / "00000.tar", members_of(images, range(5)) | {"./.hidden.png": b""})
    return folder


@pytest.mark.parametrize("name", TABLES)
def test_a_table_has_the_separator_of_its_first_line(name, images):
    table = images / name
    table.write_text(TABLES[name], newline="")
    found = Pairs(table)
    assert found.paths == [images / f"n1/00{number}.png" for number in range(3)]
    assert [found[index].caption for index in range(3)] == ['a "red" dog, running', "two cats", '"']
    assert found.classes == ["n1"] * 3
    assert all(torch.equal(found[index].image, decode(found.paths[index])) for index in range(3))


def test_shards_are_read_in_place(images, shards):
    found = Pairs(shards)
    assert [found[index].caption for index in range(8)] == [f"picture {number} é" for number in range(8)]
    assert all(torch.equal(found[number].image, decode(images / f"n1/{number:03d}.png")) for number in range(8))
    assert Pairs(shards / "00001.tar")[0].caption == "picture 5 é"
    assert str(found.paths[7]) == f"{shards / '00001.tar'}:./00007.png"


def test_another_caption_is_another_set(images):
    table = images / "identity.tsv"
    found = []
    for text in ("two cats", "two cats", "two dogs"):
        table.write_text(f"n1/000.png\t{text}\n")
        found.append(Pairs(table).identity)
    assert found[0] == found[1] != found[2]


def test_the_caption_goes_with_the_image_that_replaces_a_damaged_one(tmp_path):
    images = write_images(tmp_path / "images", 3)
    (images / "n1/001.png").write_bytes(b"no image")
    found = Pairs(write_captions(images))
    sample = found[1]
    other = next(index for index in (0, 2) if torch.equal(sample.image, found[index].image))
    assert sample.index == 1 and list(sample.damaged) == [1] and sample.caption == found[other].caption


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.tsv", "n1/000.png\ta\nn1/001.png\ta\tb\n", "a.tsv, line 2, has 3 cells where 2 are expected"),
        ("a.csv", "n1/000.png,a dog\nn1/001.png,a dog, running\n", "line 2, has 3 cells .*needs quotes"),
        ("a.tsv", "n1/000.png\nn1/001.png\n", "line 1, has 1 cells where 2 are expected"),
        ("a.tsv", "filepath\ttitle\n", "a.tsv holds no pair of an image and a caption"),
        ("a.csv", "", "a.csv holds no pair"),
        ("a.tsv", "n1/000.png\tcaf\udce9\n", "a.tsv cannot be read .*as UTF-8"),
        ("absent/a.tsv", None, "a.tsv cannot be read .*No such file"),
        ("absent.tar", None, "absent.tar holds no captions; expected a table"),
        ("n1", None, "n1 holds no captions; expected a table .*or a folder of webdataset shards"),
    ],
)
def test_what_is_no_table_and_no_shard_is_named(name, content, says, images):
    if content is not None:
        (images / name).write_text(content, errors="surrogateescape")
    with pytest.raises((DataError, UserError), match=says):
        Pairs(images / name)


def test_a_shard_that_is_not_whole_is_named(images, tmp_path):
    members = members_of(images, range(2))
    del members["./00001.txt"]
    with pytest.raises(DataError, match="00000.tar:./00001.png has no caption; expected 00001.txt beside it"):
        Pairs(write_shard(tmp_path / "00000.tar", members))
    whole = write_shard(tmp_path / "00001.tar", members_of(images, range(2))).read_bytes()
    (tmp_path / "00001.tar").write_bytes(whole[:3000])
    with pytest.raises(UserError, match="00001.tar is damaged or cut short"):
        Pairs(tmp_path / "00001.tar")


def test_a_step_has_the_captions_of_its_images(images):
    pairs = Pairs(write_captions(images))
    wanted = torch.from_numpy(CONFIG.tokens([pairs.caption(index) for index in range(8)]))
    for workers in (0, 2):
        for step in loader.steps_from(pairs, 0, 2, CONFIG, workers):
            assert len(step.micro) == 2
            for part in step.micro:
                assert part.text is not None and torch.equal(part.text, wanted[part.index])


def test_only_a_method_that_reads_captions_is_given_pairs(images, tmp_path):
    assert isinstance(open_images(write_captions(images), tmp_path, CONFIG), Pairs)
    assert not isinstance(open_images(images, tmp_path, mae.DEMO), Pairs)


def test_clip_trains_on_shards(shards, tmp_path, capsys):
    command = ["--preset", "clip_demo", "--data", str(shards), "--out", str(tmp_path), "--device", "cpu"]
    sets = ["batch_size=4", "epochs=1", "warmup_epochs=0", "depth=1", "text_depth=1"]
    assert train.main([*command, *(part for setting in sets for part in ("--set", setting))]) == 0
    assert torch.load(tmp_path / checkpoint.NAME, weights_only=True)["step"] == 2
    assert train.main([*command, "--set", "vocab_size=50"]) == 2
    assert "vocab_size 50 is below the tokenizer's 49408" in capsys.readouterr().err
