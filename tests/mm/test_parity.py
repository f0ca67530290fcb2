"""Our numbers are detectron2's and mmseg's, and the command that says so can say no."""

import json
from pathlib import Path

import pytest

from evaluate.mm import parity

GOLDEN = Path(__file__).parents[1] / "golden" / "dense"


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("*.json")), ids=lambda path: path.stem)
def test_reference_numbers(path: Path) -> None:
    result = parity.compare(path)
    assert result and not {name: pair for name, pair in result.items() if not pair[0] <= pair[1]}


def test_a_changed_number_is_noticed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = json.loads((GOLDEN / "vitdet_backbone.json").read_text())
    content["cases"] = content["cases"][1:]
    content["cases"][0]["last_feat"]["sample_value"][0] += 1e-3
    path = tmp_path / "changed.json"
    path.write_text(json.dumps(content))
    assert parity.main([str(path)]) == 1
    assert "last_feat" in capsys.readouterr().out


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"cases": [{"name": "x"}]}'])
def test_a_file_of_no_known_form_is_refused(tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "odd.json"
    path.write_text(text)
    assert parity.main([str(path)]) == 2
    assert "odd.json" in capsys.readouterr().err
