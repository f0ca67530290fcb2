"""A step of each method but SiameseIM and MAE beside its reference's, and the mistakes that parity must see."""

import copy
import dataclasses
import functools
import json
from pathlib import Path

import open_clip
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from evaluate.runtime.errors import UserError
from pretrain import distributed, norm, optimizer, parity, train
from pretrain.methods import byol, clip, configure, moco_v1, moco_v2, moco_v3_resnet, moco_v3_vit, simclr, simsiam, swav
from pretrain.optimizer import learning_rate, make_optimizer
from pretrain.vit import set_grad_checkpointing
from tests.pretrain.runs import write_images

FOLDER = Path(__file__).parents[1] / "golden" / "methods"
FILES = {module: FOLDER / f"{module.PAPER.method}_step_a.json" for module in (simsiam, moco_v3_vit, byol, simclr)}
FILES |= {module: FOLDER / f"{module.PAPER.method}_step_a.json" for module in (moco_v1, moco_v3_resnet, swav, clip)}
FILES[moco_v2] = FOLDER / "moco_v2_two_processes_step_a.json"
OTHERS = [FOLDER / "optimizers.json", FOLDER / "schedules.json"]


@pytest.mark.parametrize("path", [*FILES.values(), FOLDER / "moco_v2_step_a.json", *OTHERS], ids=lambda path: path.stem)
def test_a_step_equals_the_reference(path, capsys):
    assert parity.main([str(path)]) == 0
    assert capsys.readouterr().out.count(" ok\n") >= 5


def larger(value):
    """A number or samples, moved by ten times the bound."""
    if isinstance(value, dict):
        values = [*value["value"]]
        values[1] += 1e-5 * max(map(abs, values))
        return value | {"value": values}
    return value * (1 + 1e-5)


@pytest.mark.parametrize("kind", ["loss", "prediction2", "grads", "after", "updates", "target_after"])
def test_parity_sees_a_changed_number(kind):
    golden = json.loads(FILES[byol].read_text())
    expected = golden["expected"]
    if "norm" in expected[kind] if isinstance(expected[kind], dict) else True:
        expected[kind] = larger(expected[kind])
    else:
        name = next(reversed(expected[kind]))
        expected[kind][name] = larger(expected[kind][name])
    found = parity.compare(golden)
    assert [name for name, value in found.items() if value > parity.bound_of(golden, name)] == [
        {
            "grads": "gradients",
            "after": "state after the forward pass",
            "target_after": "target after the step",
        }.get(kind, kind)
    ]


@pytest.mark.parametrize("kind", ["no_grad", "zero_grads"])
def test_parity_sees_a_parameter_more_or_less(kind):
    golden = json.loads(FILES[byol].read_text())
    golden["expected"][kind].pop()
    assert parity.compare(golden)["parameters without gradient"] == float("inf")


def test_parity_sees_a_changed_optimizer_and_schedule():
    optimizers, schedules = (json.loads(path.read_text()) for path in OTHERS)
    optimizers["optimizers"]["lars_simclr"]["after"][2]["conv.weight"]["value"][0] += 1e-8
    schedules["schedules"]["simsiam"]["rows"][1]["lr_predictor"] *= 1 + 1e-8
    schedules["schedules"]["byol_1000"]["rows"][5]["momentum"] *= 1 - 2e-6
    for golden, wrong in ((optimizers, {"lars_simclr"}), (schedules, {"simsiam: lr_predictor", "byol_1000: momentum"})):
        found = parity.compare(golden)
        assert {name for name, value in found.items() if value > parity.bound_of(golden, name)} == wrong


def test_parity_names_a_method_that_is_not_here(tmp_path, capsys):
    path = tmp_path / "other.json"
    path.write_text('{"method": "dino", "config": {}}')
    assert parity.main([str(path)]) == 2
    assert "holds no step of a method that is here (siameseim, mae, simsiam" in capsys.readouterr().err


def other(function, change):
    """A function whose result is changed."""
    return lambda *arguments, **named: change(function(*arguments, **named))


def paper(module, **settings):
    """A change of a method's paper preset."""
    return lambda patch: patch.setitem(module.PRESETS, "paper", dataclasses.replace(module.PAPER, **settings))


def of(owner, name, change):
    """A change of an attribute, from its old value to a new one."""
    return lambda patch: patch.setattr(owner, name, change(getattr(owner, name)))


def together(forward):
    """Both views as one batch: they share statistics that are to be their own."""

    def changed(self, batch):
        both = torch.cat([batch.view1, batch.view2])
        return forward(self, dataclasses.replace(batch, view1=both, view2=both))

    return changed


