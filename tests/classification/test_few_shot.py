"""The few-shot regression: its lists, its draws, its optimum."""

import hashlib
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from evaluate import few_shot
from evaluate.classification import cached_pass, softmax_regression
from evaluate.data import imagenet, subsets
from evaluate.runtime.env import Env
from evaluate.runtime.errors import UserError
from evaluate.runtime.settings import override
from tests.factories import class_token_vit
from tests.worlds import write_world

DEMO = few_shot.PRESETS["demo"]


@pytest.fixture
def env(tmp_path: Path) -> Env:
    (tmp_path / "out/few_shot").mkdir(parents=True)
    return Env(write_world(tmp_path / "data"), tmp_path / "out/few_shot")


def problem(count: int = 240, width: int = 40, classes: int = 6) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    labels = np.arange(count) % classes
    return softmax_regression.centre_rows(
        rng.normal(size=(count, width)) + 0.4 * rng.normal(size=(classes, width))[labels]
    ), labels


def test_equals_scikit_learn_at_c_10_and_no_other_solver_finds_a_lower_objective() -> None:
    rows, labels = problem()
    weights, objective = softmax_regression.fit(rows, labels, l2=0.1)
    reference = LogisticRegression(C=10, fit_intercept=False, solver="newton-cg", tol=1e-10, max_iter=10_000).fit(
        rows, labels
    )
    np.testing.assert_allclose(weights, reference.coef_, atol=1e-5)
    assert np.array_equal((rows @ weights.T).argmax(1), reference.predict(rows))

    def value(parameters: torch.Tensor) -> torch.Tensor:
        loss = torch.nn.functional.cross_entropy(torch.from_numpy(rows) @ parameters.T, torch.from_numpy(labels))
        return loss + 0.1 / len(rows) / 2 * parameters.square().sum()

    assert objective == pytest.approx(float(value(torch.from_numpy(weights))), abs=1e-12)
    parameters = torch.zeros(6, 40, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [parameters], max_iter=2000, tolerance_grad=1e-12, tolerance_change=1e-16, line_search_fn="strong_wolfe"
    )

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = value(parameters)
        loss.backward()
        return loss

    optimizer.step(closure)
    assert objective - float(value(parameters.detach())) == pytest.approx(0, abs=1e-9)


def test_stopping_short_of_the_optimum_is_an_error_not_a_number(env: Env) -> None:
    with pytest.raises(UserError, match="after 3 iterations.*choose --set max_iterations=N above 3"):
        softmax_regression.fit(*problem(), l2=0.1, max_iterations=3)


def test_float32_goes_all_the_way_and_float64_only_proves_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(softmax_regression, "_go_on", lambda *_: pytest.fail("float64 had to go on"))
    for count, l2 in ((6000, 0.1), (6000, 10.0), (12_000, 0.01)):  # the fewer images, the larger each one's share
        rows, labels = problem(count)
        softmax_regression.fit(rows, labels, l2)


@pytest.mark.parametrize("fault", ["overflows", "stalls", "is far from the optimum", "gives no numbers"])
def test_where_float32_fails_float64_finds_the_same(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, labels = problem()
    l2 = 1e45 if fault == "overflows" else 0.1  # no float32 is so large
    expected = LogisticRegression(C=1 / l2, fit_intercept=False, solver="newton-cg", tol=1e-10, max_iter=10_000)
    value = {"is far from the optimum": 100.0, "gives no numbers": float("nan")}.get(fault)
    if value is not None:
        monkeypatch.setattr(softmax_regression, "descend", lambda *_: torch.full((6, 40), value))
    if fault == "stalls":
        monkeypatch.setattr(softmax_regression, "TRIES", 0)
        raw = torch.from_numpy(rows).float()
        assert not softmax_regression.descend(raw, torch.from_numpy(labels), 6, l2, 1000).any(), "it got somewhere"
    weights, objective = softmax_regression.fit(rows, labels, l2)
    np.testing.assert_allclose(weights, expected.fit(rows, labels).coef_, atol=1e-5)
    if fault != "overflows":
        monkeypatch.undo()
        assert objective == pytest.approx(softmax_regression.fit(rows, labels, l2)[1], abs=softmax_regression.GAP)


def test_a_class_of_any_name_and_gaps_between_the_names() -> None:
    rows, labels = problem()
    weights, objective = softmax_regression.fit(rows, labels, 0.1)
    named, same = softmax_regression.fit(rows, labels * 7 + 3, 0.1)
    assert np.array_equal(weights, named) and objective == same


def test_draws_are_of_every_class_differ_by_seed_and_repeat(env: Env) -> None:
    train = imagenet.train_set(env.data_root)
    rows = [subsets.drawn_rows(train, 5, None, seed, draw) for seed, draw in ((0, 0), (0, 1), (1, 0), (0, 0))]
    assert all(np.bincount(train.labels[part]).tolist() == [5] * 4 and len(set(part)) == 20 for part in rows)
    assert (
        np.array_equal(rows[0], rows[3])
        and not np.array_equal(rows[0], rows[1])
        and not np.array_equal(rows[0], rows[2])
    )
    assert np.bincount(train.labels[subsets.drawn_rows(train, None, 0.1, 0, 0)]).tolist() == [4] * 4
    with pytest.raises(UserError, match="has 40 train images, fewer than shots=41"):
        subsets.drawn_rows(train, 41, None, 0, 0)


def test_several_draws_give_mean_and_deviation_of_separate_runs(env: Env) -> None:
    result = few_shot.run(class_token_vit(), replace(DEMO, shots=3, seeds=3), env)
    accuracies = env.notes["protocol"]["labels"]["accuracies"]
    assert result == {
        "top1": pytest.approx(np.mean(accuracies)),
        "top1_deviation": pytest.approx(np.std(accuracies, ddof=1)),
    }
    assert env.notes["standard_error"]["top1"] == pytest.approx(result["top1_deviation"] / 3**0.5)
    assert env.notes["images_evaluated"] == {"drawn": 12, "val": 60}
    single = few_shot.run(class_token_vit(), replace(DEMO, shots=3), env)
    assert single == {"top1": accuracies[0]}, "the first of three draws is not the draw of a run with one"


def test_ten_percent_is_a_list_or_a_fraction(env: Env) -> None:
    names = sorted(file.name for file in imagenet.train_set(env.data_root).files)[::10]
    (env.data_root / "imagenet/10percent.txt").write_text("\n".join(names))
    assert set(few_shot.run(class_token_vit(), replace(DEMO, subset="10percent"), env)) == {"top1"}
    assert env.notes["images_evaluated"]["10percent"] == 16 and few_shot.reads_if_there(
        replace(DEMO, subset="10percent")
    ) == ("imagenet_10percent",)
    few_shot.run(class_token_vit(), replace(DEMO, fraction=0.1, seeds=2), env)
    assert env.notes["images_evaluated"]["drawn"] == 16 and few_shot.reads_if_there(replace(DEMO, fraction=0.1)) == ()


def test_without_the_list_its_share_is_drawn_and_the_record_says_so(env: Env) -> None:
    (env.data_root / "imagenet/1percent.txt").unlink()
    assert set(few_shot.run(class_token_vit(), DEMO, env)) == {"top1"}
    assert env.notes["images_evaluated"]["drawn"] == 4, "1 % of 40, at least one of each class"
    assert "drawn at random, since imagenet/1percent.txt is absent" in env.notes["protocol"]["other_protocol"]


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"subset": "2percent"}, "'subset' is one of 1percent, 10percent, not '2percent'"),
        ({"shots": "3", "fraction": "0.1"}, "not both"),
        ({"seeds": "3"}, "is one draw; seeds=3 goes with shots or fraction"),
        ({"shots": "0"}, "'shots' is a whole number above 0, or none, not 0"),
        ({"fraction": "1.5"}, "at most 1"),
        ({"precision": "fp8"}, "'precision' is one of auto, fp32"),
    ],
)
def test_settings_that_make_no_sense(settings: dict[str, str], says: str) -> None:
    with pytest.raises(UserError, match=says):
        override(few_shot.Config(), settings)


