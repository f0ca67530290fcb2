"""The test crop: PIL's pixels of the whole resized image, to the last bit; and how pixels are normalized."""

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import functional as F

from evaluate.data.resizing import resized_part
from evaluate.data.transforms import INTERPOLATIONS, CenterCrop, normalize

# photographs; tall ones, where PIL begins with the columns, and wide ones; smaller, square and larger ones
SIZES = [(500, 375), (375, 500), (333, 500), (640, 427), (313, 640), (640, 313), (90, 400), (400, 90), (60, 50)]
SIZES += [(33, 47), (224, 224), (256, 256), (256, 300), (300, 256), (1501, 1000), (1000, 1501), (257, 255)]


def noise(size: tuple[int, int]) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize(("crop", "resize"), [(224, 256), (224, 224), (48, 64), (96, 110), (518, 592)])
def test_the_test_crop_has_the_pixels_of_torchvisions_on_pil(crop: int, resize: int, interpolation: str) -> None:
    for size in SIZES:
        image = noise(size)
        expected = F.center_crop(F.resize(image, [resize], INTERPOLATIONS[interpolation]), [crop, crop])
        found = CenterCrop(crop, resize, interpolation)(image)
        assert found.size == (crop, crop) and found.tobytes() == expected.tobytes(), size


def test_any_part_of_any_size_has_the_pixels_of_the_whole() -> None:
    random = np.random.default_rng(1)
    for _ in range(300):
        before, after = (tuple(random.integers(1, 130, 2).tolist()) for _ in range(2))
        if random.random() < 0.5:
            after = (after[0], 64)
        if random.random() < 0.5:
            after = (64, after[1])
        corner = tuple(int(random.integers(0, side)) for side in after)
        part = tuple(int(random.integers(1, side - start + 1)) for side, start in zip(after, corner, strict=True))
        method = [Image.Resampling.BILINEAR, Image.Resampling.BICUBIC][int(random.integers(2))]
        image = noise(before)
        whole = image.resize(after, method).crop((*corner, corner[0] + part[0], corner[1] + part[1]))
        found = resized_part(image, after, corner, part, method)
        assert found.size == part and found.tobytes() == whole.tobytes(), (before, after, corner, part, method)


@pytest.mark.parametrize("colors_together", [True, False])
def test_pixels_are_normalized_by_color_and_keep_their_order_in_memory(colors_together: bool) -> None:
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 5, 7, 3), dtype=np.uint8))
    pixels = pixels.permute(0, 3, 1, 2) if colors_together else pixels.permute(0, 3, 1, 2).contiguous()
    mean, std = (0.4, 0.5, 0.6), (0.1, 0.2, 0.3)
    shift, scale = (torch.tensor(values).view(3, 1, 1) for values in (mean, std))
    found = normalize(pixels, mean, std, "cpu")
    assert torch.equal(found, (pixels.float() / 255 - shift) / scale) and found.stride() == pixels.stride()
