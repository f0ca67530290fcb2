"""Average precision of simulated detections beside pycocotools and lvis: seconds of CPU, memory, and the numbers.

    python -m evaluate.mm.scoring_benchmark                              COCO's classes, 500 images
    python -m evaluate.mm.scoring_benchmark --lvis --images 2000         LVIS' classes and 300 detections an image

Prints rows: what, ours, peer, ratio, limit. Each scorer runs in a process of its own, boxes and masks, on the same
data. Memory is the peak of data and scoring beyond what the imports take; a peer's detections are dicts, ours are
arrays. Ours also resamples the metrics (``evaluate.mm.resampling``) in a row of its own, which the peers
cannot. A peer that is not installed has no row.
"""

import argparse
import contextlib
import importlib.util
import io
import itertools
import json
import os
import subprocess
import sys
import time
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as rle

from evaluate.mm.average_precision import NAMES, average_precision
from evaluate.mm.detections import Detections
from results.ending import leave

SIZE = (480, 640)  # height, width
OBJECTS = 7  # an image
CLASSES = {False: 80, True: 1203}
KEPT = {False: 100, True: 300}  # detections an image
FASTER, LIGHTER = 2.5, 1.0  # at least so many times the peer's speed; at most so much of its memory
PEERS = {False: "pycocotools", True: "lvis"}


def simulated(images: int, lvis: bool) -> tuple[dict[str, Any], Iterator[list[dict[str, Any]]]]:
    """A ground truth of seven objects an image, and each image's results: objects moved a little, and noise.

    The ground truth is whole when all results have been taken.
    """
    generator = np.random.default_rng(0)
    truth: dict[str, Any] = {"info": {}, "images": [], "annotations": [], "categories": []}
    truth["categories"] = [{"id": k + 1, "name": str(k), "frequency": "rcf"[k % 3]} for k in range(CLASSES[lvis])]
    return truth, (_add_image(truth, number, generator, lvis) for number in range(1, images + 1))


def _add_image(truth: dict[str, Any], number: int, generator: np.random.Generator, lvis: bool) -> list[dict[str, Any]]:
    """Adds an image and its objects to the ground truth, and returns its results."""
    classes, count = CLASSES[lvis], KEPT[lvis]
    labels, boxes = generator.integers(1, classes + 1, OBJECTS), _boxes(generator, OBJECTS)
    guesses, places = generator.integers(1, classes + 1, count), _boxes(generator, count)
    guesses[:OBJECTS], places[:OBJECTS] = labels, np.maximum(boxes + generator.normal(0, 4, boxes.shape), 1)
    absent = set(guesses[OBJECTS::3].tolist()) - set(labels.tolist())
    known = {"not_exhaustive_category_ids": labels[:1].tolist(), "neg_category_ids": sorted(absent)}
    truth["images"].append({"id": number, "height": SIZE[0], "width": SIZE[1], **known})
    for entry in _entries(number, labels, boxes):
        area = entry["bbox"][2] * entry["bbox"][3]
        truth["annotations"].append({**entry, "id": len(truth["annotations"]) + 1, "area": area, "iscrowd": 0})
    scores = generator.random(count).tolist()
    return [{**entry, "score": score} for entry, score in zip(_entries(number, guesses, places), scores, strict=True)]


def _entries(image: int, labels: np.ndarray, boxes: np.ndarray) -> list[dict[str, Any]]:
    """What an object and a result have in common."""
    return [
        {"image_id": image, "category_id": label, "bbox": box, "segmentation": mask}
        for label, box, mask in zip(labels.tolist(), boxes.tolist(), rle.frPyObjects(boxes, *SIZE), strict=True)
    ]


def _boxes(generator: np.random.Generator, count: int) -> np.ndarray:
    """(count, 4) left, top, width, height."""
    size = generator.uniform(10, 200, (count, 2))
    return np.concatenate([generator.uniform(0, 1, (count, 2)) * (np.array(SIZE[::-1]) - size), size], 1)


