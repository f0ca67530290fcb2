"""Every augmentation has torchvision's distribution, and the whole pipeline that of PIL's: two-sample tests with fixed
seeds."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import ks_2samp
from torch import Tensor
from torchvision.transforms import v2

from pretrain.benchmark import baseline
from pretrain.config import PretrainConfig
from pretrain.data import views
from pretrain.methods.siameseim import PAPER

COUNT, SIZE = 800, 40
OFF = {
    "jitter_probability": 0.0,
    "gray_probability": 0.0,
    "blur_probability": (0.0, 0.0),
    "solarize_probability": (0.0, 0.0),
}
PLAIN = replace(PAPER, img_size=SIZE, patch_size=8, num_masked=10, min_block=2, mean=(0.0,) * 3, std=(1.0,) * 3, **OFF)
ALIKE = (
    1e-3  # the smallest p-value that counts as the same distribution; the seeds are fixed, so a passing test stays so
)


def picture() -> Tensor:
    """(3, SIZE, SIZE) uint8, of colours that no channel order, brightness or hue leaves alike."""
    random = np.random.default_rng(0)
    coarse = Image.fromarray(random.integers(0, 256, (10, 10, 3), dtype=np.uint8)).resize(
        (SIZE, SIZE), Image.Resampling.BICUBIC
    )
    return torch.from_numpy(np.array(coarse) // (1, 2, 3)).to(torch.uint8).permute(2, 0, 1).contiguous()


def ours(config: PretrainConfig, view: int) -> Tensor:
    """COUNT augmentations of the whole picture, uncropped."""
    images = picture().expand(COUNT, -1, -1, -1)
    nothing = (
        torch.zeros(COUNT, 4),
        torch.zeros(COUNT, 4),
        *torch.zeros(2, COUNT, dtype=torch.bool),
        torch.full((COUNT,), SIZE),
    )
    mask = torch.zeros(COUNT, config.num_patches, dtype=torch.bool)
    batch = views.augment(views.Crops(images, images, *nothing, mask, torch.arange(COUNT)), 0, config)
    return (batch.view1, batch.view2)[view]


def statistics(images: Tensor) -> dict[str, np.ndarray]:
    """Numbers of each image's middle, where no border rule reaches, that tell its colours, contrast and sharpness."""
    middle = images[..., 10:-10, 10:-10]
    values = {f"mean of {name}": middle[:, i].mean((1, 2)) for i, name in enumerate(("red", "green", "blue"))}
    values["contrast"] = middle.mean(1).std((1, 2))
    values["colourfulness"] = middle.std(1).mean((1, 2))
    values["sharpness"] = middle.diff(dim=-1).abs().mean((1, 2, 3))
    return {name: value.numpy() for name, value in values.items()}


def assert_alike(first: dict[str, np.ndarray], second: dict[str, np.ndarray]) -> None:
    for name in first:
        # Values that differ by rounding alone are ties.
        assert ks_2samp(first[name].round(4), second[name].round(4), method="asymp").pvalue > ALIKE, name


AUGMENTATIONS: dict[str, tuple[dict[str, object], int, Callable[[], torch.nn.Module]]] = {
    "jitter": ({"jitter_probability": 0.8}, 0, lambda: v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.2, 0.1)], p=0.8)),
    "strong jitter": (
        {"jitter_probability": 1.0, "jitter": (0.9, 0.9, 0.9, 0.5)},
        1,
        lambda: v2.ColorJitter(0.9, 0.9, 0.9, 0.5),
    ),
    "gray": ({"gray_probability": 0.2}, 0, lambda: v2.RandomGrayscale(0.2)),
    "gray before the jitter": (
        {"gray_probability": 0.5, "gray_first": True, "jitter_probability": 1.0, "jitter": (0.2, 0.0, 0.0, 0.5)},
        0,
        lambda: v2.Compose([v2.RandomGrayscale(0.5), v2.ColorJitter(0.2, 0.0, 0.0, 0.5)]),
    ),
    "blur of view 1": ({"blur_probability": (1.0, 0.1)}, 0, lambda: v2.GaussianBlur(17, (0.1, 2.0))),
    "blur of view 2": (
        {"blur_probability": (1.0, 0.1)},
        1,
        lambda: v2.RandomApply([v2.GaussianBlur(17, (0.1, 2.0))], p=0.1),
    ),
    "solarisation": ({"solarize_probability": (0.0, 0.2)}, 1, lambda: v2.RandomSolarize(threshold=127.5 / 255, p=0.2)),
}


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_distribution_is_torchvisions(name):
    settings, view, theirs = AUGMENTATIONS[name]
    torch.manual_seed(1)
    transform, image = theirs(), picture().float() / 255
    expected = torch.stack([transform(image.clone()) for _ in range(COUNT)])
    assert_alike(statistics(ours(replace(PLAIN, **settings), view)), statistics(expected))


