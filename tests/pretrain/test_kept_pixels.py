"""What ``cache_pixels`` keeps in OUT: the images' pixels, resized where they are large, made again where damaged."""

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from pretrain.data import kept_pixels
from pretrain.data.images import DataError, ImageFolder, Images
from pretrain.methods import mae, swav
from tests.pretrain.runs import Run, content, same, write_images

CONFIG = replace(mae.DEMO, img_size=32, crop_scale=(0.25, 1.0))  # kept at 64 pixels


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Ten images of 40 x 36 pixels, one of 100 x 80 and one that is cut short."""
    folder = write_images(tmp_path / "images", 10)
    pixels = np.random.default_rng(0).integers(0, 255, (80, 100, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "n1/large.png")
    (folder / "n1/short.png").write_bytes((folder / "n1/large.png").read_bytes()[:500])
    return folder


def opened(folder: Path, keep: bool = True) -> Images:
    images = ImageFolder(folder)
    if keep:
        kept_pixels.keep(images, folder.parent / "out", CONFIG)
    return images


def files(folder: Path) -> list[Path]:
    return sorted((folder.parent / "out/pixels").iterdir())


def forbid_files(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Images, index: int) -> torch.Tensor:
        raise AssertionError("a file is read")

    monkeypatch.setattr(Images, "read_file", refuse)


def test_small_images_are_kept_as_they_are_and_large_ones_resized(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, images = opened(folder, keep=False), opened(folder)
    large = plain.read(10)
    expected = [plain.read(index) for index in range(10)]
    expected.append(F.interpolate(large[None], (64, 80), mode=CONFIG.interpolation, antialias=True)[0])
    with pytest.raises(DataError, match=r"short\.png cannot be read"):
        images.read(11)
    with monkeypatch.context() as patched:
        forbid_files(patched)
        assert all(torch.equal(images.read(index), pixels) for index, pixels in enumerate(expected))
    assert list(images[11].damaged) == [11] and torch.equal(images[11].image, expected[(11 + 7919) % 12])


def test_what_is_kept_is_taken_by_the_next_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = opened(folder).read(3)
    monkeypatch.setattr(kept_pixels, "_write", None)
    assert torch.equal(opened(folder).read(3), first)


@pytest.mark.parametrize("part", [".bin", ".npz"])
def test_a_file_that_was_cut_is_made_again(part: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = opened(folder).read(10)
    cut = next(path for path in files(folder) if path.suffix == part)
    cut.write_bytes(cut.read_bytes()[:-100])
    images = opened(folder)
    forbid_files(monkeypatch)
    assert torch.equal(images.read(10), first)


def test_pixels_that_changed_on_the_disk_are_made_again(folder: Path) -> None:
    images = opened(folder)
    expected = [images.read(index) for index in range(11)]
    kept = next(path for path in files(folder) if path.suffix == ".bin")
    content = bytearray(kept.read_bytes())
    content[50] ^= 1
    content[-50] ^= 1
    kept.write_bytes(content)
    assert all(torch.equal(images.read(index), pixels) for index, pixels in enumerate(expected))


def test_other_images_of_the_same_names_take_the_place_of_the_old(folder: Path) -> None:
    old = opened(folder).read(0)
    before = files(folder)
    Image.fromarray(np.zeros((36, 40, 3), np.uint8)).save(folder / "n1/000.png")
    os.utime(folder / "n1/000.png", (1, 1))
    assert not torch.equal(opened(folder).read(0), old)
    assert len(files(folder)) == len(before) == 2 and files(folder) != before


def test_too_many_pixels_are_refused_before_any_is_written(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept_pixels, "MOST_BYTES", 70_000)  # the images take 58,560 or a little more, by the estimate
    opened(folder)
    monkeypatch.setattr(kept_pixels, "MOST_BYTES", 50_000)
    os.utime(folder / "n1/000.png", (1, 1))
    before = files(folder)
    with pytest.raises(DataError, match="cache_pixels would keep 0.0 GB of pixels"):
        opened(folder)
    assert files(folder) == before


def test_the_limit_holds_where_the_sample_is_not_like_the_rest(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept_pixels, "MOST_BYTES", 50_000)
    monkeypatch.setattr(kept_pixels, "SAMPLE", 1)
    Image.new("RGB", (2, 2)).save(folder / "n1/000.png")
    with pytest.raises(DataError, match="cache_pixels would keep 0.0 GB of pixels or more"):
        opened(folder)
    assert not files(folder), "the part that was written is left"


def test_pixels_that_are_removed_under_a_run_are_read_from_the_images(folder: Path) -> None:
    images = opened(folder)
    expected = [images.read(index) for index in range(11)]
    for path in files(folder):
        path.unlink()
    assert all(torch.equal(images.read(index), pixels) for index, pixels in enumerate(expected))


def test_a_link_in_a_circle_is_an_image_that_cannot_be_read(folder: Path) -> None:
    (folder / "n1/short.png").unlink()
    (folder / "n1/short.png").symlink_to("short.png")
    assert list(opened(folder)[11].damaged) == [11]


def test_the_others_hear_from_process_0_while_it_works(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[bool] = []
    monkeypatch.setattr(kept_pixels.distributed, "any_rank", lambda flag: said.append(flag) or flag)
    clock = iter(range(100))  # each look at it is a second later
    monkeypatch.setattr(kept_pixels.time, "monotonic", lambda: next(clock) / 2)
    monkeypatch.setattr(kept_pixels, "PAUSE", 1.0)
    kept_pixels._by_rank_zero(iter([None] * 5))
    assert said.index(True) >= 2

    def fails() -> Iterator[None]:
        yield
        raise DataError("the second is too much")

    with pytest.raises(DataError, match="the second"):
        kept_pixels._by_rank_zero(fails())


def test_the_smallest_square_crop_has_the_pixels_of_its_view() -> None:
    assert kept_pixels.kept_side(CONFIG) == 64
    small = swav.PRESETS["demo"]
    assert kept_pixels.kept_side(replace(small, small_scale=(0.01, 0.1))) == 240


@pytest.mark.parametrize("processes", [1, 2])
def test_a_run_on_small_images_ends_with_the_same_bits(processes: int, tmp_path: Path) -> None:
    images = write_images(tmp_path / "images")
    runs = [
        Run(images, tmp_path / name, *options, processes=processes)
        for name, options in {"plain": (), "kept": ("--set", "cache_pixels=true", "--workers", "1")}.items()
    ]
    for run in runs:
        assert run.statuses() == [0] * processes, run.said()
    plain, kept = (content(run.out) for run in runs)
    assert kept["config"].pop("cache_pixels") is True and plain["config"].pop("cache_pixels") is False
    assert same(plain, kept)
    said = [line for line in runs[1].said().splitlines() if "kept decoded in" in line]
    assert said and f"{tmp_path / 'kept/pixels'}, with a shorter side of at most 59 px" in said[0]
