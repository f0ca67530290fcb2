"""LARS, schedules, layer decay, the few-shot objective and mCE against numbers computed by the reference
implementations.
"""

import json
import random
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from timm.models.vision_transformer import vit_base_patch16_224

from evaluate.classification import imagenet_c
from evaluate.classification.layer_decay import parameter_groups
from evaluate.classification.neighbors import classify
from evaluate.classification.sampler import BatchSampler
from evaluate.classification.schedules import warmup_cosine
from evaluate.classification.softmax_regression import centre_rows, fit
from evaluate.data.transforms import single_draw_box
from evaluate.runtime.lars import LARS

GOLDEN = json.loads((Path(__file__).parents[1] / "golden/protocols.json").read_text())


def randn(key: str, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(zlib.crc32(key.encode())))


def test_lars_after_each_step() -> None:
    golden = GOLDEN["lars"]
    weight, bias = torch.nn.Parameter(randn("lars/weight", 5, 7)), torch.nn.Parameter(randn("lars/bias", 5))
    optimizer = LARS(
        [weight, bias], golden["lr"], golden["weight_decay"], golden["momentum"], golden["trust_coefficient"]
    )
    for step, expected in enumerate(golden["after_step"]):
        weight.grad, bias.grad = randn(f"lars/grad_weight/{step}", 5, 7), randn(f"lars/grad_bias/{step}", 5)
        optimizer.step()
        torch.testing.assert_close(weight.data, torch.tensor(expected["weight"]), rtol=1e-6, atol=1e-7)
        torch.testing.assert_close(bias.data, torch.tensor(expected["bias"]), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("row", GOLDEN["lr_schedule"]["rows"], ids=lambda row: f"{row['epoch']}of{row['epochs']}")
def test_learning_rate(row: dict) -> None:
    rate = warmup_cosine(row["epoch"], row["warmup_epochs"], row["epochs"], row["lr"], row["min_lr"])
    assert rate == pytest.approx(row["expected"], rel=1e-12, abs=1e-18)
    assert rate * 0.5 == pytest.approx(row["group_with_scale_half"], rel=1e-12, abs=1e-18)


def test_layer_decay_of_every_parameter() -> None:
    with torch.device("meta"):
        model = vit_base_patch16_224(num_classes=1000, global_pool="avg", final_norm=True, fc_norm=True)
    model.pos_embed.requires_grad_(False)
    groups = parameter_groups(list(model.named_parameters()), depth=12, rate=0.65, weight_decay=0.05)
    ours = {name: (group["scale"], group["weight_decay"]) for group in groups for name in group["names"]}
    expected = GOLDEN["layer_decay"]["parameters"]
    assert set(ours) == set(expected)
    for name, values in expected.items():
        assert ours[name] == pytest.approx((values["lr_scale"], values["weight_decay"]), rel=1e-12), name


def test_few_shot_rows_and_optimum() -> None:
    golden = GOLDEN["few_shot"]
    n, width, classes = golden["n"], golden["width"], golden["classes"]
    labels = np.arange(n) % classes
    centres = 1.5 * randn("fewshot/centres", classes, width).double()
    values = randn("fewshot/features", n, width).double() + centres[labels]
    rows = centre_rows(values.numpy())
    np.testing.assert_allclose(rows[:2], golden["preprocessed_first_two_rows"], rtol=1e-6)
    weights, objective = fit(rows, labels, l2=0.1)
    assert objective == pytest.approx(golden["objective"], abs=1e-7)
    # softmax does not see a shift common to all classes; at the optimum the penalty leaves none
    np.testing.assert_allclose(weights, golden["coefficients"], atol=2e-4)
    assert fit(rows, labels, l2=0.2)[1] > objective + 0.01


def test_mce() -> None:
    golden = GOLDEN["mce"]
    assert imagenet_c.ALEXNET_ERROR == golden["alexnet_error"]
    assert imagenet_c.mean_corruption_error(golden["model_error"]) == pytest.approx(golden["mce"], rel=1e-12)
    assert imagenet_c.mean_corruption_error(imagenet_c.ALEXNET_ERROR) == pytest.approx(golden["mce_of_alexnet_itself"])
    with pytest.raises(ValueError, match="fog"):
        imagenet_c.mean_corruption_error({name: 0.5 for name in imagenet_c.ALEXNET_ERROR if name != "fog"})


def test_neighbors_equal_a_naive_loop() -> None:
    train = torch.nn.functional.normalize(randn("knn/train", 40, 6), dim=1)
    test = torch.nn.functional.normalize(randn("knn/test", 23, 6), dim=1)
    labels = torch.arange(40) % 3
    predicted = classify(train, labels, test, (1, 5, 100), 0.07)
    for k, (classes, shares) in predicted.items():
        for row, image in enumerate(test):
            cosines = sorted(
                ((float(image @ other), int(label)) for other, label in zip(train, labels, strict=True)), reverse=True
            )[:k]
            votes = [sum(np.exp(cosine / 0.07) for cosine, label in cosines if label == wanted) for wanted in range(3)]
            assert int(classes[row, 0]) == int(np.argmax(votes))
            assert sorted(classes[row].tolist()) == [0, 1, 2], "three classes: no fourth column"
            told = [votes[int(number)] / sum(votes) for number in classes[row]]
            assert shares[row].tolist() == pytest.approx(told, abs=1e-3) and told == sorted(told, reverse=True)


def test_single_draw_box_is_clamped_not_drawn_again() -> None:
    draw = random.Random(0)
    boxes = [single_draw_box(200, 50, (0.9, 1.0), (3 / 4, 4 / 3), draw) for _ in range(200)]
    for top, left, height, width in boxes:
        assert 0 <= top <= 50 - height and 0 <= left <= 200 - width
        assert (
            height == 50
        )  # a square of nine tenths of the area is 95 px high: torchvision would fall back to its centre crop
    assert len({width for _, _, _, width in boxes}) > 10


@pytest.mark.parametrize(("world", "micro_batch"), [(1, 64), (1, 16), (2, 16), (2, 64), (3, 16), (3, 64), (5, 7)])
def test_draws_cover_the_same_batches_on_any_number_of_processes(world: int, micro_batch: int) -> None:
    shares = [
        BatchSampler(201, 64, micro_batch, epochs=2, seed=3, rank=rank, world_size=world) for rank in range(world)
    ]
    chunks = [list(share) for share in shares]
    assert all(len(chunk) == len(share) for chunk, share in zip(chunks, shares, strict=True))
    assert all(len(part) <= micro_batch and len(part) % 2 == 0 for share in chunks for part in share)
    per_step = shares[0].micro_batches
    whole = list(BatchSampler(201, 64, 64, epochs=2, seed=3))
    assert len(whole) == 2 * 3
    for step, batch in enumerate(whole):
        together = [
            draw for share in chunks for part in share[step * per_step : (step + 1) * per_step] for draw in part
        ]
        assert sorted(together) == sorted(batch)
    resumed = BatchSampler(201, 64, micro_batch, epochs=2, seed=3, rank=0, world_size=world, first_step=4)
    assert list(resumed) == chunks[0][4 * per_step :]
