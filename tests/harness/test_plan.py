"""Which records a table may show."""

import json
import os
from types import SimpleNamespace

import pytest

from evaluate.data.identity import DataIdentities, fingerprint
from evaluate.harness import jobs, plan, rows, suite, task, task_options
from evaluate.runtime.env import Env
from evaluate.runtime.errors import UserError
from evaluate.runtime.settings import as_json
from results import record, tables


@pytest.fixture
def run(tmp_path):
    nodes = plan.choose(["knn"])
    made = suite.Suite(
        tmp_path, DataIdentities(tmp_path, tmp_path / "manifests"), nodes, plan.configure(nodes, "paper", {})
    )
    made.folders["mine"] = tmp_path / "mine"
    certify(tmp_path, "this")
    return made


def certify(out, fingerprint):
    (out / "mine").mkdir(exist_ok=True)
    (out / "mine" / rows.ENCODER).write_text(fingerprint)
    (out / "mine/encoder.certificate.json").write_text(json.dumps({"fingerprint": fingerprint, "passed": True}))
    rows.seal_encoder(out / "mine")


def test_what_a_run_keeps_and_logs_is_said_to_its_tasks(run):
    (node,) = run.nodes
    assert not {"--keep-models", "--log"} & set(jobs._command("mine", node, run, 1))
    run.keep_models, run.log = True, "wandb"
    command = jobs._command("mine", node, run, 1)
    assert "--keep-models" in command and command[command.index("--log") + 1] == "wandb"


def test_only_the_tasks_that_can_be_compiled_are_told_to(run):
    assert "--compile" not in jobs._command("mine", run.nodes[0], run, 1)
    run.compile, run.nodes = True, plan.NODES
    run.configs = plan.configure(plan.NODES, "paper", {})
    run.identities = SimpleNamespace(data_root="", for_tasks=False, of_sets=lambda names: {})
    for node in plan.NODES:
        command = jobs._command("mine", node, run, 1)
        assert ("--compile" in command) is (node.task in plan.COMPILED), node
        shown = task_options.parser_of(node.task, plan.module_of(node.task)).format_help()
        assert ("--compile" in shown) is (node.task in plan.COMPILED), node


def measured(run, value, settings=None):
    """Writes the record of kNN as the task itself would, for the encoder that is certified now."""
    (node,) = plan.choose(["knn"])
    config = plan.configure([node], "paper", settings or {})["knn"][1]
    identity = record.identity(
        "knn",
        as_json(config),
        seed=0,
        limit=None,
        encoder_fingerprint=run.encoder_fingerprint("mine"),
        data_fingerprint=fingerprint(run.data(node)),
        inputs={},
    )
    encoder = SimpleNamespace(source={}, spec=SimpleNamespace(architecture="ViT-B/16"))
    entry = task.start(
        identity, "paper", node, encoder, Env(data_root=run.identities.data_root, out_dir=run.out / "mine/knn")
    )
    record.write(run.out / "records", {**entry, "status": "ok", "metrics": {"top1": value}})


def shown(run):
    (row,) = (
        row
        for row in tables.build(run.out, ["mine"], run.entries(["mine"], plan.choose(["knn"]))).rows
        if row.label == "mine"
    )
    return row.cells["kNN"].value or row.cells["kNN"].text


def test_the_record_of_this_run_is_found_and_shown(run):
    assert run.find("mine", plan.choose(["knn"])[0]) is None
    measured(run, 71.0)
    assert run.find("mine", plan.choose(["knn"])[0])["metrics"] == {"top1": 71.0}
    assert shown(run) == 71.0


def test_another_checkpoint_of_the_same_name_does_not_lend_its_number(run):
    measured(run, 71.0)
    certify(run.out, "another")
    assert shown(run) == "–"


