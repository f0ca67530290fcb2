"""The sweep: its stacked heads learn as separate ones do, and its choice never sees val."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from evaluate import sweep
from evaluate.classification import setup
from evaluate.classification.head_sweep import HeadInputs
from evaluate.classification.stacked_heads import StackedHeads, make_optimizer
from evaluate.data import imagenet
from evaluate.runtime.errors import UserError
from evaluate.runtime.settings import override
from results import predictions
from tests.factories import environment, resnet, vit
from tests.worlds import write_world

RATES = (1e-3, 3e-2, 0.5)


def test_stacked_heads_equal_separately_trained_ones() -> None:
    torch.manual_seed(0)
    widths, classes, steps, batch = {"a": 6, "b": 10}, 5, 30, 24
    heads = StackedHeads(widths, RATES, classes)
    alone = {}
    for name, width in widths.items():
        for index in range(len(RATES)):
            head = nn.Linear(width, classes)
            rows = slice(index * classes, (index + 1) * classes)
            head.load_state_dict({"weight": heads.weights[name][rows], "bias": heads.biases[name][rows]})
            alone[name, index] = head, torch.optim.SGD(head.parameters(), lr=RATES[index], momentum=0.9)
    together = make_optimizer(heads, momentum=0.9)
    for step in range(steps):
        decay = 1 - step / steps
        features = {name: torch.randn(batch, width) for name, width in widths.items()}
        labels = torch.randint(classes, (batch,))
        for (name, index), (head, single) in alone.items():
            single.param_groups[0]["lr"] = RATES[index] * decay
            single.zero_grad()
            nn.functional.cross_entropy(head(features[name]), labels).backward()
            single.step()
        together.param_groups[0]["lr"] = max(RATES) * decay
        together.zero_grad(set_to_none=False)
        for half in (slice(0, 16), slice(16, None)):  # two micro-batches
            heads.accumulate({name: value[half] for name, value in features.items()}, labels[half], batch)
        together.step()
    features = {name: torch.randn(7, width) for name, width in widths.items()}
    logits = heads(features)
    for (name, index), (head, _) in alone.items():
        torch.testing.assert_close(logits[name][:, index], head(features[name]), rtol=1e-4, atol=1e-5)
    spread = logits["a"][:, 0] - logits["a"][:, 2]
    assert spread.abs().max() > 0.5, "the rates made no difference, so the comparison shows nothing"


SWEEP = replace(sweep.PRESETS["demo"], epochs=4, batch_size=32, micro_batch=16, base_lrs=(1e-4, 0.3))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_world(tmp_path_factory.mktemp("world"))


def test_the_head_is_chosen_on_held_out_train_images(data: Path, tmp_path: Path) -> None:
    env = environment(data, tmp_path, "sweep")
    result = sweep.run(vit(), SWEEP, env)
    told = env.notes["protocol"]
    accuracies = told["held_out_top1"]
    assert set(accuracies) == {"1 blocks, cls", "1 blocks, cls+mean", "2 blocks, cls", "2 blocks, cls+mean"}
    assert all(set(values) == {"0.0001", "0.3"} for values in accuracies.values())
    assert result["held_out_top1"] == max(value for values in accuracies.values() for value in values.values())
    assert accuracies[told["pooling"]][str(told["base_lr"])] == result["held_out_top1"]
    assert told["other_protocol"] and env.notes["images_evaluated"] == env.notes["images_asked"] == {
        "train": 144,
        "held_out": 16,
        "val": 60,
    }
    assert 100 * predictions.outcome(predictions.load(env.out_dir), "top1").mean() == pytest.approx(result["top1"])
    # val has no say in the choice: with all its labels wrong the same head is chosen, and gets nothing right
    other = environment(data, tmp_path / "other", "sweep")
    true_val = imagenet.val_set

    def wrong_val(*arguments: object) -> object:
        images = true_val(*arguments)
        return replace(images, labels=(images.labels + 1) % 4)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(imagenet, "val_set", wrong_val)
        sweep.run(vit(), SWEEP, other)
    assert (
        other.notes["protocol"]["held_out_top1"] == accuracies and other.notes["protocol"]["base_lr"] == told["base_lr"]
    )


def test_the_split_holds_out_a_tenth_of_every_class_and_overlaps_in_nothing(data: Path) -> None:
    train = imagenet.train_set(data)
    kept, held = setup.hold_out(train, 0.1, seed=0)
    assert not set(kept.files) & set(held.files) and set(kept.files) | set(held.files) == set(train.files)
    assert np.bincount(held.labels).tolist() == [4, 4, 4, 4]
    assert kept.fingerprint != held.fingerprint != train.fingerprint
    assert setup.hold_out(train, 0.1, seed=0)[1].files == held.files != setup.hold_out(train, 0.1, seed=1)[1].files
    with pytest.raises(UserError, match="too small to hold out 10% of each"):
        setup.hold_out(imagenet.train_set(data, limit=8), 0.1, seed=0)


def test_inputs_are_normed_tokens_of_the_last_blocks() -> None:
    images = torch.randn(2, 3, 32, 32)
    encoder = vit()
    first, second = encoder.forward_blocks(images, 2)
    found = HeadInputs(encoder, (2,), SWEEP.poolings)(images)
    norm = nn.LayerNorm(24, eps=1e-6, elementwise_affine=False)
    torch.testing.assert_close(found["2 blocks, cls"], torch.cat([norm(first.cls), norm(second.cls)], dim=1))
    torch.testing.assert_close(found["2 blocks, cls+mean"][:, 48:], norm(second.patches).mean(dim=1))
    inputs = HeadInputs(encoder, SWEEP.blocks, SWEEP.poolings)
    assert inputs.widths(32) == {
        "1 blocks, cls": 24,
        "1 blocks, cls+mean": 48,
        "2 blocks, cls": 48,
        "2 blocks, cls+mean": 72,
    }
    assert HeadInputs(vit(class_token=False), SWEEP.blocks, SWEEP.poolings).widths(32) == {
        "1 blocks, mean": 24,
        "2 blocks, mean": 48,
    }
    assert HeadInputs(resnet(), SWEEP.blocks, SWEEP.poolings).widths(32) == {"mean": 512}


def test_a_killed_sweep_continues_to_the_same_record(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, broken = environment(data, tmp_path / "whole", "sweep"), environment(data, tmp_path / "broken", "sweep")
    expected = sweep.run(vit(), SWEEP, whole)
    accumulate, calls = StackedHeads.accumulate, []

    def die_in_the_third_epoch(*arguments: object) -> object:
        calls.append(1)
        if len(calls) == 2 * 8 + 3:
            raise KeyboardInterrupt
        return accumulate(*arguments)

    monkeypatch.setattr(StackedHeads, "accumulate", die_in_the_third_epoch)
    with pytest.raises(KeyboardInterrupt):
        sweep.run(vit(), SWEEP, broken)
    assert sweep.run(vit(), SWEEP, broken) == expected
    assert len(calls) == 2 * 8 + 3 + 2 * 8, "it did not continue after epoch 2 of 4"
    assert broken.notes == whole.notes


def test_bad_settings() -> None:
    for change, says in (("base_lrs=[]", "base_lrs"), ('poolings=["max"]', "poolings"), ("held_out=1.0", "held_out")):
        with pytest.raises(UserError, match=says):
            override(SWEEP, dict([change.split("=")]))
    assert (
        len(sweep.PRESETS["paper"].base_lrs) * len(sweep.PRESETS["paper"].blocks) * len(sweep.PRESETS["paper"].poolings)
        == 52
    )