def test_another_strength_is_told_apart():
    """The tests above can fail."""
    weaker = replace(PLAIN, jitter_probability=0.8, jitter=(0.2, 0.4, 0.2, 0.1))
    with pytest.raises(AssertionError, match="mean of red"):
        assert_alike(statistics(ours(weaker, 0)), statistics(ours(replace(PLAIN, jitter_probability=0.8), 0)))


def test_what_is_switched_off_leaves_the_pixels():
    torch.testing.assert_close(ours(PLAIN, 0), picture().div(255).expand(COUNT, -1, -1, -1), rtol=2e-7, atol=0)


def test_a_batch_that_is_gray_throughout_is_blurred_and_solarized():
    """Of gray pictures the three colours are memory of their own: what follows writes into a part of the batch."""
    gray = replace(PLAIN, gray_probability=1.0, blur_probability=(0.5, 0.5), solarize_probability=(0.5, 0.5))
    pictures = ours(gray, 0)
    assert torch.equal(pictures[:, 0], pictures[:, 2]) and 1 < len(pictures.flatten(1).unique(dim=0)) <= COUNT


def test_crops_and_flips_have_torchvisions_distribution():
    """Of the pixels themselves, on an image whose values are its coordinates."""
    height, width = 75, 100
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    image = torch.stack([rows * 2, columns * 2, rows * 0]).to(torch.uint8)
    crops = views.crop([image] * COUNT, np.arange(COUNT), 0, PLAIN)
    transform = v2.Compose(
        [
            v2.RandomHorizontalFlip(0.5),
            v2.RandomResizedCrop(SIZE, (0.08, 1.0), interpolation=v2.InterpolationMode.BICUBIC, antialias=True),
        ]
    )
    torch.manual_seed(1)
    expected = torch.stack([transform(image) for _ in range(COUNT)])

    def places(view: Tensor) -> dict[str, np.ndarray]:
        middle = view.float().mean((2, 3))
        across, down = (
            view[:, 1, :, -1].float() - view[:, 1, :, 0].float(),
            view[:, 0, -1].float() - view[:, 0, 0].float(),
        )
        values = {"row": middle[:, 0], "column": middle[:, 1], "width and flip": across.mean(1), "height": down.mean(1)}
        return {name: value.numpy() for name, value in values.items()}

    for view in (crops.view1, crops.view2):
        assert_alike(places(view), places(expected))
    first, second = places(crops.view1), places(crops.view2)
    for name in first:  # the two views of an image are independent
        assert abs(np.corrcoef(first[name], second[name])[0, 1]) < 4 / COUNT**0.5, name


def test_both_views_have_the_distribution_of_the_per_image_pipeline(tmp_path):
    """All together, beside PIL from a file, with the paper's probabilities."""
    config = replace(PAPER, img_size=SIZE, patch_size=8, num_masked=10, min_block=2, blur_sigma=(0.1, 1.0))
    path = tmp_path / "image.png"
    Image.fromarray(picture().permute(1, 2, 0).numpy()).resize((100, 75), Image.Resampling.BICUBIC).save(path)
    with Image.open(path) as file:
        image = torch.from_numpy(np.array(file)).permute(2, 0, 1)
    batch = views.augment(views.crop([image] * COUNT, np.arange(COUNT), 0, config), 0, config)
    torch.manual_seed(1)
    baseline.random.seed(1)
    expected = baseline.PerImageViews(config).batch([path] * COUNT)
    for mine, theirs in ((batch.view1, expected.view1), (batch.view2, expected.view2)):
        assert_alike(statistics(mine), statistics(theirs))
    assert batch.mask.sum(1).eq(expected.mask.sum(1)).all()
    for cell in (0, 7, 12):  # corner, side and middle of the 5 x 5 cells are masked equally often
        assert abs(batch.mask[:, cell].float().mean() - expected.mask[:, cell].float().mean()) < 0.1
