"""The toy world's pictures in the layout of PASCAL VOC."""

import json
from pathlib import Path

from evaluate.data.voc import CLASSES


def xml(width: int, height: int, objects: list[tuple[str, int, tuple]]) -> str:
    entries = "".join(
        f"<object><name>{name}</name><difficult>{difficult}</difficult><bndbox><xmin>{x1}</xmin><ymin>{y1}</ymin><xmax>{x2}</xmax>"
        f"<ymax>{y2}</ymax></bndbox></object>"
        for name, difficult, (x1, y1, x2, y2) in objects
    )
    return f"<annotation><size><width>{width}</width><height>{height}</height><depth>3</depth></size>{entries}</annotation>"


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
            (folder / f"JPEGImages/{stem}.jpg").write_bytes((world / f"coco/{source}2017/{image['file_name']}").read_bytes())
            own = [a for a in content["annotations"] if a["image_id"] == image["id"]]
            objects = []
            for a in own:
                x, y, w, h = a["bbox"]
                objects.append((names[a["category_id"]], a["iscrowd"], (round(x) + 1, round(y) + 1, round(x + w), round(y + h))))
            (folder / f"Annotations/{stem}.xml").write_text(xml(image["width"], image["height"], objects))
        (folder / f"ImageSets/Main/{split}.txt").write_text("\n".join(stems) + "\n")
    return root
