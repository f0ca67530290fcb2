"""JPEGs with a photograph's statistics, for measurements of time where there are no photographs."""

from pathlib import Path

import numpy as np
from PIL import Image

IMAGE_SIZE, IMAGE_BYTES = (500, 375), 50_000  # ImageNet's middle


def make_images(folder: Path, count: int) -> list[Path]:
    """JPEGs of 1/f noise, saved at the quality that gives about 50 kB."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{number:04d}.jpg" for number in range(count)]
    width, height = IMAGE_SIZE
    for number, path in enumerate(paths):
        random = np.random.default_rng(number)
        frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None]) + 1 / width
        noise = np.fft.rfft2(random.standard_normal((3, height, width))) / frequency
        noise = np.fft.irfft2(noise, (height, width))
        noise = 0.8 * noise[:1] + 0.2 * noise  # most of a photograph's variation is brightness
        noise = 128 + 55 * noise / noise.std()
        image = Image.fromarray(noise.clip(0, 255).astype(np.uint8).transpose(1, 2, 0))
        quality = next((q for q in range(95, 5, -5) if _size(image, path, q) <= IMAGE_BYTES), 5)
        _size(image, path, quality)
    return paths


def _size(image: Image.Image, path: Path, quality: int) -> int:
    image.save(path, quality=quality)
    return path.stat().st_size
