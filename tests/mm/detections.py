"""Objects and detections at random, for tests of average precision."""

import numpy as np
from pycocotools import mask as rle

SIDE = 80


def random_world(seed: int, lvis: bool = False) -> tuple[dict, list[dict]]:
    """12 images of 5 categories; detections are shifted truths and noise."""
    generator = np.random.default_rng(seed)
    images = [{"id": i * 3 + 1, "width": SIDE, "height": SIDE} for i in range(12)]
    categories = [{"id": i, "name": str(i), "frequency": "rrccf"[k]} for k, i in enumerate((1, 3, 4, 8, 15))]
    truth, found = [], []
    for image in images:
        for _ in range(generator.integers(0, 6)):
            category = int(generator.choice([c["id"] for c in categories]))
            box = [float(v) for v in (*generator.uniform(0, 40, 2), *generator.uniform(4, 38, 2))]
            truth.append(
                {
                    "id": len(truth) + 1,
                    "image_id": image["id"],
                    "category_id": category,
                    "bbox": box,
                    "area": box[2] * box[3],
                    "iscrowd": int(not lvis and generator.random() < 0.1),
                    "segmentation": encoded(box),
                }
            )
            for _ in range(generator.integers(0, 3)):
                moved = [max(v + generator.normal(0, 2.0), 1.0) for v in box]
                found.append(
                    detection(image["id"], category if generator.random() < 0.8 else 3, moved, generator.random())
                )
    present = {image["id"]: {a["category_id"] for a in truth if a["image_id"] == image["id"]} for image in images}
    for image in images:
        image["neg_category_ids"] = [
            c["id"] for c in categories if c["id"] not in present[image["id"]] and c["id"] != 3
        ]
        image["not_exhaustive_category_ids"] = sorted(present[image["id"]])[:1]
    return {"info": {}, "images": images, "categories": categories, "annotations": truth}, found


def encoded(box: list[float]) -> dict:
    mask = np.zeros((SIDE, SIDE), np.uint8, order="F")
    x, y, width, height = (round(v) for v in box)
    mask[y : y + max(height, 1), x : x + max(width, 1)] = 1
    return rle.encode(mask)


def detection(image: int, category: int, box: list[float], score: float) -> dict:
    return {
        "image_id": image,
        "category_id": category,
        "bbox": box,
        "score": float(score),
        "segmentation": encoded(box),
    }
