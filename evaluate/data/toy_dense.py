"""The dense part of the toy world: COCO 2017, LVIS v1 on the same images, and ADE20k, all as their publishers lay them
out.

Six kinds of things, told apart by their texture, lie on a ground of two colors. Form and colors say nothing of the
kind, as in the classification images. LVIS knows all six: two are frequent (more than 100
training images), two common (11 to 100), two rare (at most 10). COCO labels the first four, under category ids with
gaps as in the real file. ADE20k labels the six kinds, and the ground as stuff; 0 is "other", which is never scored.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from evaluate.data import coco
from evaluate.data.textures import colored, texture

VERSION = 2  # raise it when a change of this file changes a file it writes

CORNERS = (24, 4, 3)  # a round, a square, a triangle
KINDS = ("stripes", "checks", "bars", "blotches", "diagonals", "grid")  # textures
COCO_IDS = (1, 3, 8, 15)  # of the kinds 0 to 3
FREQUENCIES = "ffccrr"  # of the kinds in LVIS
GROUND = len(KINDS) + 1  # its label in ADE20k, after those of the kinds
SIZE = 96  # pixels of the longer side
TRAIN_IMAGES, VAL_IMAGES = 200, 40
NOISE = 20.0  # standard deviation, of 255
SHARES = (0.75, 0.75, 0.35, 0.35)  # of the training images that hold the kinds 0 to 3
RARE_EVERY = 24  # one training image in so many holds a rare kind
FIRST_ID = {"train": 1000, "val": 90000}


@dataclass(frozen=True)
class Thing:
    """One object: its kind (0 to 5), its polygon (n, 2) as x, y in pixels, and its mask (height, width) of what is
    visible.
    """

    kind: int
    polygon: np.ndarray
    mask: np.ndarray


def short_hash(text: str) -> str:
    """Ten hexadecimal digits of a text."""
    return hashlib.sha256(text.encode()).hexdigest()[:10]


def make(root: Path, seed: int, train_images: int = TRAIN_IMAGES, val_images: int = VAL_IMAGES) -> None:
    """Writes ``coco/``, ``lvis/`` and ``ade20k/`` below ``root``; the same seed and counts give the same files."""
    coco_url = "http://images.cocodataset.org/{}2017/{:012d}.jpg"
    annotations = zip(coco.ANNOTATIONS["coco"], coco.ANNOTATIONS["lvis"], strict=True)
    splits = (("train", train_images), ("val", val_images))
    for number, ((split, count), (of_coco, of_lvis)) in enumerate(zip(splits, annotations, strict=True)):
        images, things = [], []
        folder = root / f"coco/{split}2017"
        folder.mkdir(parents=True, exist_ok=True)
        for index in range(count):
            generator = np.random.default_rng([seed, 10 + number, index])
            picture, _, found = scene(_kinds(split, index, generator), generator)
            image_id = FIRST_ID[split] + index
            Image.fromarray(picture).save(folder / f"{image_id:012d}.jpg", quality=95)
            url = coco_url.format(split, image_id)
            images.append({"id": image_id, "width": picture.shape[1], "height": picture.shape[0], "coco_url": url})
            things.append(found)
        _write(root / of_coco, _coco(images, things))
        _write(root / of_lvis, _lvis(images, things))
    _make_ade20k(root / "ade20k", seed, {"training": train_images, "validation": val_images})


def _kinds(split: str, index: int, generator: np.random.Generator) -> list[int]:
    """The kinds that one image holds; the rare ones by the image's number, so that their counts are certain."""
    kinds = [kind for kind, share in enumerate(SHARES) if generator.random() < (share if split == "train" else 0.5)]
    every = RARE_EVERY if split == "train" else 4
    if index % every == 0:
        kinds.append(4)
    if index % every == every // 2:
        kinds.append(5)
    repeated = [kind for kind in kinds if kind < 2 and generator.random() < 0.3]
    return kinds + repeated


