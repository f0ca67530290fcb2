"""The fast decoder gives PIL's pixels and PIL's errors."""

import numpy as np
import pytest
import torch
from PIL import Image

from pretrain.data import images


def noise(mode: str) -> Image.Image:
    """A smooth picture, so that JPEG keeps it."""
    coarse = np.random.default_rng(0).integers(0, 255, (6, 8, len(Image.new(mode, (1, 1)).getbands())), dtype=np.uint8)
    return Image.fromarray(coarse.squeeze(), mode=mode).resize((83, 61), Image.Resampling.BICUBIC)


@pytest.mark.parametrize(
    ("mode", "suffix"),
    [("RGB", "jpg"), ("L", "jpg"), ("CMYK", "jpg"), ("RGB", "png"), ("RGBA", "png"), ("L", "png"), ("RGB", "webp")],
)
def test_pixels_are_pils(mode, suffix, tmp_path):
    path = tmp_path / f"image.{suffix}"
    exif = Image.Exif()
    exif[0x0112] = 6  # "turn by 90 degrees", which PIL does only when asked
    noise(mode).save(path, exif=exif)
    with Image.open(path) as file:
        expected = torch.from_numpy(np.array(file.convert("RGB"))).permute(2, 0, 1)
    ours = images.decode(path)
    assert ours.shape == (3, 61, 83) and ours.dtype == torch.uint8
    assert (ours.int() - expected.int()).abs().max() <= 1  # another build of the same JPEG library may round otherwise


def test_a_jpeg_named_otherwise_is_read_by_its_content(tmp_path):
    noise("RGB").save(tmp_path / "image.jpg")
    (tmp_path / "image.jpg").rename(tmp_path / "image.png")
    assert images.decode(tmp_path / "image.png").shape == (3, 61, 83)


@pytest.mark.parametrize("damage", ["truncated", "empty", "text", "header only"])
def test_a_damaged_file_gives_pils_error(damage, tmp_path):
    path = tmp_path / "image.jpg"
    noise("RGB").save(path)
    content = path.read_bytes()
    path.write_bytes(
        {"truncated": content[: len(content) // 2], "empty": b"", "text": b"no image", "header only": content[:20]}[
            damage
        ]
    )
    with pytest.raises((OSError, SyntaxError, ValueError)) as pils, Image.open(path) as file:
        file.convert("RGB")
    with pytest.raises(type(pils.value)) as ours:
        images.decode(path)
    assert str(ours.value) == str(pils.value)
