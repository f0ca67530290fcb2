"""Pictures of what the ImageNet tasks make of some images; the first process draws them.

Neighbors and colors of patches are of images that are evenly spaced in val, so they are the same for every encoder;
mistakes are each encoder's own, chosen by one rule.
"""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from evaluate.classification.features import Features
from evaluate.data import drawing
from evaluate.data.imagenet import ImageSet, spoken
from evaluate.data.loader import read_image
from evaluate.data.thumbnails import Thumbnail, spaced, write
from evaluate.data.transforms import CenterCrop, normalize
from evaluate.encoder import Encoder
from evaluate.encoder.model import Maps, Tokens
from results.predictions import Answers

SIDE_OF_IMAGE = 160  # pixels
MISTAKES = 12
QUERIES = 6
NEIGHBORS = 4
CUT = 0.01  # share of the patches that are beyond the range of a color, on either side


def mistakes(folder: Path, images: ImageSet, answers: Answers, crop: CenterCrop) -> None:
    """Draws the images of which a classifier is surest among those on which it is wrong, the surest first.

    Each pair of what is said and what is right comes once.
    """
    names, rows = spoken(images.classes), np.delete(np.arange(len(images)), answers.left_out)
    wrong = np.flatnonzero(~answers.correct())
    surest = wrong[np.argsort(-answers.probabilities[wrong, 0], kind="stable")]
    pairs = {(answers.top[one, 0], answers.labels[one]): one for one in surest[::-1]}  # the surest of a pair stays
    pictures = []
    for one in [one for one in surest if pairs[answers.top[one, 0], answers.labels[one]] == one][:MISTAKES]:
        said, sure = names[answers.top[one, 0]], 100 * float(answers.probabilities[one, 0])
        caption = f"said {said} ({sure:.0f} %), is {names[answers.labels[one]]}"
        shown = _cut(images, rows[one], crop)
        pictures.append(Thumbnail(shown, subject(images, rows[one]), "result", caption))
    write(folder, "mistakes", pictures)


def neighbors(
    folder: Path,
    train: Features,
    val: Features,
    vectors: tuple[torch.Tensor, torch.Tensor],
    said: np.ndarray,
    crop: CenterCrop,
) -> None:
    """Draws some val images, and below each the train images nearest to it.

    Args:
        vectors: unit features of train's (n, D) and val's (m, D) images.
        said: (m,) the class that the neighbors give each val image.
    """
    near, far = vectors
    names, pictures = spoken(val.images.classes), []
    for one in spaced(len(far), QUERIES):
        row, label = val.stored.rows[one], val.labels[one]
        found = (near @ far[one]).topk(min(NEIGHBORS, len(near))).indices.cpu().numpy()
        tiles = [crop(read_image(train.images.files[train.stored.rows[index]])) for index in found]
        image = Thumbnail(_cut(val.images, row, crop), subject(val.images, row), "image", names[label])
        verdict = "right" if said[one] == label else "wrong"
        told = ", ".join(names[other] for other in train.labels[found])
        sheet = drawing.framed(tiles, (train.labels[found] == label).tolist())
        caption = f"said {names[said[one]]}, {verdict}; nearest: {told}"
        pictures += [image, Thumbnail(sheet, image.subject, "result", caption)]
    write(folder, "neighbors", pictures)


def patches(folder: Path, encoder: Encoder, val: Features, crop: CenterCrop, device: str) -> None:
    """Draws some val images, and their patches in colors: three principal components over the patches of all."""
    rows = [val.stored.rows[one] for one in spaced(len(val.labels), QUERIES)]
    crops = [crop(read_image(val.images.files[row])) for row in rows]
    pixels = torch.stack([torch.from_numpy(np.array(image)).permute(2, 0, 1) for image in crops])
    with torch.inference_mode():
        found = encoder.forward_tokens(normalize(pixels, encoder.spec.mean, encoder.spec.std, device))
    names, pictures = spoken(val.images.classes), []
    for row, colors in zip(rows, principal_colors(grid(found)), strict=True):
        shown = subject(val.images, row)
        pictures += [
            Thumbnail(_cut(val.images, row, crop), shown, "image", names[val.images.labels[row]]),
            Thumbnail(drawing.cells(colors), shown, "result", "", flat=True),
        ]
    write(folder, "patches", pictures)


def grid(found: Tokens | Maps) -> np.ndarray:
    """(B, h, w, D) float64 of square images: a ViT's patch tokens after a LayerNorm without parameters, or a map."""
    if isinstance(found, Maps):
        return found.map.permute(0, 2, 3, 1).double().cpu().numpy()
    tokens = torch.nn.functional.layer_norm(found.patches.double(), found.patches.shape[-1:])
    side = round(tokens.shape[1] ** 0.5)
    return tokens.reshape(len(tokens), side, side, -1).cpu().numpy()


def principal_colors(features: np.ndarray) -> np.ndarray:
    """(B, h, w, 3) uint8 from (B, h, w, D): red, green and blue are the first three principal components.

    A component's sign means nothing; here its longer tail is bright.
    """
    flat = features.reshape(-1, features.shape[-1])
    centered = flat - flat.mean(axis=0)
    _, _, directions = np.linalg.svd(centered, full_matrices=False)
    values = centered @ directions[:3].T
    values *= np.where((values**3).sum(axis=0) < 0, -1, 1)
    low, high = np.quantile(values, [CUT, 1 - CUT], axis=0)
    shown = np.clip((values - low) / np.maximum(high - low, 1e-12), 0, 1)
    colors = np.zeros((len(flat), 3), np.uint8)
    colors[:, : shown.shape[1]] = np.rint(255 * shown)
    return colors.reshape(*features.shape[:3], 3)


def subject(images: ImageSet, row: int) -> str:
    """A name of an image that no other one of its set has."""
    return f"{images.classes[images.labels[row]]}/{images.files[row].name}"


def _cut(images: ImageSet, row: int, crop: CenterCrop) -> Image.Image:
    """What a task sees of an image."""
    return drawing.square(crop(read_image(images.files[row])), SIDE_OF_IMAGE)
