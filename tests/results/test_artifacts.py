"""The files that a task leaves are named with what they are."""

import re
from pathlib import Path

from results import artifacts


def test_only_what_is_there_is_named(tmp_path: Path) -> None:
    assert artifacts.found(tmp_path) == {}
    for name in ("predictions.npz", "classes_ms.csv", "training_state.pt"):
        (tmp_path / name).touch()
    assert set(artifacts.found(tmp_path)) == {"predictions.npz", "classes_ms.csv"}


def test_every_file_is_described() -> None:
    told = (Path(artifacts.__file__).with_name("README.md")).read_text()
    assert not [name for name in artifacts.FILES if not re.search(rf"[`/]{re.escape(name)}[`/]", told)]
