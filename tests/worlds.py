"""Small worlds in the layouts of the real data sets."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from evaluate.data.layouts import CORRUPTIONS
from evaluate.data.voc import CLASSES

WNIDS = ("n00000001", "n00000002", "n00000003", "n00000004")


def paint(label: int, rng: np.random.Generator, size: int = 32) -> Image.Image:
    """Stripes at a random phase in random colours, under noise; their direction and a weak tint tell the class."""
    y, x = np.mgrid[:size, :size]
    angle = np.pi * label / len(WNIDS)
    wave = np.sin((np.cos(angle) * x + np.sin(angle) * y) * 1.1 + rng.uniform(0, 6.28))[..., None]
    colours = rng.uniform(60, 190, (2, 3))
    colours += 40 * np.eye(4, 3)[label]
    pixels = colours[0] + (colours[1] - colours[0]) * (wave + 1) / 2 + rng.normal(0, 12, (size, size, 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def write_folder(folder: Path, per_class: int, wnids: tuple[str, ...] = WNIDS, seed: int = 0) -> None:
    """``folder/<wnid>/<wnid>_<i>.png``."""
    rng = np.random.default_rng(seed)
    for wnid in wnids:
        (folder / wnid).mkdir(parents=True)
        for number in range(per_class):
            paint(WNIDS.index(wnid), rng).save(folder / wnid / f"{wnid}_{number}.png")


def write_world(root: Path, train: int = 40, val: int = 15, corrupted: int = 1) -> Path:
    """All sets of the ImageNet columns, ``train``, ``val`` and ``corrupted`` images a class."""
    write_folder(root / "imagenet/train", train, seed=1)
    write_folder(root / "imagenet/val", val, seed=2)
    names = [f"{wnid}_{number}.png" for number in range(6) for wnid in WNIDS]
    (root / "imagenet/1percent.txt").write_text("\n".join(names))  # no newline at the end, as in the published list
    write_folder(root / "imagenet-a", 3, WNIDS[1:3], seed=3)
    write_folder(root / "imagenet-r", 3, WNIDS[:3], seed=4)
    write_folder(root / "imagenet-sketch", 2, seed=5)
    for number, name in enumerate(CORRUPTIONS):
        for severity in range(1, 6):
            write_folder(root / "imagenet-c" / name / str(severity), corrupted, seed=100 + 10 * number + severity)
    return root


def xml(width: int, height: int, objects: list[tuple[str, int, tuple]]) -> str:
    entries = "".join(
        f"<object><name>{name}</name><difficult>{difficult}</difficult><bndbox><xmin>{x1}</xmin><ymin>{y1}</ymin>"
        f"<xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox></object>"
        for name, difficult, (x1, y1, x2, y2) in objects
    )
    size = f"<size><width>{width}</width><height>{height}</height><depth>3</depth></size>"
    return f"<annotation>{size}{entries}</annotation>"


def make_voc(root: Path, world: Path, count: int = 6) -> Path:
    """VOCdevkit with the toy world's pictures; its four classes are the first four."""
    for year, split, source in (("2007", "trainval", "train"), ("2012", "trainval", "train"), ("2007", "test", "val")):
        content = json.loads((world / f"coco/annotations/instances_{source}2017.json").read_text())
        names = {category["id"]: CLASSES[k] for k, category in enumerate(content["categories"])}
        folder = root / f"VOCdevkit/VOC{year}"
        for part in ("ImageSets/Main", "JPEGImages", "Annotations"):
            (folder / part).mkdir(parents=True, exist_ok=True)
        stems = []
        for image in content["images"][:count]:
            stem = f"{split}{image['id']}"
            stems.append(stem)
            (folder / f"JPEGImages/{stem}.jpg").write_bytes(
                (world / f"coco/{source}2017/{image['file_name']}").read_bytes()
            )
            own = [a for a in content["annotations"] if a["image_id"] == image["id"]]
            objects = []
            for a in own:
                x, y, w, h = a["bbox"]
                objects.append(
                    (names[a["category_id"]], a["iscrowd"], (round(x) + 1, round(y) + 1, round(x + w), round(y + h)))
                )
            (folder / f"Annotations/{stem}.xml").write_text(xml(image["width"], image["height"], objects))
        (folder / f"ImageSets/Main/{split}.txt").write_text("\n".join(stems) + "\n")
    return root


def in_order(count: int, batch: int) -> list[list[tuple[int, int]]]:
    """The samples of a set in its order, in batches."""
    return [[(0, index) for index in range(begin, min(begin + batch, count))] for begin in range(0, count, batch)]
