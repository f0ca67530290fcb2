"""Small copies of large images."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from evaluate.data import copies


def image(path: Path, width: int, height: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def test_large_images_are_copied_small_and_small_ones_linked(tmp_path: Path) -> None:
    wide, small = image(tmp_path / "train/a/wide.JPEG", 300, 150), image(tmp_path / "train/b/small.png", 60, 50)
    assert copies.main([str(tmp_path / "train"), str(tmp_path / "copies"), "--side", "96"]) == 0
    with Image.open(tmp_path / "copies/a/wide.JPEG.jpg") as copy:
        assert copy.size == (192, 96)
    assert (tmp_path / "copies/b/small.png").resolve() == small.resolve()
    before = (tmp_path / "copies/a/wide.JPEG.jpg").stat().st_mtime_ns
    wide.write_bytes(b"")
    assert copies.make(tmp_path / "train", tmp_path / "copies", 96) == 2, "what stands is not read again"
    assert (tmp_path / "copies/a/wide.JPEG.jpg").stat().st_mtime_ns == before


def test_a_damaged_image_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image(tmp_path / "train/a/bad.JPEG", 300, 150).write_bytes(b"no image")
    assert copies.main([str(tmp_path / "train"), str(tmp_path / "copies")]) == 2
    assert "bad.JPEG" in capsys.readouterr().err


def test_a_file_that_is_no_image_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image(tmp_path / "train/a/good.JPEG", 300, 150)
    (tmp_path / "train/a/notes.txt").write_text("mine")
    assert copies.main([str(tmp_path / "train"), str(tmp_path / "copies")]) == 2
    assert "notes.txt is no image by its name" in capsys.readouterr().err
