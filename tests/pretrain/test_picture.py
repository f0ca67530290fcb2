"""The dots of one colour sit on the same pixel of the source, in both views."""

from dataclasses import replace

import numpy as np
import torch
from PIL import Image

from pretrain import preview
from pretrain.data import views
from pretrain.methods.siameseim import PAPER

PLAIN = replace(
    PAPER, jitter_probability=0.0, gray_probability=0.0, blur_probability=(0.0, 0.0), solarize_probability=(0.0, 0.0)
)


def test_dots_of_one_colour_mark_one_place(tmp_path, monkeypatch):
    marks = []
    monkeypatch.setattr(
        preview.ImageDraw.ImageDraw,
        "ellipse",
        lambda pen, box, **_: marks.append(((box[0] + box[2]) / 2, (box[1] + box[3]) / 2)),
    )
    y, x = np.mgrid[0:240, 0:240]
    image = torch.from_numpy(np.stack([x, y, 0 * x], 0).astype(np.uint8))  # red is the column, green the row
    index = np.arange(preview.ROWS)
    batch = views.augment(views.crop([image] * len(index), index, 0, PLAIN), 0, PLAIN)
    preview.draw(batch, batch.mask, PLAIN, tmp_path / "batch.png")
    sheet = Image.open(tmp_path / "batch.png")
    assert sheet.size == (2 * preview.SIDE, preview.ROWS * preview.SIDE)
    assert len(marks) >= 10
    for number in range(preview.ROWS):  # each image alone, so that the marks are known to be its own
        marks.clear()
        one = only(batch, number)
        preview.draw(one, torch.zeros_like(one.mask), PLAIN, tmp_path / "one.png")
        pixels = np.array(Image.open(tmp_path / "one.png")).astype(int)
        for (x1, y1), (x2, y2) in zip(marks[::2], marks[1::2], strict=True):
            first, second = (pixels[min(int(b), 223), min(int(a), 447)] for a, b in ((x1, y1), (x2, y2)))
            assert abs(first - second)[:2].max() <= 6, (first, second)


def only(values, number):
    """The same dataclass of tensors with one image."""
    if values is None:
        return None
    parts = (getattr(values, name) for name in values.__dataclass_fields__)
    return type(values)(
        *(part[number : number + 1] if isinstance(part, torch.Tensor) else only(part, number) for part in parts)
    )
