"""The pictures for the report: what is drawn lies where it should, and what is left is small and listed."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from evaluate.data import drawing, thumbnails
from evaluate.data.drawing import Shape
from evaluate.data.thumbnails import Thumbnail, spaced
from results import artifacts

GREY = (100, 100, 100)


def test_boxes_and_masks_lie_where_they_are_said_to_be() -> None:
    mask = np.zeros((300, 480), bool)
    mask[100:200, 200:400] = True  # y, x
    shape = Shape("a", 3, (200, 100, 400, 200), mask, 0.5)
    small = np.asarray(drawing.instances(Image.new("RGB", (480, 300), GREY), [shape])).astype(int)
    assert small.shape == (150, 240, 3)
    color = np.array(drawing.color(3))
    changed = np.argwhere((small != GREY).any(axis=2))
    named = changed[:, 0] < 50  # the name stands above the box
    ends = [*changed[~named].min(axis=0), *changed[~named].max(axis=0)]
    assert np.abs(np.subtract(ends, [50, 100, 99, 199])).max() <= 1  # a mask's edge is smoothed
    assert (small[50, 150] == color).all() and (small[75, 100] == color).all() and (small[75, 199] == color).all()
    blended = 0.55 * np.array(GREY) + 0.45 * color
    assert np.abs(small[75, 150] - blended).max() <= 2
    assert named.any() and changed[named].min() >= 50 - drawing.TEXT - 5


@pytest.mark.parametrize("box", [(0, 0, 4, 4), (90, 90, 99, 99), (95, 0, 99, 3)])
def test_names_stay_inside_the_picture(box: tuple[float, float, float, float]) -> None:
    plain, small = Image.new("RGB", (99, 99), GREY), Shape("", 1, box)
    named = drawing.instances(plain, [Shape("a long name of a class", 1, box)])
    area = [int((np.asarray(image) != GREY).any(axis=2).sum()) for image in (named, drawing.instances(plain, [small]))]
    assert named.size == (240, 240) and area[0] - area[1] > 100 * drawing.TEXT  # no part of it is cut off


@pytest.mark.parametrize("size", [(40, 30), (400, 30), (1, 700), (240, 240)])
def test_label_maps_have_the_colors_of_their_classes(size: tuple[int, int]) -> None:
    labels = np.random.default_rng(0).integers(0, 5, size[::-1]).astype(np.uint8)
    labels[0, 0] = 255
    shown = drawing.label_map(labels)
    assert max(shown.size) == thumbnails.SIDE
    pixels = np.asarray(shown.convert("RGB"))
    ys, xs = np.indices(pixels.shape[:2])
    below = (ys + 0.5) * size[1] / pixels.shape[0], (xs + 0.5) * size[0] / pixels.shape[1]
    expected = labels[below[0].astype(int), below[1].astype(int)]
    table = np.array([drawing.color(number) for number in range(255)] + [drawing.UNLABELED])
    assert (pixels == table[expected]).all()


def test_colors_of_150_classes_differ() -> None:
    assert len({drawing.color(number) for number in range(150)} - {drawing.UNLABELED}) == 150


def test_borders_say_what_is_right() -> None:
    sheet = np.asarray(drawing.framed([Image.new("RGB", (9, 7), GREY)] * 4, [True, False, False, True]))
    assert sheet.shape == (240, 240, 3)
    corners = [tuple(sheet[y, x].tolist()) for y in (1, 238) for x in (1, 238)]
    assert corners == [drawing.RIGHT, drawing.WRONG, drawing.WRONG, drawing.RIGHT]
    assert tuple(sheet[60, 60].tolist()) == GREY


def test_chosen_indices_are_even_and_the_same() -> None:
    assert spaced(100, 4) == [12, 37, 62, 87] and spaced(3, 8) == [0, 1, 2] and spaced(0, 8) == []
    assert len(set(spaced(9, 8))) == 8


def test_what_is_written_is_listed(tmp_path: Path) -> None:
    flat = Thumbnail(Image.new("RGB", (8, 8), (1, 2, 3)), "b", "result", "", flat=True)
    photograph = Thumbnail(Image.new("RGB", (8, 8), GREY), "b", "image", "of <b>")
    thumbnails.write(tmp_path, "kind", [photograph, flat], {"sky": (0, 128, 255)})
    thumbnails.write(tmp_path, "kind", [flat], {"sky": (0, 128, 255)})  # in the place of the two
    thumbnails.write(tmp_path, "other", [photograph])
    folder = tmp_path / artifacts.PICTURES
    assert sorted(path.name for path in folder.iterdir()) == ["kind-00.png", "kind.json", "other-00.jpg", "other.json"]
    assert json.loads((folder / "kind.json").read_text()) == {
        "pictures": [{"file": "kind-00.png", "subject": "b", "part": "result", "caption": ""}],
        "legend": [["sky", "#0080ff"]],
    }
    with Image.open(folder / "kind-00.png") as image:
        assert image.convert("RGB").getpixel((4, 4)) == (1, 2, 3)
    for many in ([flat] * 25, [Thumbnail(Image.new("RGB", (241, 8)), "b", "image", "")]):
        with pytest.raises(ValueError, match="at most 24 pictures of at most 240 px"):
            thumbnails.write(tmp_path, "kind", many)


def test_a_failure_to_draw_is_told_and_ends_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with thumbnails.attempt("cats"):
        raise ZeroDivisionError("by zero")
    told = capsys.readouterr().err
    assert "Traceback" in told and "warning: no pictures of cats (ZeroDivisionError: by zero)" in told