def apart(backbone_forward):
    """Each half of a batch by itself: views whose statistics are to be shared."""
    return lambda self, images: torch.cat([backbone_forward(self, half) for half in images.chunk(2)])


def unnormalized(rows, *_, **__):
    """What normalizes nothing."""
    return rows


def moved_wrongly(target, online, momentum):
    """The moving average with its weights exchanged."""
    for old, new in zip(target.parameters(), online.parameters(), strict=True):
        old.data = (1 - momentum) * old.data + momentum * new.data


def moved_with_buffers(move):
    """The moving average takes the running statistics too."""

    def changed(target, online, momentum):
        move(target, online, momentum)
        for old, new in zip(target.buffers(), online.buffers(), strict=True):
            old.data = new.data.clone()

    return changed


def enqueued_before(keys):
    """The queue has the keys before the queries are compared with it."""

    def changed(self, images):
        found = keys(self, images)
        self._enqueue(found[0])
        return found

    return changed


def of_the_images_alone(contrast):
    """The captions are compared with no images."""

    def changed(images, texts, scale):
        _, logits = contrast(images, texts, scale)
        return F.cross_entropy(logits, torch.arange(len(logits))), logits

    return changed


OURS = {  # what is often wrong in a method, as a change of ours
    simsiam: [
        of(simsiam, "mean_cosine", lambda _: lambda p, z: (p * z).sum(1).mean()),  # not normalized
        of(simsiam, "mean_cosine", lambda cosine: other(cosine, lambda mean: 2 * mean)),  # not halved
        of(torch.Tensor, "detach", lambda _: lambda tensor: tensor.view_as(tensor)),  # the gradient is not stopped
        of(simsiam.SimSiam, "forward", together),
        paper(simsiam, decayed="matrices"),
    ],
    moco_v1: [
        of(moco_v1.MoCo, "_keys", enqueued_before),
        of(moco_v1.MoCo, "_enqueue", lambda _: lambda self, keys: None),
        of(moco_v1, "move_towards", lambda _: moved_wrongly),
        of(moco_v1, "move_towards", moved_with_buffers),
        paper(moco_v1, decayed="matrices"),
    ],
    moco_v2: [
        of(moco_v1, "GroupedBatchNorm", lambda _: lambda channels, group: nn.BatchNorm2d(channels)),  # all together
        of(moco_v1.MoCo, "draw_shuffle", lambda _: property(lambda self: torch.arange, lambda self, given: None)),
        of(torch.Tensor, "argsort", lambda _: lambda shuffle: torch.arange(len(shuffle))),  # keys in the wrong order
        of(norm.torch, "cat", lambda cat: lambda parts, dim=0: cat(parts[::-1], dim)),
        of(moco_v1, "F", lambda _: type("F", (), {"normalize": unnormalized, "cross_entropy": F.cross_entropy})),
    ],
    swav: [
        of(swav, "sinkhorn", lambda sinkhorn: lambda logits, counted, rounds: sinkhorn(logits, counted, 1)),
        of(swav, "sinkhorn", lambda _: lambda logits, *_: logits.softmax(1)),
        of(swav.SwAV, "before_step", lambda _: lambda self, step: None),  # the prototypes are trained at once
        of(swav.Backbone, "features", apart),
        of(optimizer, "LARS", lambda _: lambda groups, rate, *_, **__: torch.optim.SGD(groups, rate, 0.9)),
    ],
    moco_v3_vit: [
        of(moco_v3_vit, "contrast", lambda contrast: lambda q, k, t: contrast(q, k, t) / (2 * t)),  # without 2 T
        of(moco_v3_vit, "contrast", lambda contrast: lambda q, k, t: contrast(k, q, t)),  # queries and keys exchanged
        of(moco_v3_vit, "move_towards", lambda _: moved_wrongly),
        of(moco_v3_vit, "sincos_2d", lambda table: lambda side, width: table(side, width, columns_first=True)),
        paper(moco_v3_vit, decayed="matrices"),
    ],
    moco_v3_resnet: [
        of(moco_v3_vit, "contrast", lambda contrast: other(contrast, lambda loss: loss / 2)),  # averaged, not added
        of(moco_v3_vit, "move_towards", moved_with_buffers),
        of(moco_v3_vit.MoCoV3, "forward", together),
        of(moco_v3_vit, "F", lambda _: type("F", (), {"normalize": unnormalized, "cross_entropy": F.cross_entropy})),
        of(optimizer, "LARS", lambda lars: functools.partial(lars, vectors=True)),  # vectors are adapted too
    ],
    byol: [
        of(byol, "distance", lambda distance: other(distance, lambda loss: loss / 2)),
        of(byol, "distance", lambda _: lambda p, t: (p - t).square().sum(1).mean()),  # not normalized
        of(byol, "move_towards", lambda _: moved_wrongly),
        of(byol.BYOL, "forward", together),
        of(optimizer, "LARS", lambda _: lambda groups, rate, *_, **__: torch.optim.SGD(groups, rate, 0.9)),
    ],
    simclr: [
        of(simclr, "contrast", lambda contrast: other(contrast, lambda found: (found[0] / 2, found[1]))),
        of(simclr.Backbone, "features", apart),
        of(simclr.F, "normalize", lambda _: unnormalized),
        of(simclr.torch.Tensor, "masked_fill", lambda _: lambda rows, *_: rows),  # itself among the others
        of(distributed, "gather_rows", lambda gather: lambda rows: (gather(rows.detach())[0], 0)),  # without gradient
    ],
    clip: [
        of(clip, "contrast", of_the_images_alone),
        of(clip, "F", lambda _: type("F", (), {"normalize": unnormalized, "cross_entropy": F.cross_entropy})),
        of(clip, "contrast", lambda contrast: lambda i, t, scale: contrast(i, t, scale.detach())),  # it is not learned
        of(
            open_clip.model, "text_global_pool", lambda _: lambda tokens, *_, **__: tokens[:, -1]
        ),  # not at the end token
        paper(clip, decayed="all"),
    ],
}


