"""Looks at the encoder now and then while it trains, so that a collapse is seen after minutes instead of days.

On center crops of a fixed sample of the training images: the accuracy of a leave-one-out vote of the nearest neighbours
(where the images lie in class folders), and the rank and the spread of the features. It draws no random number and
moves no statistic of the model, so a run is the same with it and without it.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from evaluate.data.transforms import normalize
from pretrain.config import PretrainConfig
from pretrain.data.images import DataError, Images
from pretrain.methods import Method

IMAGES = 2000
BATCH = 64
NEIGHBORS = 20
TEMPERATURE = 0.07  # NEIGHBORS and TEMPERATURE are DINO's, as in evaluate.knn
COLLAPSED_SPREAD = 0.02


class Monitor:
    """Holds center crops (M, 3, S, S) uint8 of up to IMAGES images, and their classes."""

    def __init__(self, images: Images, config: PretrainConfig):
        crops, classes = [], []
        for index in np.random.default_rng(config.seed).permutation(len(images))[:IMAGES].tolist():
            try:
                crops.append(center_crop(images.read(index), config.img_size))
            except DataError:
                continue  # the loop names it
            classes.append(images.classes[index])
        self.crops, self.labels = torch.stack(crops), torch.from_numpy(np.unique(classes, return_inverse=True)[1])
        self.statistics = config.mean, config.std

    def measure(self, model: Method, device: str, dtype: torch.dtype | None = None) -> dict[str, float]:
        """``knn_top1`` in percent (absent with a single class folder), ``feature_rank`` and ``feature_spread`` of the
        method's features."""
        training = model.training
        model.eval()
        parts = []
        with torch.inference_mode(), torch.autocast(torch.device(device).type, dtype=dtype, enabled=dtype is not None):
            for crops in self.crops.split(BATCH):
                parts.append(model.features(normalize(crops, *self.statistics, device)))
        model.train(training)
        features = torch.cat(parts)
        found = {"feature_rank": effective_rank(features), "feature_spread": spread(features)}
        if int(self.labels.max()) > 0:
            found["knn_top1"] = leave_one_out(features, self.labels.to(device))
        return found


def describe(found: dict[str, float]) -> str:
    """One line for the person who watches."""
    text = ", ".join(f"{name} {value:.2f}" for name, value in found.items())
    return f"{text}: the features have COLLAPSED, every image gives nearly the same" if is_collapsed(found) else text


def is_collapsed(found: dict[str, float]) -> bool:
    """Whether the features of all images are nearly one."""
    return found["feature_spread"] < COLLAPSED_SPREAD


def center_crop(image: Tensor, size: int) -> Tensor:
    """The largest centered square of an image (3, H, W) uint8, resized to (3, size, size)."""
    side = min(image.shape[1:])
    top, left = ((length - side) // 2 for length in image.shape[1:])
    return F.interpolate(
        image[None, :, top : top + side, left : left + side], (size, size), mode="bicubic", antialias=True
    )[0]


def effective_rank(features: Tensor) -> float:
    """exp of the entropy of the singular values of centered features (M, D), from 1 to D (RankMe, arXiv 2210.02885,
    centered here)."""
    values = torch.linalg.svdvals(features - features.mean(0))
    shares = values / values.sum().clamp(min=1e-12)
    return torch.special.entr(shares).sum().exp().item()


def spread(features: Tensor) -> float:
    """Mean standard deviation of the channels of unit features (M, D), times sqrt(D): 0 is a collapse, 1 an even spread
    (SimSiam, 4.1)."""
    return (F.normalize(features, dim=1).std(0).mean() * features.shape[1] ** 0.5).item()


def leave_one_out(features: Tensor, labels: Tensor) -> float:
    """Percent of features (M, D) whose NEIGHBORS nearest others vote for their own label (M,), each with weight
    exp(cosine / TEMPERATURE)."""
    features = F.normalize(features, dim=1)
    similarity = (features @ features.T).fill_diagonal_(-torch.inf)
    nearest = similarity.topk(min(NEIGHBORS, len(features) - 1), dim=1)
    votes = torch.zeros(len(features), int(labels.max()) + 1, device=features.device)
    votes.scatter_add_(1, labels[nearest.indices], (nearest.values / TEMPERATURE).exp())
    return (votes.argmax(1) == labels).float().mean().item() * 100