def of_kind(found: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    """The results with boxes alone or masks alone, as a file for a peer has them."""
    field = "segmentation" if kind == "segm" else "bbox"
    return [{name: one[name] for name in ("image_id", "category_id", "score", field)} for one in found]


def by_pycocotools(truth: dict[str, Any], found: list[dict[str, Any]]) -> list[float]:
    """AP of boxes and of masks, in percent."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    reference, values = COCO(), []
    reference.dataset = truth
    reference.createIndex()
    for kind in NAMES:
        evaluation = COCOeval(reference, reference.loadRes(of_kind(found, kind)), kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
        values.append(100 * float(evaluation.stats[0]))
    return values


def by_lvis(truth: dict[str, Any], found: list[dict[str, Any]]) -> list[float]:
    """The same by LVIS' rules. lvis imports plotting and names a type that numpy no longer has."""
    vars(np)["float"] = float
    for name in ("cv2", "matplotlib", "matplotlib.pyplot", "matplotlib.patches"):
        sys.modules.setdefault(name, types.ModuleType(name))
    vars(sys.modules["matplotlib.patches"]).setdefault("Polygon", None)
    from lvis import LVIS, LVISEval, LVISResults

    reference, values = LVIS.__new__(LVIS), []
    reference.logger, reference.dataset = __import__("logging").getLogger("lvis"), truth
    reference._create_index()
    for kind in NAMES:
        evaluation = LVISEval(reference, LVISResults(reference, of_kind(found, kind)), kind)
        evaluation.run()
        values.append(100 * float(evaluation.results["AP"]))
    return values


def measured(scorer: str, images: int, lvis: bool) -> dict[str, Any]:
    """Seconds of CPU, bytes at the peak beyond the imports, and the AP of one scorer, in this process."""
    before = _kilobytes("VmRSS")
    truth, results = simulated(images, lvis)
    found: Any
    if scorer.startswith("ours"):
        found = Detections.joined([Detections.of(of_image) for of_image in results])
    else:
        found = list(itertools.chain.from_iterable(results))
    begun = time.process_time()
    with contextlib.redirect_stdout(io.StringIO()):
        if scorer.startswith("ours"):
            drawn: dict[str, list[float]] | None = {} if scorer == "ours, resampled" else None
            ids = [image["id"] for image in truth["images"]]
            metrics = average_precision(truth, found, ids, lvis, KEPT[lvis], drawn)
            values = [metrics[name] for name in NAMES.values()]
        else:
            values = (by_lvis if scorer == "lvis" else by_pycocotools)(truth, found)
    seconds = time.process_time() - begun
    peak = _kilobytes("VmHWM")
    return {"seconds": seconds, "bytes": 1024 * (peak - before), "process": 1024 * peak, "values": values}


def _kilobytes(name: str) -> int:
    """A figure of this process in /proc."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(f"{name}:")))


def apart(scorer: str, images: int, lvis: bool) -> dict[str, Any]:
    """``measured`` in a new process."""
    command = [sys.executable, "-W", "ignore", "-m", __spec__.name, "--images", str(images), "--scorer", scorer]
    done = subprocess.run(
        [*command, *(["--lvis"] if lvis else [])], stdout=subprocess.PIPE, text=True, check=True, env=dict(os.environ)
    )
    return dict(json.loads(done.stdout.splitlines()[-1]))


def rows(images: int, lvis: bool) -> list[str]:
    """The table, of ours and of the peer if it is installed."""
    peer = PEERS[lvis]
    plain, drawn = apart("ours", images, lvis), apart("ours, resampled", images, lvis)
    name = f"{'LVIS' if lvis else 'COCO'}, {images} images x {KEPT[lvis]}"
    found = ["| what | ours | peer | ratio | limit |", "|---|---|---|---|---|"]
    found.append(f"| {name}, resampled too: CPU, process | {_cell(drawn)}, {drawn['process'] / 1e9:.2f} GB | | | |")
    if importlib.util.find_spec(peer) is None:
        return [*found, f"| {name} | {_cell(plain)} | {peer} is not installed | | |"]
    theirs = apart(peer, images, lvis)
    speed, memory = theirs["seconds"] / plain["seconds"], plain["bytes"] / theirs["bytes"]
    found.append(f"| {name}: speed | {_cell(plain)} | {peer} {_cell(theirs)} | {speed:.2f} | at least {FASTER} |")
    found.append(f"| {name}: memory | {_cell(plain)} | {peer} {_cell(theirs)} | {memory:.2f} | at most {LIGHTER} |")
    apart_by = max(abs(a - b) for a, b in zip(plain["values"], theirs["values"], strict=True))
    return [
        *found,
        f"| {name}: box AP, mask AP | {plain['values']} | {theirs['values']} | {apart_by:.1e} apart | 1e-6 |",
    ]


def _cell(one: dict[str, Any]) -> str:
    return f"{one['seconds']:.1f} s, {one['bytes'] / 1e6:.0f} MB"


def main(argv: list[str] | None = None) -> int:
    """The command; 0."""
    parser = argparse.ArgumentParser(
        prog="python -m evaluate.mm.scoring_benchmark",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--images", type=int, default=500, help="simulated images (default: 500)")
    parser.add_argument("--lvis", action="store_true", help="LVIS' rules and classes, beside lvis")
    parser.add_argument("--scorer", help="measures one alone and prints JSON: ours, 'ours, resampled' or a peer")
    options = parser.parse_args(argv)
    if options.scorer:
        print(json.dumps(measured(options.scorer, options.images, options.lvis)))
    else:
        print("\n".join(rows(options.images, options.lvis)))
    return 0


if __name__ == "__main__":
    leave(main)