def scene(kinds: list[int], generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray, list[Thing]]:
    """A picture with one object of each kind given.

    Returns the picture (height, width, 3) uint8, its labels (height, width) uint8 in the numbers of ADE20k, and the
    things visible.
    """
    height, width = (SIZE, int(generator.integers(SIZE * 3 // 4, SIZE + 1)))[:: generator.choice((-1, 1))]
    horizon = int(height * generator.uniform(0.3, 0.7))
    labels = np.full((height, width), GROUND, np.uint8)
    upper, lower = generator.uniform(60, 190, (2, 3))
    picture = np.where((np.arange(height) < horizon)[:, None, None], upper, lower) + np.zeros((1, width, 1))
    drawn: list[tuple[int, np.ndarray, np.ndarray]] = []
    for kind in generator.permutation(kinds).tolist():
        polygon, mask = _shape(height, width, [other for _, _, other in drawn], generator)
        picture[mask] = colored(texture(KINDS[kind], SIZE, generator), generator)[:height, :width][mask]
        labels[mask] = kind + 1
        drawn.append((kind, polygon, mask))
    labels[:2] = 0  # a border of "other", as real ADE20k pictures have unlabelled pixels
    picture = picture + generator.normal(0, NOISE, picture.shape)
    visible = []
    for position, (kind, polygon, mask) in enumerate(drawn):
        hidden = (
            np.any([other for _, _, other in drawn[position + 1 :]], axis=0)
            if drawn[position + 1 :]
            else np.zeros_like(mask)
        )
        if (mask & ~hidden).sum() >= 0.5 * mask.sum():
            visible.append(Thing(kind, polygon, mask))
    return picture.clip(0, 255).astype(np.uint8), labels, visible


def _shape(
    height: int, width: int, others: list[np.ndarray], generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """A random form as a polygon and its mask, at the place of five tries where it covers least of what is there."""
    best: tuple[float, np.ndarray, np.ndarray] | None = None
    corners = int(generator.choice(CORNERS))
    for _ in range(5):
        radius = generator.uniform(13, 22)
        centre = generator.uniform(radius, np.array([width, height]) - radius)
        angles = generator.uniform(0, 0.6) + np.linspace(0, 2 * np.pi, corners, endpoint=False)
        polygon = (centre + radius * np.stack([np.cos(angles), np.sin(angles)], 1)).round(2)
        canvas = Image.new("1", (width, height))
        ImageDraw.Draw(canvas).polygon([tuple(point) for point in polygon.tolist()], fill=1)
        mask = np.array(canvas)
        covered = max((float((mask & other).sum()) for other in others), default=0.0)
        if best is None or covered < best[0]:
            best = covered, polygon, mask
    assert best is not None
    return best[1], best[2]


def _coco(images: list[dict], things: list[list[Thing]]) -> dict:
    """COCO's instances json. Every 20th image also has a crowd region in uncompressed RLE, as the real set has."""
    annotations: list[dict] = []
    for number, (image, found) in enumerate(zip(images, things, strict=True)):
        for thing in found:
            if thing.kind < len(COCO_IDS):
                annotations.append(
                    _annotation(len(annotations) + 1, image["id"], COCO_IDS[thing.kind], thing) | {"iscrowd": 0}
                )
        if number % 20 == 7:
            region = np.zeros((image["height"], image["width"]), bool)
            region[4:14, 4:24] = True
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image["id"],
                    "category_id": COCO_IDS[0],
                    "iscrowd": 1,
                    "bbox": [4.0, 4.0, 20.0, 10.0],
                    "area": 200.0,
                    "segmentation": {"size": [image["height"], image["width"]], "counts": run_lengths(region)},
                }
            )
    return {
        "info": {"description": "toy world"},
        "licenses": [],
        "images": [{**image, "file_name": image["coco_url"].rsplit("/", 1)[1]} for image in images],
        "annotations": annotations,
        "categories": [
            {"id": i, "name": name, "supercategory": "toy"} for i, name in zip(COCO_IDS, KINDS, strict=False)
        ],
    }


def _lvis(images: list[dict], things: list[list[Thing]]) -> dict:
    """LVIS v1's json: no file_name and no iscrowd; each image says which categories are surely absent and which are not
    fully labelled.
    """
    annotations: list[dict] = []
    entries = []
    for number, (image, found) in enumerate(zip(images, things, strict=True)):
        present = {thing.kind + 1 for thing in found}
        absent = [i for i in range(1, len(KINDS) + 1) if i not in present]
        not_exhaustive = sorted(present)[:1] if number % 10 == 3 else []
        entries.append({**image, "neg_category_ids": absent, "not_exhaustive_category_ids": not_exhaustive})
        annotations += [
            _annotation(len(annotations) + 1 + k, image["id"], thing.kind + 1, thing) for k, thing in enumerate(found)
        ]
    categories = []
    for category, (name, frequency) in enumerate(zip(KINDS, FREQUENCIES, strict=True), 1):
        owned = [a for a in annotations if a["category_id"] == category]
        categories.append(
            {
                "id": category,
                "name": name,
                "synset": f"{name}.n.01",
                "def": name,
                "synonyms": [name],
                "frequency": frequency,
                "image_count": len({a["image_id"] for a in owned}),
                "instance_count": len(owned),
            }
        )
    return {
        "info": {"description": "toy world"},
        "licenses": [],
        "images": entries,
        "annotations": annotations,
        "categories": categories,
    }


def _annotation(number: int, image_id: int, category: int, thing: Thing) -> dict:
    low, high = thing.polygon.min(0), thing.polygon.max(0)
    return {
        "id": number,
        "image_id": image_id,
        "category_id": category,
        "area": float(thing.mask.sum()),
        "bbox": [round(float(v), 2) for v in (*low, *(high - low))],
        "segmentation": [thing.polygon.ravel().tolist()],
    }


def run_lengths(mask: np.ndarray) -> list[int]:
    """Uncompressed COCO run lengths of a binary mask (height, width): column-major, beginning with the zeros."""
    flat = np.concatenate([[0], mask.ravel(order="F").astype(np.int8), [-1]])
    changes = np.flatnonzero(np.diff(flat))
    return np.diff(np.concatenate([[0], changes])).tolist()


def _make_ade20k(root: Path, seed: int, splits: dict[str, int]) -> None:
    root.mkdir(parents=True, exist_ok=True)
    rows = [f"{number}\t0.1\t1\t1\t{name}" for number, name in enumerate((*KINDS, "ground"), 1)]
    (root / "objectInfo150.txt").write_text("\n".join(["Idx\tRatio\tTrain\tVal\tName", *rows]) + "\n")
    for number, (split, count) in enumerate(splits.items()):
        images, annotations = root / "images" / split, root / "annotations" / split
        images.mkdir(parents=True, exist_ok=True)
        annotations.mkdir(parents=True, exist_ok=True)
        for index in range(count):
            generator = np.random.default_rng([seed, 20 + number, index])
            picture, labels, _ = scene(
                generator.choice(len(KINDS), int(generator.integers(2, 5)), replace=False).tolist(), generator
            )
            name = f"ADE_{'train' if split == 'training' else 'val'}_{index + 1:08d}"
            Image.fromarray(picture).save(images / f"{name}.jpg", quality=95)
            Image.fromarray(labels).save(annotations / f"{name}.png")


def _write(path: Path, content: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
