"""Detection in two gloo processes: the same AP as in one, and trainings that both processes share."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.dataset import DefaultSampler

from evaluate import detection
from evaluate.data import coco
from evaluate.data.coco import read_annotations
from evaluate.mm.metrics import InstanceAP
from evaluate.runtime import distributed
from evaluate.runtime.env import Env

ROOT = Path(__file__).parents[2]
LIMIT = 7  # odd: the sampler gives one image to both processes


def evaluated(world: Path, folder: Path) -> dict[str, dict[str, float]]:
    """The metrics of detections that follow from the image alone, each process having its share of the images."""
    from mmengine.evaluator import Evaluator
    from mmengine.structures import InstanceData

    results = {}
    for name in ("coco", "lvis"):
        path = world / coco.ANNOTATIONS[name][1]
        content = read_annotations(path)
        labels = {c["id"]: k for k, c in enumerate(sorted(content["categories"], key=lambda c: c["id"]))}
        images = sorted(content["images"], key=lambda image: image["id"])[:LIMIT]
        metric = InstanceAP(str(path), name == "lvis", 300, limit=LIMIT, collect_dir=str(folder / f"collected_{name}"))
        evaluator = Evaluator([metric])
        for index in DefaultSampler(images, shuffle=False):
            image, generator = images[index], np.random.default_rng(images[index]["id"])
            own = [a for a in content["annotations"] if a["image_id"] == image["id"]]
            boxes = np.array([a["bbox"] for a in own]).reshape(-1, 4) + generator.normal(0, 2, (len(own), 4))
            boxes = torch.tensor(np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], 1))
            masks = torch.zeros(len(own), image["height"], image["width"], dtype=torch.bool)
            for mask, (x1, y1, x2, y2) in zip(masks, boxes.int().clamp(min=0).tolist(), strict=True):
                mask[y1:y2, x1:x2] = True
            found = InstanceData(
                bboxes=boxes,
                masks=masks,
                scores=torch.tensor(generator.random(len(own))),
                labels=torch.tensor([labels[a["category_id"]] for a in own]),
            )
            evaluator.process([{"img_id": image["id"], "pred_instances": found}])
        results[name] = evaluator.evaluate(LIMIT)
    return results


def trained(world: Path, folder: Path) -> dict[str, dict[str, float]]:
    """The metrics of a few iterations of both data sets."""
    from tests.factories import tiny_encoder

    results = {}
    for name in ("coco", "lvis"):
        (folder / name).mkdir(parents=True, exist_ok=True)
        env = Env(world, folder / name, limit=LIMIT)
        results[name] = detection.run(tiny_encoder(), detection.Config(name, recipe="demo", iterations=4), env)
        assert env.notes["images_evaluated"] == {name: LIMIT}
    return results


def main() -> None:
    """One of two processes."""
    what, world, folder = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    torch.set_num_threads(1)
    distributed.start("cpu")
    results = {"evaluated": evaluated, "trained": trained}[what](world, folder)
    (folder / f"{what}{torch.distributed.get_rank()}.json").write_text(json.dumps(results))


def in_two(what: str, world: Path, folder: Path) -> list[dict]:
    """Both processes' results."""
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        __file__,
        what,
        str(world),
        str(folder),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    ended = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert ended.returncode == 0, ended.stderr[-3000:]
    return [json.loads((folder / f"{what}{rank}.json").read_text()) for rank in (0, 1)]


def test_two_processes_give_the_same_ap_as_one(world: Path, tmp_path: Path) -> None:
    first, second = in_two("evaluated", world, tmp_path)
    alone = evaluated(world, tmp_path / "alone")
    assert first == second == alone and 0 < alone["lvis"]["ap/box_ap"] < 100 and alone["coco"]["ap/images"] == LIMIT


@pytest.mark.slow
def test_two_processes_train_and_test_coco_and_lvis(world: Path, tmp_path: Path) -> None:
    first, second = in_two("trained", world, tmp_path)
    assert first == second and set(first) == {"coco", "lvis"}
    assert all(0 <= value <= 100 for metrics in first.values() for value in metrics.values())
    assert all((tmp_path / name / f"{name}_rank1.log").exists() for name in first)


if __name__ == "__main__":
    main()
