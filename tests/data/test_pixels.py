"""The one reader of pixels: deep grey is scaled or refused, ordinary files are PIL's, EXIF is obeyed if asked."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from evaluate.data import dense_sets
from evaluate.data.label_maps import Form
from evaluate.data.loader import read_image
from evaluate.data.pictures import picture_size
from evaluate.data.pixels import ORIENTATION, read_rgb
from evaluate.mm.transforms import LoadImage, LoadLabels, LoadPicture
from evaluate.runtime.errors import UserError
from pretrain.data.images import DataError, ImageFolder, decode

GREY = np.random.default_rng(0).integers(0, 256, (20, 30)).astype(np.uint8)
GREY[0, :2] = 0, 255


def written(path: Path, values: np.ndarray, big_endian: bool = False) -> Path:
    """A PNG, or a TIFF under any name."""
    image = Image.fromarray(values)
    if big_endian:
        image = Image.frombytes("I;16B", image.size, values.astype(">u2").tobytes())
    image.save(path, format="PNG" if path.suffix == ".png" and not big_endian else "TIFF")
    return path


def read_everywhere(path: Path) -> list[np.ndarray]:
    """The image (H, W, 3) RGB as each reader gives it."""
    sample = {"img_path": str(path), "annotations": "a.json", "height": GREY.shape[0], "width": GREY.shape[1]}
    return [
        np.asarray(read_image(path)),
        decode(path).permute(1, 2, 0).numpy(),
        LoadImage()(sample)["img"],
        LoadPicture()(sample)["img"][..., ::-1],
    ]


@pytest.mark.parametrize(
    ("values", "name", "big_endian"),
    [
        (GREY.astype(np.uint16) * 257, "grey.png", False),
        (GREY.astype(np.uint16) * 257 + (GREY > 0) * np.uint16(90) - (GREY > 0) * np.uint16(180), "grey.png", False),
        (GREY.astype(np.uint16) * 257, "grey.tiff", False),
        (GREY.astype(np.uint16) * 257, "grey.jpg", True),
        (GREY.astype(np.int32) * 257, "grey.tiff", False),
        (GREY.astype(np.int32), "grey.tiff", False),
        (GREY.astype(np.float32) / 255, "grey.tiff", False),
        (GREY.astype(np.float32), "grey.tiff", False),
        (GREY.astype(np.float32) * 257, "grey.tiff", False),
    ],
)
def test_deep_grey_is_scaled_alike_everywhere(values: np.ndarray, name: str, big_endian: bool, tmp_path: Path) -> None:
    for pixels in read_everywhere(written(tmp_path / name, values, big_endian)):
        assert np.array_equal(pixels, np.repeat(GREY[..., None], 3, axis=2))


def test_a_dark_picture_of_16_bits_stays_dark(tmp_path: Path) -> None:
    path = written(tmp_path / "dark.png", np.full((20, 30), 250, np.uint16))
    assert all((pixels == 1).all() for pixels in read_everywhere(path))


@pytest.mark.parametrize("value", [-1.0, 70000.0, float("nan"), float("inf")])
def test_values_that_say_nothing_are_refused_by_name(value: float, tmp_path: Path) -> None:
    (tmp_path / "n1").mkdir()
    values = GREY.astype(np.float32)
    values[3, 4] = value
    path = tmp_path / "n1/strange.png"
    Image.fromarray(values).save(path, format="TIFF")
    with pytest.raises(UserError, match=r"strange\.png.*its values run from"):
        read_image(path)
    with pytest.raises(DataError, match=r"strange\.png.*its values run from"):
        ImageFolder(tmp_path)
    sample = {"img_path": str(path), "annotations": "a.json", "height": 20, "width": 30}
    for step in (LoadImage(), LoadPicture()):
        with pytest.raises(UserError, match=r"strange\.png.*its values run from"):
            step(sample)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr"])
def test_ordinary_pictures_are_pils(mode: str, tmp_path: Path) -> None:
    colours = np.random.default_rng(1).integers(0, 256, (20, 30, 4)).astype(np.uint8)
    image = Image.fromarray(colours, "RGBA").convert("RGB").convert(mode)
    path = tmp_path / "image.tiff"
    if mode == "PA":
        path = tmp_path / "image.png"
        image = image.convert("P")
        image.info["transparency"] = 3
    image.save(path)
    with Image.open(path) as file:
        assert np.array_equal(np.asarray(read_rgb(path)), np.asarray(file.convert("RGB")))


@pytest.mark.parametrize("orientation", [3, 6])
def test_picture_and_label_map_are_read_as_stored_and_detection_obeys_exif(orientation: int, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    colours = np.random.default_rng(2).integers(0, 256, (20, 30, 3)).astype(np.uint8)
    labels = (GREY % 4).astype(np.uint8)
    Image.fromarray(colours).save(tmp_path / "picture.png", exif=exif)
    Image.fromarray(labels).save(tmp_path / "labels.png", exif=exif)
    sample = {"img_path": str(tmp_path / "picture.png"), "seg_map_path": str(tmp_path / "labels.png")}
    loaded = LoadLabels()(LoadPicture()({**sample, "form": Form(3), "seg_fields": []}))
    assert np.array_equal(loaded["img"][..., ::-1], colours)
    assert np.array_equal(loaded["gt_seg_map"], labels - np.uint8(1))
    assert np.array_equal(np.asarray(read_image(tmp_path / "picture.png")), colours)
    assert torch.equal(decode(tmp_path / "picture.png"), torch.from_numpy(colours).permute(2, 0, 1))
    upright = np.rot90(colours, 2 if orientation == 3 else -1)
    size = {"height": upright.shape[0], "width": upright.shape[1], "annotations": "a.json"}
    assert np.array_equal(LoadImage()({**sample, **size})["img"], upright)
    with pytest.raises(UserError, match="pixels, but"):
        LoadImage()({**sample, **size, "width": 31})
    Image.fromarray(labels.T).save(tmp_path / "labels.png")  # of the turned picture
    with pytest.raises(UserError, match=r"labels\.png is \(20, 30\) pixels, but its image is \(30, 20\)"):
        LoadLabels()(LoadPicture()({**sample, "form": Form(3), "seg_fields": []}))


def test_the_gates_hold_label_maps_against_the_stored_picture_and_annotations_against_the_upright_one(
    tmp_path: Path,
) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    for split in dense_sets.SPLITS:
        for kind in ("images", "annotations"):
            (tmp_path / kind / split).mkdir(parents=True)
        Image.fromarray(GREY).save(tmp_path / f"images/{split}/a.jpg", exif=exif)
        Image.fromarray(GREY % 4).save(tmp_path / f"annotations/{split}/a.png")
    assert dense_sets.of("ade20k", tmp_path).check().keys() == set(dense_sets.SPLITS)
    picture = tmp_path / "images/validation/a.jpg"
    assert [picture_size(picture, upright) for upright in (False, True)] == [(30, 20), (20, 30)]
    Image.fromarray(np.rot90(GREY % 4)).save(tmp_path / "annotations/validation/a.png")
    with pytest.raises(UserError, match=r"a\.png is \(20, 30\) pixels, but its image is \(30, 20\)"):
        dense_sets.of("ade20k", tmp_path).check()


def test_orientation_that_cannot_be_read_turns_nothing(tmp_path: Path) -> None:
    Image.fromarray(GREY).save(tmp_path / "image.png", exif=b"Exif\0\0no exif at all")
    assert np.array_equal(np.asarray(read_rgb(tmp_path / "image.png", upright=True))[..., 0], GREY)
