"""The benchmark of ViTDet's attention compares two ways that give the same, and leaves the module as it was."""

import pytest

from evaluate.mm import attention_benchmark
from evaluate.mm.backbones import attention, vitdet


def test_rows_beside_a_bias_as_a_tensor(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(attention_benchmark, "SIDE", 8)
    assert attention_benchmark.main(["--rounds", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "| what | ours | peer | ratio | limit |" and len(lines) == 5
    assert 0 <= float(lines[-1].split("|")[2]) < 1e-5
    assert vitdet.with_positions is attention.with_positions