@pytest.mark.parametrize(
    ("module", "number"),
    [(module, number) for module in OURS for number in range(5)],
    ids=lambda value: str(value)[-12:],
)
def test_the_usual_mistakes_show(module, number, monkeypatch):
    golden = json.loads(FILES[module].read_text())
    OURS[module][number](monkeypatch)
    found = parity.compare(copy.deepcopy(golden))
    assert any(value > 1e-4 for name, value in found.items() if name != "inputs"), found


def test_the_papers_runs():
    assert {name: configure(name).lr for name in ("simsiam_100ep", "moco_v3_vit_300ep", "moco_v3_resnet_100ep")} == {
        "simsiam_100ep": pytest.approx(0.1),
        "moco_v3_vit_300ep": pytest.approx(2.4e-3),
        "moco_v3_resnet_100ep": pytest.approx(9.6),
    }
    for name in ("simclr_paper", "simclr_100ep"):  # equal at the batch of the paper
        assert configure(name).lr == pytest.approx(4.8)
    assert configure("byol_paper").lr == pytest.approx(3.2)
    assert configure("moco_v3_vit_paper", model="vit_small").num_heads == 12


def test_the_predictors_rate_is_constant_only_if_asked():
    for asked, groups in ((True, 4), (False, 2)):
        model = simsiam.build(dataclasses.replace(simsiam.PRESETS["demo"], fix_pred_lr=asked))
        made = make_optimizer(model, simsiam.PRESETS["demo"], model.constant_rate())
        train.set_rate(made, 0.5)
        assert len(made.param_groups) == groups
        assert {group["lr"] for group in made.param_groups} == ({0.5, simsiam.PRESETS["demo"].lr} if asked else {0.5})


def test_a_rate_by_epoch_changes_once_an_epoch():
    config = simsiam.PRESETS["demo"]
    assert learning_rate(3.9, config) == learning_rate(3.0, config) > learning_rate(4.0, config)


def test_mocos_rate_falls_twice():
    """After 120 and 160 of 200 epochs, at once."""
    rates = [learning_rate(epoch, moco_v1.PAPER) for epoch in (0, 119.9, 120, 159.9, 160, 199)]
    assert rates == pytest.approx([0.03, 0.03, 0.003, 0.003, 0.0003, 0.0003])


