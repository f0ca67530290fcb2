"""How a cheap column ranks the published pretrainings beside a dear one."""

import math
import re
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from results import published, ranking, record, tables
from results.__main__ import main
from tests.results.entries import entry


def test_a_rank_correlation_is_scipys() -> None:
    random = np.random.default_rng(0)
    first, second = random.integers(0, 6, (2, 12))  # with ties
    assert ranking.rank_correlation(first, second) == pytest.approx(stats.spearmanr(first, second).statistic, abs=1e-12)
    with pytest.raises(ValueError, match="no order"):
        ranking.rank_correlation([1, 1, 1], [1, 2, 3])


@pytest.mark.parametrize(("count", "truth"), [(6, 0.8), (10, 0.0), (10, 0.9), (20, 0.5)])
def test_the_interval_covers_the_truth(count: int, truth: float) -> None:
    """Of normal numbers with the correlation r, Spearman's coefficient is 6 / pi arcsin(r / 2)."""
    random, covered = np.random.default_rng(count), 0
    for _ in range(400):
        pairs = random.multivariate_normal([0, 0], [[1, truth], [truth, 1]], count)
        low, high = ranking.interval(ranking.rank_correlation(pairs[:, 0], pairs[:, 1]), count)
        covered += low <= 6 / math.pi * math.asin(truth / 2) <= high
    assert 0.92 <= covered / 400 <= 0.995


def test_a_perfect_order_of_few_is_not_certain() -> None:
    low, high = ranking.interval(1.0, 5)
    assert low < 0.5 and high < 1
    assert ranking.interval(-1.0, 5) == (-high, -low)


def line(row: str, column: str, value: float, group: str) -> dict[str, str]:
    facts = {"row": row, "architecture": "Net", "pretrain_data": "IN-1K", "pretrain_epochs": "10"}
    return {**facts, "column": column, "value": str(value), "group": group}


def test_numbers_are_compared_within_one_protocol(monkeypatch: pytest.MonkeyPatch) -> None:
    names = "ABCDE"
    lines = [line(name, "kNN", 10 + place, "knn_dino") for place, name in enumerate(names)]
    lines += [line(name, "COCO box", 40 + place, "coco_fpn_1x") for place, name in enumerate(names)]
    lines += [line(name, "COCO box", 60 - place, "coco_vitdet") for place, name in enumerate(names[:4])]  # too few
    lines += [line(name, "FT", 80 + place, "ft_mae") for place, name in enumerate(names[:4])]  # too few
    untrained = [
        line("random init", column, 1, group) | {"pretrain_epochs": "0"}
        for column, group in (("kNN", "knn_dino"), ("COCO box", "coco_fpn_1x"))
    ]
    monkeypatch.setattr(published, "numbers", lambda: (*lines, *untrained))
    (found,) = ranking.agreements("Net")
    assert (found.cheap, found.dear, found.correlation) == ("kNN", "COCO box", pytest.approx(1))
    assert found.protocols == ("knn_dino", "coco_fpn_1x") and found.pretrainings == tuple(f"{n}@10" for n in names)
    assert found.is_told_from_chance == (found.interval[0] > 0)


def test_the_command_prints_what_the_published_numbers_say(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ranking"]) == 0
    printed = capsys.readouterr().out
    told = re.search(r"LIN and FT: ([+-]\d\.\d\d) \[(.*), (.*)\] over 10 \(.*MAE@1600.*\): LIN ranks as FT", printed)
    assert told and float(told[2]) > 0 and "kNN, nothing can be said of FT" in printed
    assert main(["ranking", "ViT-S/16"]) == 0
    assert "no two columns have 5 published pretrainings in common" in capsys.readouterr().out
    with pytest.raises(SystemExit) as ended:
        main(["ranking", "Vit"])
    assert ended.value.code == 2 and "no published numbers of 'Vit'; there are some of" in capsys.readouterr().err


def test_the_report_shows_them(tmp_path: Path) -> None:
    record.write(tmp_path / "records", entry(metrics={"top1": 80.0}, architecture=published.PAPERS))
    tables.write(tmp_path, tables.build(tmp_path, ["mine"], *record.read(tmp_path / "records")), ["report"])
    page = (tmp_path / "report.html").read_text()
    shown = re.findall(r'data-value="([^"]+)" data-low="([^"]+)" data-high="([^"]+)"', page)
    expected = [(one.correlation, *one.interval) for one in ranking.agreements(published.PAPERS)]
    assert [tuple(map(float, one)) for one in shown] == expected and expected
