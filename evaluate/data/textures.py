"""The textures that the toy world is painted with, and their colors."""

import colorsys

import numpy as np

TEXTURES = ("stripes", "bars", "diagonals", "checks", "dots", "rings", "blotches", "grid", "zigzag", "waves")
HUES = ("red", "yellow", "green", "cyan", "blue", "magenta")
SATURATION = 0.25  # of the colors: their hues differ more than their brightness


def texture(name: str, size: int, generator: np.random.Generator) -> np.ndarray:
    """A bare pattern of TEXTURES, (size, size) in 0..1, with random period, rotation of up to 9 degrees and phase."""
    period = generator.uniform(5.5, 8.5) * max(size / 32, 1) ** 0.5
    angle = np.deg2rad(generator.uniform(-9, 9))
    shift = generator.uniform(0, period, 2)
    rows, columns = np.mgrid[:size, :size] - size / 2
    y = (np.cos(angle) * rows - np.sin(angle) * columns + shift[0]) * 2 * np.pi / period
    x = (np.sin(angle) * rows + np.cos(angle) * columns + shift[1]) * 2 * np.pi / period
    sharp = 3.0  # how fast a pattern goes from dark to light
    match name:
        case "stripes":
            value = np.sin(y)
        case "bars":
            value = np.sin(x)
        case "diagonals":
            value = np.sin((x + generator.choice((-1, 1)) * y) / np.sqrt(2))
        case "checks":
            value = np.sin(x) * np.sin(y) * 2
        case "dots":
            value = np.cos(x) + np.cos(y) - 0.9
        case "rings":
            centre = generator.uniform(-0.25, 0.25, 2) * size
            value = np.sin(np.hypot(rows - centre[0], columns - centre[1]) * 2 * np.pi / period + shift[0])
        case "blotches":
            value = smooth_noise(size, period / 3.5, generator) * 1.5
        case "grid":
            value = np.maximum(np.cos(x), np.cos(y)) - 0.6
        case "zigzag":
            value = np.sin(y + 2.2 * np.abs((x / np.pi) % 2 - 1) * 1.5)
        case "waves":
            value = np.sin(x + 1.8 * np.sin(y / 1.3))
    return 1 / (1 + np.exp(-sharp * value))


def smooth_noise(size: int, sigma: float, generator: np.random.Generator) -> np.ndarray:
    """(size, size) Gaussian noise of unit variance, correlated over ``sigma`` pixels."""
    frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None])
    spectrum = np.fft.rfft2(generator.normal(size=(size, size))) * np.exp(-2 * (np.pi * sigma * frequency) ** 2)
    noise = np.fft.irfft2(spectrum, (size, size))
    return (noise - noise.mean()) / noise.std()


def colored(pattern: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """A pattern (height, width) in 0..1 between two random colors, (height, width, 3) in 0..255."""
    first, second = colors(generator)
    return first + (second - first) * pattern[..., None]


def colors(generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """The colors (3,) of a pattern's places of 0 and of 1, one dark and one light, each of a random hue."""
    middle = generator.uniform(110, 145)
    contrast = generator.uniform(40, 60) * generator.choice((-1, 1))
    first, second = (middle + sign * contrast + _tint(generator) for sign in (-1, 1))
    return first, second


def name_of(color: np.ndarray) -> str:
    """A color (3,) in 0..255 in words, as ``light red``."""
    hue, *_ = colorsys.rgb_to_hsv(*color)
    return f"{'light' if color.mean() > 127.5 else 'dark'} {HUES[round(6 * hue) % 6]}"


def _tint(generator: np.random.Generator) -> np.ndarray:
    """A random hue as (3,) differences from grey."""
    rgb = np.array(colorsys.hsv_to_rgb(generator.uniform(), 1, 1))
    return (rgb - rgb.mean()) * SATURATION * 255