def test_mocos_queue_goes_round():
    model = moco_v2.build(dataclasses.replace(moco_v2.PRESETS["demo"], queue_size=40, bn_group=32))
    before = model.queue.clone()
    keys = torch.randn(32, 32)
    model._enqueue(keys)
    assert torch.equal(model.queue, torch.cat([keys.T, before[:, 32:]], dim=1)) and model.queue_ptr.tolist() == [32]
    model._enqueue(2 * keys)
    assert torch.equal(model.queue[:, 32:], 2 * keys.T[:, :8]) and torch.equal(model.queue[:, :24], 2 * keys.T[:, 8:])
    assert torch.equal(model.queue[:, 24:32], keys.T[:, 24:]) and model.queue_ptr.tolist() == [24]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--set", "queue_size=8"], "queue_size 8 is less than batch_size 32"),
        (["--set", "bn_group=5"], "batch_size 32 is not a multiple of bn_group 5"),
        (
            ["--micro-batch", "8"],
            "takes 8 images at once, which is not a multiple of bn_group 16; change --micro-batch",
        ),
    ],
)
def test_a_batch_that_moco_cannot_divide_is_named(arguments, says, tmp_path, capsys):
    images = write_images(tmp_path / "images", 32)
    command = ["--preset", "moco_v2_demo", "--data", str(images), "--out", str(tmp_path / "out"), "--device", "cpu"]
    assert train.main([*command, *arguments]) == 2
    assert says in capsys.readouterr().err


def test_swavs_queue_takes_part_once_it_is_full():
    """Its rows come first, the images' assignments are taken from the end, and new embeddings go in front."""
    config = dataclasses.replace(swav.PRESETS["demo"], queue_length=12, batch_size=4, epsilon=0.05)
    model = swav.build(config)
    rows = [F.normalize(torch.randn(4, config.dim), dim=1) for _ in range(5)]
    alone = [swav.sinkhorn(model.prototypes(part) / 0.05, torch.ones(len(part)).bool(), 3) for part in rows]
    for part, expected in zip(rows[:3], alone, strict=False):
        assert torch.equal(model._assign(0, part), expected)
    assert torch.equal(model.queue[0], torch.cat(rows[2::-1])) and not model.queue[1].any()
    scores = torch.exp(model.prototypes(torch.cat([*rows[2::-1], rows[3]])) / 0.05).detach().double()
    for _ in range(3):
        scores = scores / scores.sum(0) / scores.shape[1]
        scores = scores / scores.sum(1, keepdim=True) / len(scores)
    found = model._assign(0, rows[3])
    torch.testing.assert_close(found.double(), scores[-4:] * 16, rtol=1e-4, atol=1e-6)
    assert not torch.allclose(found, alone[3], atol=1e-3)
    assert torch.equal(model.queue[0], torch.cat(rows[3:0:-1]))


def test_swavs_queue_begins_to_fill_after_its_epochs():
    model = swav.build(dataclasses.replace(swav.PRESETS["demo"], queue_length=4, queue_epochs=2, epochs=4))
    for step, kept in ((1, False), (19, False), (20, False), (21, True)):  # ten steps are an epoch
        model.queue.fill_(1)
        model.after_step(step, 40)
        assert bool(model.queue.any()) is kept, step


def test_parity_takes_a_queue(capsys):
    """A queue beside the state dict: assignments differ from those without it, all else of the file does not."""
    golden = json.loads(FILES[swav].read_text())
    rows = F.normalize(parity.generate(f"{golden['tag']}/queue", [2, 16, 24]).double(), dim=2)
    golden["config"]["queue_length"] = 16
    golden["inputs"]["queue"] = {"shape": [2, 16, 24]}
    old = rows[:, :8].flatten()
    index = list(range(192, 384))  # the old first half of the first view's queue is now its second
    golden["expected"]["after"]["queue"] = {"norm": 32**0.5, "index": index, "value": old[:192].tolist()}
    found = parity.compare(golden)
    assert found["assignment1"] > 1e-3 and found["embedding"] < 1e-6 and found["state after the forward pass"] < 1e-6


def test_a_resnet_has_no_blocks_to_compute_again(tmp_path, capsys):
    with pytest.raises(UserError, match="--grad-checkpointing"):
        set_grad_checkpointing(simsiam.build(simsiam.PRESETS["demo"]))
    command = ["--preset", "simsiam_demo", "--data", str(write_images(tmp_path / "images", 4)), "--out", str(tmp_path)]
    assert train.main([*command, "--device", "cpu", "--set", "batch_size=4", "--grad-checkpointing"]) == 2
    assert "--grad-checkpointing" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ("layers=[1,1,1]", "layers.*4 whole numbers"),
        ("block=wide", "one of basic, bottleneck"),
        ("width_per_group=16", "width_per_group of basic blocks is 64, not 16"),
        ("optimizer=adam", "one of adamw, sgd, lars"),
        ("lr_scaling=half", "one of linear, sqrt, none"),
        ("proj_layers=1", "from 2 on"),
    ],
)
def test_a_value_that_is_not_legal_is_named(wrong, says):
    with pytest.raises(UserError, match=says):
        configure("simclr_demo", [wrong])
