"""The benchmark: its plain baseline computes what the method computes, its counts are right, and it runs."""

import copy
import json
from dataclasses import replace
from typing import get_args, get_type_hints

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from evaluate.data import made_photographs
from pretrain.benchmark import __main__, baseline, plain, step
from pretrain.data import views
from pretrain.data.images import decode
from pretrain.methods import configure, method_of, siameseim
from pretrain.methods.siameseim import DEMO
from pretrain.optimizer import make_optimizer

SMALL = replace(DEMO, batch_size=4)


@pytest.fixture(scope="module")
def batch() -> views.Batch:
    images = [
        torch.randint(0, 255, (3, 40, 48), dtype=torch.uint8, generator=torch.Generator().manual_seed(i))
        for i in range(4)
    ]
    return views.augment(views.crop(images, np.arange(4), 0, SMALL), 0, SMALL)


def test_the_plain_baseline_gives_the_methods_loss_gradients_and_moving_average(batch):
    ours, plain = siameseim.build(SMALL).train(), baseline.PlainSiameseIM(SMALL).train()
    plain.load_state_dict(ours.state_dict())
    for model in (ours, plain):
        model.loss(model.online_side(batch), model.target_side(batch)).backward()
    trained = {name: p.grad for name, p in ours.named_parameters() if p.grad is not None}
    assert trained.keys() == {name for name, p in plain.named_parameters() if p.grad is not None}
    for name, parameter in plain.named_parameters():
        if name in trained:
            torch.testing.assert_close(parameter.grad, trained[name], rtol=1e-4, atol=1e-6, msg=name)
    for model in (ours, plain):
        with torch.no_grad():
            model.online.cls_token.add_(1)
        model.update_target(0.9)
    torch.testing.assert_close(plain.state_dict(), ours.state_dict())


@pytest.mark.parametrize("method", plain.PLAIN)
def test_a_plain_loop_makes_the_methods_steps(method, monkeypatch):
    """Three of ours and three plain ones, in which queues fill, give the same weights and statistics."""
    small = {"moco_v1": ["bn_group=4", "queue_size=16"], "swav": ["queue_length=16"]}
    small["moco_v2"] = small["moco_v1"]
    gentle = ["batch_size=8", "optimizer=sgd", "base_lr=0.5"]  # LARS and AdamW make steps of rounding
    config = configure(f"{method}_demo", [*gentle, *small.get(method, [])])
    torch.manual_seed(0)
    images = [torch.randint(0, 255, (3, 40, 48), dtype=torch.uint8) for _ in range(8)]
    crops = plain.crops_of(images, config)
    start = method_of(config).build(config).train()
    ours, theirs = copy.deepcopy(start), copy.deepcopy(start)
    if hasattr(ours, "update_target"):
        monkeypatch.setattr(ours, "after_step", lambda step, total: ours.update_target(0.99))
    for one, take in ((ours, plain.our_step), (theirs, plain.plain_step)):
        optimizer = make_optimizer(one, config, one.constant_rate())
        torch.manual_seed(1)
        for _ in range(3):
            take(one, optimizer, crops, config, "cpu")
    before, found = start.state_dict(), theirs.state_dict()
    for name, after in ours.state_dict().items():
        change, rounding = (after - before[name]).float().norm(), 1e-6 * (1 + after.float().norm())
        assert (found[name] - after).float().norm() <= 0.01 * change + rounding, name


def test_methods_are_timed_beside_plain_loops(capsys, tmp_path):
    command = ["--method", "simsiam", "moco_v3_vit", "--preset", "demo", "--set", "batch_size=4", "--steps", "2"]
    assert __main__.main([*command, "--device", "cpu", "--json", str(tmp_path / "found.json")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4 and lines[2].startswith("| simsiam | 4 | ") and lines[3].startswith("| moco_v3_vit | 4 | ")
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["simsiam"]["ours"] > 0 and found["simsiam"]["ratio"] == sorted(found["simsiam"]["ratio"])


def test_every_precision_has_a_type_of_products():
    assert set(step.DTYPES) == set(get_args(get_type_hints(siameseim.Config)["precision"]))


def test_operations_are_counted(batch):
    plain = baseline.PlainSiameseIM(SMALL).train()
    with FlopCounterMode(display=False) as counter:
        plain.target_side(batch)
        plain.online_side(batch).sum().backward()
    # The counter leaves out what no parameter needs: the gradient of the first layers' input.
    assert counter.get_total_flops() == pytest.approx(4 * step.step_flops(SMALL), rel=0.03)


def test_made_images_have_the_stated_size(tmp_path):
    paths = made_photographs.make_images(tmp_path, 2)
    assert all(
        0.7 * made_photographs.IMAGE_BYTES < path.stat().st_size <= made_photographs.IMAGE_BYTES for path in paths
    )
    assert decode(paths[0]).shape == (3, 375, 500)


@pytest.mark.parametrize("views_alone", [False, True])
def test_a_run_prints_its_table_and_writes_it(views_alone, tmp_path, capsys):
    path = tmp_path / "figures.json"
    arguments = ["--preset", "demo", "--set", "batch_size=2", "--steps", "1", "--device", "cpu", "--json", str(path)]
    assert __main__.main([*arguments, *["--views", "--workers", "1"] * views_alone]) == 0
    printed, found = capsys.readouterr().out, json.loads(path.read_text())
    if views_alone:
        assert all(seconds > 0 for seconds in found["views"].values()) and len(found["views"]) == 5
        assert "| loader, 1 workers (decode, crop) |" in printed
        assert "| per image, PIL |" in printed
        return
    assert found["variants"].keys() == {"ours fp32", "baseline fp32"}
    for variant in found["variants"].values():
        parts = sum(variant["seconds"][part] for part in step.PARTS)
        assert variant["seconds"]["step"] == pytest.approx(parts, rel=1e-3)
        assert 0 < variant["fraction_of_ceiling"] < 1 and variant["peak_bytes"] > 1e8
    assert "speed beside the plain baseline" in printed


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (["--set", "size=3"], "unknown setting"),
        (["--precision", "fp8"], "precision"),
        (["--precision", "fp16"], "GPU"),
        (["--workers", "2"], "--views"),
    ],
)
def test_bad_input_is_named(option, message, capsys):
    assert __main__.main(["--preset", "demo", "--device", "cpu", *option]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("option", "message"), [(["--steps", "0"], "at least 1, not 0"), (["--workers", "-1"], "at least 0, not -1")]
)
def test_an_amount_out_of_range_is_named(option, message, capsys):
    with pytest.raises(SystemExit, match="2"):
        __main__.main(["--preset", "demo", "--device", "cpu", *option])
    assert message in capsys.readouterr().err


def test_a_device_that_cannot_be_used_is_named(capsys):
    assert __main__.main(["--preset", "demo", "--device", "gpu"]) == 2
    assert capsys.readouterr().err == "pretrain.benchmark: --device is auto, cpu, cuda or cuda:N, not 'gpu'\n"