def test_an_encoder_file_is_read_again_when_it_has_become_another(run):
    assert run.encoder_fingerprint("mine") == "this" == run.encoder_fingerprint("mine")
    path = run.out / "mine" / rows.ENCODER
    about, content = path.stat(), path.read_bytes()
    path.write_bytes(content[::-1])
    os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns + 1))
    assert run.encoder_fingerprint("mine") is None
    path.unlink()
    path.write_bytes(content)
    os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))
    assert run.encoder_fingerprint("mine") == "this"


def test_the_records_of_one_row_and_task_are_found_by_their_names(run):
    measured(run, 71.0)
    measured(run, 72.0, {"knn": {"temperature": "0.1"}})
    folder = run.out / "records"
    record.write(folder, record.without_run("mine-knn", "knn", "failed", "broke", 0, None))
    (folder / "mine-knn-half.json").write_text("{")
    assert sorted(entry["metrics"]["top1"] for entry in record.of(folder, "mine", "knn")) == [71.0, 72.0]
    assert [entry["encoder"] for entry in record.of(folder, "mine-knn", "knn")] == ["mine-knn"]
    assert record.of(folder, "*", "knn") == []


def test_a_checkpoint_that_is_refused_does_not_keep_the_number_of_the_one_before(run):
    measured(run, 71.0)
    run.refused.add("mine")
    record.write(run.out / "records", record.without_run("mine", "knn", "failed", "not a checkpoint", 0, None))
    assert shown(run) == "failed"


def test_other_settings_do_not_lend_their_number(run):
    measured(run, 71.0)
    measured(run, 1.0, {"knn": {"temperature": "9"}})  # newer
    assert shown(run) == 71.0


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / rows.ENCODER).write_text("cut"),
        lambda folder: (folder / rows.ENCODER).unlink(),
        lambda folder: (folder / "encoder.certificate.json").write_text("{}"),
        lambda folder: (folder / "encoder.certificate.json").write_text("[]"),
        lambda folder: (folder / "encoder.certificate.json").write_bytes(b"\xff\x00"),
        lambda folder: (folder / rows.SOURCE).write_text("[1"),
    ],
)
def test_a_damaged_encoder_counts_as_none(run, damage):
    measured(run, 71.0)
    damage(run.folders["mine"])
    assert run.encoder_fingerprint("mine") is None and run.find("mine", plan.choose(["knn"])[0]) is None


def test_a_missing_file_that_another_task_needs_is_made_again(run, capsys):
    measured(run, 71.0)
    (path,) = (run.out / "records").iterdir()
    entry = json.loads(path.read_text())
    changed = {**entry, "files": {"classifier.safetensors": "0" * 64}}
    record.write(run.out / "records", changed, replace=True)
    assert run.find("mine", plan.choose(["knn"])[0]) is None
    assert "classifier.safetensors is missing or damaged: measured again" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("node", "setting", "says"),
    [
        ("detection_coco", ("detection", "dataset", "lvis"), "ask for it with --tasks detection_lvis"),
        ("linear_segmentation", ("linear_segmentation", "setup", "multi_scale"), "--tasks linear_segmentation_ms"),
        ("knn_segmentation_voc", ("knn_segmentation_voc", "dataset", "ade20k"), "--tasks knn_segmentation"),
        ("linear_probe", ("linear_probe", "views", "cached"), "--tasks linear_fast"),
        ("knn_segmentation", ("knn_segmentation", "dataset", "cityscapes"), "measured with dataset=ade20k"),
    ],
)
def test_a_setting_cannot_make_a_task_another(node, setting, says):
    given, name, value = setting
    chosen = [one for one in plan.NODES if one.name == node]
    with pytest.raises(UserError, match=f"--set {given}.{name}={value}: {node} is measured with {name}=") as refused:
        plan.configure(chosen, None, {given: {name: value}})
    assert says in str(refused.value)
    same = plan.configure(chosen, None, {given: {name: chosen[0].overrides[name]}})
    assert same == plan.configure(chosen, None, {})
