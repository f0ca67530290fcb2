"""Detection in two gloo processes: the same AP as in one, and trainings that both processes share."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.dataset import DefaultSampler

from evaluate import detection
from evaluate.data import coco
from evaluate.data.coco import read_annotations
from evaluate.mm import artifacts
from evaluate.mm.metrics import InstanceAP
from evaluate.runtime import distributed
from evaluate.runtime.env import Env
from evaluate.runtime.errors import UserError

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
        (folder / name).mkdir(parents=True, exist_ok=True)
        artifacts.save(folder / name, evaluator)
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


def weights(world: Path, folder: Path) -> str:
    """A digest of what a training ends in. Each process names its device otherwise, as on GPUs; DIE_AT is the iteration
    after which a process ends as if killed.
    """
    from evaluate.mm import hooks
    from tests.factories import tiny_encoder

    digest = hashlib.sha256()

    def after_train_iter(self: hooks.Progress, runner: Any, *_: Any, **__: Any) -> None:
        if runner.iter + 1 == int(os.environ.get("DIE_AT", "0")):
            os.kill(os.getpid(), signal.SIGKILL)

    def after_train(self: hooks.Progress, runner: Any) -> None:
        for name, value in getattr(runner.model, "module", runner.model).state_dict().items():
            digest.update(name.encode() + value.numpy().tobytes())

    hooks.Progress.after_train_iter, hooks.Progress.after_train = after_train_iter, after_train
    env = Env(world, folder, device=f"cpu:{distributed.rank()}", limit=LIMIT)
    micro_batch = int(os.environ.get("MICRO_BATCH", "2"))
    config = detection.Config("coco", recipe="demo", iterations=5, batch_size=4, micro_batch=micro_batch)
    detection.run(tiny_encoder(), config, env)
    return digest.hexdigest()


def agreed(world: Path, folder: Path) -> str:
    """What a process says that sees no saved state where the first one does."""
    from evaluate.mm import resume

    folder = folder / "states"
    if distributed.rank() == 0:
        resume.save(folder, 4, {"identity": "a", "iteration": 4})
    else:  # as on a machine of its own, where the same path is another folder
        resume._read_or_none = lambda path: None
    try:
        resume.load_agreed(folder, "a")
    except UserError as error:
        return str(error)
    return ""


def main() -> None:
    """One of several processes."""
    what, world, folder = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    torch.set_num_threads(1)
    distributed.start("cpu")
    results = {"evaluated": evaluated, "trained": trained, "weights": weights, "agreed": agreed}[what](world, folder)
    (folder / f"{what}{distributed.rank()}.json").write_text(json.dumps(results))
    distributed.end(0)


def started(what: str, world: Path, folder: Path, count: int = 2, **variables: str) -> subprocess.CompletedProcess[str]:
    """So many processes, which have ended."""
    folder.mkdir(exist_ok=True)
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        str(count),
        __file__,
        what,
        str(world),
        str(folder),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **variables}
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)


def in_two(what: str, world: Path, folder: Path) -> list[Any]:
    """Both processes' results."""
    ended = started(what, world, folder)
    assert ended.returncode == 0, ended.stderr[-3000:]
    return [json.loads((folder / f"{what}{rank}.json").read_text()) for rank in (0, 1)]


def test_two_processes_give_the_same_ap_as_one(world: Path, tmp_path: Path) -> None:
    first, second = in_two("evaluated", world, tmp_path)
    alone = evaluated(world, tmp_path / "alone")
    for name in ("coco", "lvis"):
        files = sorted((tmp_path / "alone" / name).iterdir())
        assert len(files) == 3
        assert all(path.read_bytes() == (tmp_path / name / path.name).read_bytes() for path in files)
    assert first == second == alone and 0 < alone["lvis"]["ap/box_ap"] < 100 and alone["coco"]["ap/images"] == LIMIT


@pytest.mark.slow
def test_two_processes_train_and_test_coco_and_lvis(world: Path, tmp_path: Path) -> None:
    first, second = in_two("trained", world, tmp_path)
    assert first == second and set(first) == {"coco", "lvis"}
    assert all(0 <= value <= 100 for metrics in first.values() for value in metrics.values())
    assert all((tmp_path / name / f"{name}_rank1.log").exists() for name in first)


def test_a_killed_training_ends_with_the_weights_of_an_unbroken_one(world: Path, tmp_path: Path) -> None:
    """Also where the processes name their devices differently; another number of processes goes on too."""
    first, second = in_two("weights", world, tmp_path / "whole")
    assert first == second
    broken = tmp_path / "broken"
    assert started("weights", world, broken, DIE_AT="3").returncode != 0
    shutil.copytree(broken, tmp_path / "alone")
    assert in_two("weights", world, broken) == [first, first]
    for count, micro_batch in ((1, "4"), (1, "1")):
        alone = tmp_path / f"alone{micro_batch}"
        shutil.copytree(tmp_path / "alone", alone)
        ended = started("weights", world, alone, count, MICRO_BATCH=micro_batch)
        assert ended.returncode == 0 and "goes on at iteration 2 of 5" in ended.stderr, ended.stderr[-2000:]


def test_a_state_that_one_process_cannot_read_is_refused(world: Path, tmp_path: Path) -> None:
    for said in in_two("agreed", world, tmp_path):
        assert "not every process can read the saved state" in said and "(by process: 4, None)" in said


if __name__ == "__main__":
    main()
