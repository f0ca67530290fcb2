"""The tasks that train nothing: one, two and three gloo processes give the same numbers to the last digit, and stop
together.
"""

import multiprocessing
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from evaluate import few_shot, knn, robustness
from evaluate.runtime.env import Env
from evaluate.runtime.errors import UserError
from tests.factories import class_token_vit, save_classifier
from tests.worlds import write_world

TASKS = {
    "knn": (knn, replace(knn.PRESETS["demo"], neighbors=(5, 20), headline=5)),
    "few_shot": (few_shot, few_shot.PRESETS["demo"]),
    "shots": (few_shot, replace(few_shot.PRESETS["demo"], shots=3, seeds=3)),
    "robustness": (robustness, robustness.PRESETS["demo"]),
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_world(
        tmp_path_factory.mktemp("world"), train=40, val=70
    )  # several shards, and two blocks of neighbors


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tuned") / "classifier.safetensors"
    save_classifier(path)
    return path


def measure(data: Path, out: Path, tuned: Path) -> dict[str, Any]:
    """Metrics and reports of all tasks, and what they left on disk."""
    found: dict[str, Any] = {}
    for name, (module, config) in TASKS.items():
        env = Env(data, out / name, inputs={"classifier": tuned})
        env.out_dir.mkdir(parents=True, exist_ok=True)
        found[name] = (module.run(class_token_vit(), config, env), env.notes)
    return found


def together(size: int, work: Callable[[], Any], folder: Path) -> list[Any]:
    """What ``work`` returns, or the UserError it raises, in each of so many gloo processes.

    They are forked: all imports are done, and one thread a process (conftest.py) leaves nothing that a fork could
    break.
    """
    context = multiprocessing.get_context("fork")
    queue = context.Queue()

    def start(rank: int) -> None:
        try:
            dist.init_process_group("gloo", init_method=f"file://{folder / 'rendezvous'}", rank=rank, world_size=size)
            queue.put((rank, work()))
        except UserError as error:
            queue.put((rank, error))
        except BaseException:
            queue.put((rank, traceback.format_exc()))
        finally:
            dist.destroy_process_group()

    folder.mkdir(parents=True)
    processes = [context.Process(target=start, args=(rank,)) for rank in range(size)]
    for process in processes:
        process.start()
    results = dict(queue.get(timeout=120) for _ in processes)
    for process in processes:
        process.join(timeout=60)
    return [results[rank] for rank in range(size)]


def test_every_metric_is_the_same_to_the_last_digit(data: Path, tuned: Path, tmp_path: Path) -> None:
    alone = measure(data, tmp_path / "1", tuned)
    files = {path.relative_to(tmp_path / "1"): path for path in (tmp_path / "1").rglob("*.safetensors")}
    assert len(files) > 90
    for size in (2, 3):
        out = tmp_path / str(size)
        for found in together(size, lambda out=out: measure(data, out, tuned), tmp_path / f"processes{size}"):
            assert found == alone
        for name, path in files.items():
            assert (out / name).read_bytes() == path.read_bytes(), name
        for task in ("knn", "few_shot", "robustness"):
            one, many = ((tmp_path / str(number) / task / "predictions.npz").read_bytes() for number in (1, size))
            assert one == many


def test_an_unreadable_image_stops_all_with_its_name(tmp_path: Path, tuned: Path) -> None:
    data = write_world(tmp_path / "data", train=40, val=70)
    bad = sorted((data / "imagenet/val").glob("*/*"))[100]  # in the second shard: of the second process
    bad.write_bytes(b"")
    env = Env(data, tmp_path / "out/knn")
    env.out_dir.mkdir(parents=True)
    for found in together(2, lambda: knn.run(class_token_vit(), knn.PRESETS["demo"], env), tmp_path / "strict"):
        assert isinstance(found, UserError) and bad.name in str(found)
    lenient = replace(knn.PRESETS["demo"], max_unreadable_images=1)
    one, two = together(2, lambda: (knn.run(class_token_vit(), lenient, env), env.notes), tmp_path / "lenient")
    assert one == two and one[1]["images_evaluated"]["val"] == 279 and one[1]["unreadable_images"]["val"] == [str(bad)]
