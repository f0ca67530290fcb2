"""The mean corruption error of ImageNet-C."""

from collections.abc import Mapping

from evaluate.data.layouts import CORRUPTIONS

SEVERITIES = (1, 2, 3, 4, 5)

# AlexNet's top-1 errors, mean over the five severities (Hendrycks and Dietterich; each paired by name, never by position)
ALEXNET_ERROR = {
    "gaussian_noise": 0.886428, "shot_noise": 0.894468, "impulse_noise": 0.922640, "defocus_blur": 0.819880, "glass_blur": 0.826268,
    "motion_blur": 0.785948, "zoom_blur": 0.798360, "snow": 0.866816, "frost": 0.826572, "fog": 0.819324, "brightness": 0.564592,
    "contrast": 0.853204, "elastic_transform": 0.646056, "pixelate": 0.717840, "jpeg_compression": 0.606500,
}  # fmt: skip


def mean_corruption_error(errors: Mapping[str, float]) -> float:
    """mCE in percent: 100 * mean over the 15 corruptions of error / AlexNet's error; errors are fractions, means over severities.

    The table's IN-C column is 100 minus this. Raises ValueError unless the corruptions are exactly the 15.
    """
    if set(errors) != set(CORRUPTIONS):
        raise ValueError(f"mCE needs exactly the 15 corruptions, but these differ: {sorted(set(errors) ^ set(CORRUPTIONS))}")
    return 100 * sum(errors[name] / ALEXNET_ERROR[name] for name in CORRUPTIONS) / len(CORRUPTIONS)
