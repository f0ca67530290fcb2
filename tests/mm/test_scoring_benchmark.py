"""The benchmark of scoring prints rows whose numbers are the peer's."""

import pytest

from evaluate.mm import scoring_benchmark
from evaluate.mm.scoring_benchmark import main, rows


def test_rows_beside_pycocotools(capsys: pytest.CaptureFixture[str]) -> None:
    """Our memory with the data is below the peer's already at a few images; the numbers are equal."""
    assert main(["--images", "40"]) == 0
    said = capsys.readouterr().out
    assert "| what | ours | peer | ratio | limit |" in said and "box AP, mask AP" in said
    cells = {line.split("|")[1].strip(): line.split("|")[4] for line in said.splitlines()[2:]}
    assert float(cells["COCO, 40 images x 100: speed"]) > 1  # at least 2.5 with more images
    assert float(cells["COCO, 40 images x 100: memory"]) < 1
    assert float(cells["COCO, 40 images x 100: box AP, mask AP"].split()[0]) < 1e-6


def test_a_peer_that_is_not_installed_has_no_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring_benchmark.importlib.util, "find_spec", lambda name: None)
    one = {"seconds": 1.0, "bytes": 1, "process": 1, "values": [1.0, 1.0]}
    monkeypatch.setattr(scoring_benchmark, "apart", lambda *_: one)
    assert "lvis is not installed" in rows(3, lvis=True)[-1]
