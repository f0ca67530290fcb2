"""The errors are right, and best and second best are told apart only where the images can tell."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from results import comparison, formats, predictions, record, tables
from results.comparison import Z
from tests.results.entries import entry


def keep(out: Path, one: dict[str, Any], name: str, outcomes: np.ndarray) -> None:
    folder = out / one["work"]
    folder.mkdir(parents=True, exist_ok=True)
    kept = dict(np.load(folder / "predictions.npz")) if (folder / "predictions.npz").is_file() else {}
    np.savez(folder / "predictions.npz", **{**kept, name: outcomes})


def measured(out: Path, name: str, right: np.ndarray, **changes: Any) -> dict[str, Any]:
    """A kNN record with its outcomes."""
    accuracy = 100 * float(right.mean())
    one = entry(
        "knn",
        encoder=name,
        encoder_fingerprint=f"{name}-fingerprint",
        metrics={"top1": accuracy},
        standard_error={"top1": comparison.binomial(accuracy, len(right))},
        images_evaluated={"val": len(right)},
        architecture="ViT-B/16",
        work=f"{name}/knn-0",
        **changes,
    )
    keep(out, one, "correct", right)
    return one


def test_the_paired_interval_is_the_textbook_one() -> None:
    first, second = np.array([1, 1, 1, 0, 1, 1, 0, 1], bool), np.array([0, 1, 0, 0, 1, 0, 1, 1], bool)
    difference, half = comparison.paired_difference(first, second)
    gaps = [1, 0, 1, 0, 0, 1, -1, 0]
    assert difference == pytest.approx(25.0)
    assert half == pytest.approx(100 * Z * np.std(gaps, ddof=1) / 8**0.5)
    with pytest.raises(ValueError, match="paired"):
        comparison.paired_difference(first, second[:4])


def test_intervals_of_accuracies_cover_the_truth() -> None:
    rng, worlds, images = np.random.default_rng(0), 4000, 2000
    single = paired = 0
    for _ in range(worlds):
        easy = rng.uniform(0, 1, images)  # both encoders find the same images easy
        first, second = (easy + rng.normal(0, 0.3, (2, images))) > [[0.2], [0.25]]
        accuracy = 100 * first.mean()
        single += abs(accuracy - TRUE[0]) <= Z * comparison.binomial(accuracy, images)
        difference, half = comparison.paired_difference(first, second)
        paired += abs(difference - (TRUE[0] - TRUE[1])) <= half
    single, paired = 100 * single / worlds, 100 * paired / worlds
    print(f"accuracy {single:.1f} %, paired difference {paired:.1f} %")
    assert 93 <= single <= 97 and 93 <= paired <= 97


@pytest.mark.parametrize("images", [50, 1000])
def test_no_image_right_is_not_known_for_sure(images: int) -> None:
    half = Z * comparison.binomial(0.0, images)
    assert half == pytest.approx(Z * comparison.binomial(100.0, images))
    least = 100 * (1 - 0.05 ** (1 / images))  # the accuracy with which one in twenty such sets has no hit
    assert 0.8 * least < half < 1.2 * least
    assert comparison.binomial(50.0, images) == pytest.approx(50 / images**0.5)


def chance_above(threshold: float) -> float:
    """Of a uniform plus a normal of deviation 0.3, in percent, by integration."""
    grid = np.linspace(-2, 2, 400_001)
    density = np.exp(-((grid / 0.3) ** 2) / 2) / (0.3 * (2 * np.pi) ** 0.5)
    return 100 * float(np.trapezoid(density * np.clip(1 - (threshold - grid), 0, 1), grid))


TRUE = chance_above(0.2), chance_above(0.25)


def test_a_tie_is_bold_on_both_and_second_is_what_is_worse_for_sure() -> None:
    values = {"a": 80.0, "b": 79.9, "c": 70.0, "d": 69.9, "e": 10.0}
    assert comparison.best_and_second(values, lambda *_: 1.0) == ({"a", "b"}, {"c", "d"})
    assert comparison.best_and_second({"a": 80.0, "b": 79.9}, lambda *_: 1.0) == (set(), set())
    assert comparison.best_and_second(values, lambda *_: None) == (set(), set()), "without errors nothing is known"
    assert comparison.best_and_second({}, lambda *_: 1.0) == comparison.best_and_second({"a": 1.0}, lambda *_: 1.0)


def test_pairs_on_the_same_images_are_told_apart_where_two_sets_would_not_be(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    right = rng.uniform(size=2000) < 0.7
    worse = right & (rng.uniform(size=2000) > 0.02)  # wrong on a few more, and right on none more
    entries = [measured(tmp_path, "good", right), measured(tmp_path, "worse", worse)]
    kept = tables.build(tmp_path, ["good", "worse"], entries)
    assert [row.cells["kNN"].emphasis for row in kept.rows[-2:]] == ["best", "second"]
    other = {**entries[1], "data_fingerprint": "other"}
    apart = tables.build(tmp_path, ["good", "worse"], [entries[0], other])
    assert [row.cells["kNN"].emphasis for row in apart.rows[-2:]] == ["", ""]
    (tmp_path / "worse/knn-0/predictions.npz").unlink()
    apart = tables.build(tmp_path, ["good", "worse"], entries)
    assert [row.cells["kNN"].emphasis for row in apart.rows[-2:]] == ["", ""]


def test_answers_are_compared_as_outcomes_are_also_with_those_of_older_files(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    first, second = rng.uniform(size=200) < 0.7, rng.uniform(size=200) < 0.6
    pair = [measured(tmp_path, "first", first), measured(tmp_path, "second", second)]
    error = comparison.Outcomes(tmp_path).error_of_difference(*pair, "top1")
    labels = rng.integers(0, 7, 200)
    for one, right in list(zip(pair, (first, second), strict=True))[::-1]:
        top = (labels[:, None] + ~right[:, None] + np.arange(5)) % 7
        answers = predictions.Answers(labels, top, np.full((200, 5), 0.2), labels[:0])
        predictions.save(tmp_path / one["work"], {"top1": answers}, tuple("abcdefg"), tuple("abcdefg"))
        assert "correct" not in predictions.load(tmp_path / one["work"])
        assert comparison.Outcomes(tmp_path).error_of_difference(*pair, "top1") == error is not None
        assert predictions.outcome(predictions.load(tmp_path / one["work"]), "top5").tolist() == right.tolist()
    arrays = predictions.load(tmp_path / pair[0]["work"])
    assert predictions.answers_of({**arrays, "label": labels[:9]}) is None, "another file's"


def test_outcomes_that_do_not_give_the_number_are_not_used(tmp_path: Path) -> None:
    """As of a mean over several draws of labels, of which one is kept."""
    right = np.arange(100) < 70
    first, second = measured(tmp_path, "a", right), measured(tmp_path, "b", ~right)
    outcomes = comparison.Outcomes(tmp_path)
    assert outcomes.error_of_difference(first, second, "top1") is not None
    assert outcomes.error_of_difference({**first, "metrics": {"top1": 71.0}}, second, "top1") is None


def test_draws_of_images_are_compared_draw_by_draw(tmp_path: Path) -> None:
    common = np.random.default_rng(0).normal(50, 1, 200)
    entries = [
        entry(
            "detection_coco",
            encoder=name,
            encoder_fingerprint=name,
            metrics={"box_ap": 50 + gap, "mask_ap": 50.0},
            standard_error={"box_ap": 1.0},
            resamples={"box_ap": (common + gap).tolist()},
            architecture="ViT-B/16",
        )
        for name, gap in (("a", 0.5), ("b", 0.0))
    ]
    made = tables.build(tmp_path, ["a", "b"], entries, reference="b")
    difference = made.rows[-1].cells["COCO box"]
    assert (difference.value, difference.emphasis) == (0.5, "best") and difference.error == pytest.approx(0, abs=1e-9)
    without = [{name: value for name, value in one.items() if name != "resamples"} for one in entries]
    difference = tables.build(tmp_path, ["a", "b"], without, reference="b").rows[-1].cells["COCO box"]
    assert difference.error == pytest.approx(2**0.5) and not difference.emphasis
    assert made.rows[-1].cells["COCO mask"].error is None


def test_a_published_number_of_another_protocol_is_never_the_best(tmp_path: Path) -> None:
    one = entry("finetune", metrics={"top1": 70.0}, standard_error={"top1": 0.2}, architecture="ViT-B/16")
    made = tables.build(tmp_path, ["mine"], [one], baselines=["mae", "CLIP (FT-CLIP)"])
    assert {row.label: row.cells["FT"].emphasis for row in made.rows} == {
        "MAE": "best",
        "CLIP (FT-CLIP)": "",
        "mine": "second",
    }


def test_seeds_are_one_cell_with_mean_and_deviation(tmp_path: Path) -> None:
    for seed, accuracy in enumerate((80.0, 81.0, 82.0)):
        one = entry("knn", metrics={"top1": accuracy}, standard_error={"top1": 0.3}, architecture="ViT-B/16")
        record.write(tmp_path / "records", {**one, "seed": seed})
    other = entry("knn", metrics={"top1": 1.0}, settings={"epochs": 3})
    record.write(tmp_path / "records", {**other, "seed": 7})
    text = tables.render(tmp_path, ["mine"], record.read_all(tmp_path / "records"))
    assert "81.0 ± 1.0" in text and "mean ± standard deviation over seeds: mine kNN" in text
    assert text.partition("also measured, and not shown: ")[2].split("\n")[0].strip() == "seed 7, epochs 3"
    (cell,) = (
        row.cells["kNN"]
        for row in tables.build(tmp_path, ["mine"], record.read_all(tmp_path / "records")).rows
        if row.kind == "measured"
    )
    assert cell.error == pytest.approx((0.3**2 + 1 / 3) ** 0.5) and cell.deviation == pytest.approx(1)


def test_the_line_below_a_row_has_half_of_the_interval(tmp_path: Path) -> None:
    one = entry("knn", metrics={"top1": 80.0}, standard_error={"top1": 0.5}, architecture="ViT-B/16")
    lines = formats.as_markdown(tables.build(tmp_path, ["mine"], [one])).splitlines()
    (number,) = (k for k, line in enumerate(lines) if line.startswith("| mine"))
    assert lines[number + 1].startswith("| ± ") and lines[number + 1].split("|")[-2].strip() == "1.0"
    older = {name: value for name, value in one.items() if name != "standard_error"}
    made = tables.build(tmp_path, ["mine"], [older])
    assert "| ± " not in formats.as_markdown(made) and made.rows[-1].cells["kNN"].error is None
