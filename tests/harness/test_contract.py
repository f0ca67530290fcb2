"""Every task keeps the contract of ``evaluate.harness.task``: what its module says, and what its record holds."""

import dataclasses
import json
import re
from pathlib import Path
from typing import get_type_hints

import pytest
import torch

from evaluate.data import layouts, toy_dense
from evaluate.harness import plan, task
from evaluate.runtime.errors import UserError
from evaluate.runtime.settings import Settings, field_docs, override
from results.columns import COLUMNS, EXTRA_COLUMNS
from results.record import Record
from tests.factories import mae_state
from tests.worlds import make_voc, make_voc2012, write_world

SHORT = {  # settings with which a task takes seconds
    "detection": {"iterations": "2", "batch_size": "2"},
    "segmentation": {"iterations": "2", "batch_size": "2"},
    "linear_segmentation": {"iterations": "2", "batch_size": "2"},
    "finetune": {"epochs": "2", "warmup_epochs": "1", "batch_size": "32", "micro_batch": "32"},
    "linear_probe": {"epochs": "2", "warmup_epochs": "1", "batch_size": "32", "micro_batch": "32"},
    "sweep": {"epochs": "1", "batch_size": "32", "micro_batch": "32"},
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = write_world(tmp_path_factory.mktemp("world"), train=12, val=6)
    toy_dense.make(root, 0, train_images=8, val_images=4)
    make_voc(root, root)
    make_voc2012(root, root)
    return root


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoint") / "mine.pth"
    torch.save({"model": mae_state(depth=4)}, path)  # the second setup of linear_segmentation takes four layers
    return path


@pytest.mark.parametrize("node", plan.NODES, ids=lambda node: node.name)
def test_a_task_says_what_it_is(node: plan.Node) -> None:
    module = plan.module_of(node.task)
    text = module.__doc__
    assert re.search(r"Protocol", text) and re.search(r"Metric", text) and re.search(r"Cost", text)
    assert f"python -m evaluate.{node.task} --ckpt FILE" in text
    assert issubclass(module.Config, Settings) and module.Config.__dataclass_params__.frozen  # type: ignore[attr-defined]
    assert {"paper", "demo"} <= set(module.PRESETS) and all(
        type(preset) is module.Config for preset in module.PRESETS.values()
    )
    config = override(module.PRESETS["paper"], node.overrides)
    assert plan.node_of(node.task, config) is node
    assert set(plan.data_sets(node, config)) <= set(layouts.LAYOUTS)
    assert any(column[1] == node.name for column in (*COLUMNS, *EXTRA_COLUMNS)), "no column shows it"
    undocumented = {field.name for field in dataclasses.fields(module.Config)} - set(field_docs(module.Config))
    assert len(undocumented) <= 6, f"fields that only their names explain: {sorted(undocumented)}"


@pytest.mark.parametrize("node", plan.NODES, ids=lambda node: node.name)
def test_a_task_measures_and_leaves_a_whole_record(
    node: plan.Node, world: Path, checkpoint: Path, tmp_path: Path, capsys
) -> None:
    settings = {**node.overrides, **SHORT.get(node.task, {})}
    resnet = node.name == "detection_voc"  # there are recipes of VOC for ResNets alone
    options = [
        "--ckpt",
        str(checkpoint),
        "--data-root",
        str(world),
        "--out",
        str(tmp_path),
        "--preset",
        "demo",
        "--device",
        "cpu",
    ]
    options += [part for name, value in settings.items() for part in ("--set", f"{name}={value}")]
    if node.inputs:
        assert task.main(node.task, options) == 3 and "evaluate.finetune" in capsys.readouterr().err
        (out := next((tmp_path / "records").iterdir())).unlink()
        assert out.name.startswith(f"mine-{node.name}-")
        fine_tuned = [
            *options,
            *(part for name, value in SHORT["finetune"].items() for part in ("--set", f"{name}={value}")),
        ]
        assert task.main("finetune", fine_tuned) == 0
        options += ["--input", f"classifier={next(tmp_path.glob('mine/finetune-*/classifier.safetensors'))}"]
    status = task.main(node.task, options)
    if resnet:
        assert status == 2 and "there is no demo recipe of voc for a vit encoder" in capsys.readouterr().err
        return
    assert status == 0
    (path,) = (tmp_path / "records").glob(f"mine-{node.name}-*.json")
    entry = json.loads(path.read_text())
    assert set(get_type_hints(Record)) <= set(entry)
    assert entry["status"] == "ok" and all(
        0 <= value <= 100 or "mce" in name for name, value in entry["metrics"].items()
    )
    metrics = {metric for _, name, metric in (*COLUMNS, *EXTRA_COLUMNS) if name == node.name}
    assert metrics <= set(entry["metrics"]), "a column of it stays empty"
    assert (tmp_path / entry["work"]).is_dir()
    again = tmp_path / "again"
    repeated = [*options[: options.index("--preset")], "--device", "cpu", "--config", str(path), "--out", str(again)]
    repeated += [part for pair in zip(options, options[1:], strict=False) if pair[0] == "--input" for part in pair]
    assert task.main(node.task, repeated) == 0, "a record's settings do not run again"
    (second,) = (again / "records").glob(f"mine-{node.name}-*.json")
    assert second.name == path.name and json.loads(second.read_text())["metrics"] == entry["metrics"]


@pytest.mark.parametrize("task", ["segmentation", "linear_segmentation"])
def test_crops_of_which_a_half_has_no_pixels_are_refused(task: str) -> None:
    paper = plan.module_of(task).PRESETS["paper"]
    assert override(paper, {"crop": "16"}).crop == 16
    with pytest.raises(UserError, match="'crop' is a whole number from 16 on"):
        override(paper, {"crop": "15"})
