"""Small worlds in the layouts of the real data sets."""

import json
import shutil
from pathlib import Path

import numpy as np
from PIL import Image

from evaluate.data.imagenet import OFFICIAL_CLASSES
from evaluate.data.layouts import CORRUPTIONS
from evaluate.data.voc import CLASSES

OFFICIAL = json.loads(OFFICIAL_CLASSES.read_text())["imagenet"]
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


def make_voc2012(root: Path, world: Path, train: int = 6, further: int = 2, val: int = 3) -> Path:
    """VOC 2012's segmentation with pictures of the toy world's ADE20k: label maps with a palette, the ground as
    background, 255 for what is no class. Further maps lie in SegmentationClassAug, with those of val, as they are
    passed on. Returns the folder VOC2012.
    """
    folder = root / "VOCdevkit/VOC2012"
    for part in ("JPEGImages", "SegmentationClass", "SegmentationClassAug", "ImageSets/Segmentation"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    pictures = {split: sorted((world / f"ade20k/images/{split}").iterdir()) for split in ("training", "validation")}
    parts = {
        "train": pictures["training"][:train],
        "further": pictures["training"][train : train + further],
        "val": pictures["validation"][:val],
    }
    for part, paths in parts.items():
        for path in paths:
            labels = np.asarray(Image.open(str(path).replace("/images/", "/annotations/").replace(".jpg", ".png")))
            image = Image.fromarray(np.choose(labels, [255, 1, 2, 3, 4, 5, 6, 0]).astype(np.uint8)).convert("P")
            image.putpalette([255 - value for value in range(256)] * 3)
            shutil.copy(path, folder / f"JPEGImages/{path.name}")
            if part != "further":
                image.save(folder / f"SegmentationClass/{path.stem}.png")
            if part != "train" and further:
                image.save(folder / f"SegmentationClassAug/{path.stem}.png")
        if part != "further":
            (folder / f"ImageSets/Segmentation/{part}.txt").write_text("\n".join(path.stem for path in paths) + "\n")
    if not further:
        (folder / "SegmentationClassAug").rmdir()
    return folder


def in_order(count: int, batch: int) -> list[list[tuple[int, int]]]:
    """The samples of a set in its order, in batches."""
    return [[(0, index) for index in range(begin, min(begin + batch, count))] for begin in range(0, count, batch)]


def write_further_sets(root: Path) -> Path:
    """A train of four of ImageNet-1k's classes, val with its published names, and ImageNet-V2, ReaL and ObjectNet."""
    four = (0, 2, 10, 999)
    numbers = (1, 7, 20, 50_000)  # of val's images
    for place, (number, image) in enumerate(zip(four, numbers, strict=True)):
        for folder, name in (
            (f"imagenet/train/{OFFICIAL[number]}", "a.JPEG"),
            (f"imagenet/val/{OFFICIAL[number]}", f"ILSVRC2012_val_{image:08}.JPEG"),
            (f"imagenetv2-matched-frequency-format-val/{number}", "a.jpeg"),
        ):
            (root / folder).mkdir(parents=True)
            paint(place, np.random.default_rng(image)).save(root / folder / name)
    labels: list[list[int]] = [[0] for _ in range(50_000)]
    labels[6], labels[19], labels[49_999] = [2, 999, 5], [], [999]
    (root / "imagenet/real.json").write_text(json.dumps(labels))
    mappings = root / "objectnet-1.0/mappings"
    mappings.mkdir(parents=True)
    lines = [f"class {line}" for line in range(1000)]  # line 1 is class 0, and so on
    (mappings / "imagenet_to_label_2012_v2").write_text("\n".join(lines) + "\n")
    moved = {str(number): (number + 1) % 1000 for number in range(1000)}
    (mappings / "pytorch_to_imagenet_2012_id.json").write_text(json.dumps(moved))
    folders = {"alarm_clock": "Alarm clock", "mug": "Mug", "pet_bed": "Pet bed", "spatula": "Spatula"}
    (mappings / "folder_to_objectnet_label.json").write_text(json.dumps(folders))
    known = {"Alarm clock": "class 1; class 11; class 4", "Mug": "class 0", "Spatula": "class 500"}
    (mappings / "objectnet_to_imagenet_1k.json").write_text(json.dumps(known))
    for folder in folders:
        (root / "objectnet-1.0/images" / folder).mkdir(parents=True)
        for name in ("a.png", "b.png") if folder == "alarm_clock" else ("a.png",):
            image = Image.new("RGB", (16, 12), "red")
            image.paste((0, 0, 255), (2, 2, 14, 10))
            image.save(root / "objectnet-1.0/images" / folder / name)
    return root
