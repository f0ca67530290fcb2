"""The file of a training's curves."""

from pathlib import Path

from evaluate.runtime import curves


def test_what_a_resumed_training_measures_again_is_not_there_twice(tmp_path: Path) -> None:
    curves.begin(tmp_path, 0)
    for step in (1, 2, 3):
        curves.append(tmp_path, step, rate=0.1, loss=step / 3)
    path = tmp_path / curves.FILE
    whole = path.read_text()
    path.write_text(whole + '{"step": 4, "ra')  # killed while writing
    curves.begin(tmp_path, 2)
    assert path.read_text().splitlines() == whole.splitlines()[:2]
    curves.append(tmp_path, 3, rate=0.1, loss=1.0)
    assert path.read_text() == whole
    curves.begin(tmp_path, 0)
    assert path.read_text() == ""