def test_the_published_list_is_known_by_count_and_digest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = sorted(
        f"n{number:08d}_{image}.JPEG" for number in range(1000) for image in range(13 if number < 811 else 12)
    )
    path = tmp_path / "1percent.txt"
    with pytest.raises(UserError, match="but other names"):
        subsets.check_published("1percent", names, path)
    with pytest.raises(UserError, match="has 12810 names, but the published list of ImageNet-1k has 12811"):
        subsets.check_published("1percent", names[1:], path)
    for end in ("", "\n"):  # whichever way the file ends
        monkeypatch.setattr(subsets, "ONE_PERCENT_MD5", hashlib.md5(("\n".join(names) + end).encode()).hexdigest())
        subsets.check_published("1percent", names, path)
    with pytest.raises(UserError, match="128116"):
        subsets.check_published("10percent", names, path)


def test_a_killed_run_goes_on_and_gives_the_same(env: Env, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = replace(env, out_dir=env.out_dir.parent.parent / "whole/few_shot", notes={})
    whole.out_dir.mkdir(parents=True)
    expected = few_shot.run(class_token_vit(), DEMO, whole)
    write = cached_pass._write_shard

    def die(*arguments: object) -> None:
        write(*arguments)  # type: ignore[arg-type]
        raise KeyboardInterrupt

    for _ in range(2):  # killed after the 1 % images, and after val
        monkeypatch.setattr(cached_pass, "_write_shard", die)
        with pytest.raises(KeyboardInterrupt):
            few_shot.run(class_token_vit(), DEMO, env)
    monkeypatch.setattr(cached_pass, "_write_shard", lambda *_: pytest.fail("what was done is done again"))
    assert few_shot.run(class_token_vit(), DEMO, env) == expected and env.notes == whole.notes


def test_unreadable_images_are_left_out_of_both_sides(env: Env) -> None:
    listed = subsets.listed_set("1percent", env.data_root).files[3]
    in_val = sorted((env.data_root / "imagenet/val").glob("*/*"))[5]
    for path in (listed, in_val):
        path.write_bytes(b"")
    with pytest.raises(UserError, match=listed.name):
        few_shot.run(class_token_vit(), DEMO, env)
    few_shot.run(class_token_vit(), replace(DEMO, max_unreadable_images=1), env)
    assert env.notes["images_evaluated"] == {"1percent": 23, "val": 59}
    assert env.notes["unreadable_images"] == {"1percent": [str(listed)], "val": [str(in_val)]}


@pytest.mark.slow
def test_the_papers_size_is_solved_in_twenty_seconds() -> None:
    """12,811 x 768 features of 1,000 classes; ``fit`` itself refuses an objective that is not within 1e-6 of the
    optimum.
    """
    generator = np.random.default_rng(0)
    labels = np.sort(np.arange(12_811) % 1000)
    features = generator.normal(size=(len(labels), 768)) + generator.normal(size=(1000, 768))[labels]
    begun = time.process_time()
    _, objective = softmax_regression.fit(softmax_regression.centre_rows(features), labels, 0.1)
    seconds = time.process_time() - begun
    print(f"{seconds:.1f} s of processor time, objective {objective:.9f}")
    assert seconds < 20
