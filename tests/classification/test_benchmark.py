"""The benchmark of the tasks' parts: its rows, with and without a peer."""

import sys
import types

import numpy as np
import pytest

from evaluate import benchmark
from evaluate.classification import benchmark as parts


def test_the_command_prints_a_row_for_each_part(capsys: pytest.CaptureFixture[str]) -> None:
    assert benchmark.main(["knn", "few_shot", "--small", "--rounds", "1"]) == 0
    head, rule, *rows = capsys.readouterr().out.splitlines()
    assert head == "| what | ours | peer | ratio | limit |" and set(rule) == {"|", "-"}
    assert rows[0].startswith("| kNN, 64 of 2,000 x 32, the nearest 20 |")
    assert any(row.startswith("| 1 %, 300 images x 16, 10 classes |") and "scikit-learn" in row for row in rows)
    assert rows[-1] == "| images that both put into one class | 1.0000 | | | |"
    assert all(row.count("|") == 6 for row in rows)


def test_a_peer_that_is_installed_takes_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    class Flat:
        def __init__(self, width: int) -> None:
            self.kept = np.zeros((0, width), np.float32)

        def add(self, rows: np.ndarray) -> None:
            self.kept = rows

        def search(self, rows: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
            cosines = rows @ self.kept.T
            indices = np.argsort(-cosines, axis=1)[:, :count]
            return np.take_along_axis(cosines, indices, 1), indices

    peer = types.ModuleType("faiss")
    peer.IndexFlatIP, peer.omp_set_num_threads = Flat, lambda number: None  # type: ignore[attr-defined]
    peer.__spec__ = types.SimpleNamespace()  # type: ignore[assignment]
    monkeypatch.setitem(sys.modules, "faiss", peer)
    row, same = parts.neighbors(20, 300, 16, 5, rounds=2)
    assert (
        "| faiss " in row
        and row.endswith("| at least 1.0 |")
        and same == "| neighbors that are the same | 1.0000 | | | |"
    )


def test_the_loading_has_a_row_for_each_transform(capsys: pytest.CaptureFixture[str]) -> None:
    """Both load every image: a loader that leaves out a batch that is not full would take no time."""
    assert benchmark.main(["loading", "--small", "--rounds", "1"]) == 0
    rows = capsys.readouterr().out.splitlines()[2:]
    for transform, row in zip(("test crop", "LIN's crop and flip", "FT's augmentation"), rows, strict=True):
        assert row.startswith(f"| loading, 8 JPEGs of 500 x 375, {transform} |") and "timm" in row
        assert 0.2 < float(row.split("|")[4]) < 5


def test_an_unknown_part_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        benchmark.main(["baking"])
    assert ended.value.code == 2 and "baking" in capsys.readouterr().err
