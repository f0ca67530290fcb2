"""What the user says of a checkpoint reaches the conversion, the row's identity, the record and the table."""

import argparse
import json
from pathlib import Path
from typing import Any

import pytest
import torch

import run_all
from evaluate.checkpoints import command_line, formats
from evaluate.harness import task
from evaluate.runtime.errors import UserError
from tests.checkpoints.tiny_files import checkpoint_of
from tests.worlds import write_world

ROWS = ("one", "two")


def parsed(*argv: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    command_line.add_options(parser, of_rows=True)
    return parser.parse_args(argv)


def test_general_options_reach_all_rows_and_one_row_may_have_its_own() -> None:
    said = parsed("--branch", "target", "--assume", "num_heads=3", "--assume", "two:num_heads=6", "--normalize", "half")
    of_rows = [command_line.options(said, row, ROWS) for row in ROWS]
    assert of_rows[0] == {"branch": "target", "normalize": "half", "assume": {"num_heads": "3"}}
    assert of_rows[1] == {**of_rows[0], "assume": {"num_heads": "6"}}
    assert command_line.options(parsed(), "one", ROWS) == {}


def test_options_pass_through_a_command() -> None:
    said = command_line.options(
        parsed("--prefix", "a.b", "--assume", "mean=0.1,0.2,0.3", "--assume", "activation=gelu")
    )
    assert command_line.options(parsed(*command_line.as_arguments(said))) == said


@pytest.mark.parametrize("texts", [("num_heads",), ("=3",), ("num_heads=",), ("a=1", "a=2"), ("three:a=1",)])
def test_what_cannot_be_meant_is_refused(texts: tuple[str, ...]) -> None:
    with pytest.raises(UserError, match="--assume"):
        command_line.options(parsed(*(f"--assume={text}" for text in texts)), "one", ROWS)


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two checkpoints of one content that says nothing of mean and std, and a world."""
    folder = tmp_path_factory.mktemp("said")
    write_world(folder / "world", train=4, val=2)
    known = next(known for known in formats.FORMATS if known.name == "dino")
    for name in ROWS:
        torch.save(checkpoint_of(known), folder / f"{name}.pth")
    return folder


def record_of(out: Path, row: str) -> dict[str, Any]:
    (found,) = [
        entry for path in (out / "records").glob("*.json") if (entry := json.loads(path.read_text()))["encoder"] == row
    ]
    return found


def test_a_row_of_its_own_assumption_is_another_encoder(
    material: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["--ckpt", *(str(material / f"{name}.pth") for name in ROWS), "--data-root", str(material / "world")]
    command += ["--tasks", "knn", "--preset", "demo", "--device", "cpu", "--workers", "0", "--out", str(tmp_path)]
    assert run_all.main([*command, "--assume", "two:num_heads=4", "--assume", "two:mean=0.4,0.4,0.4"]) == 0
    capsys.readouterr()
    one, two = (record_of(tmp_path, row) for row in ROWS)
    assert one["encoder_fingerprint"] != two["encoder_fingerprint"]
    assumed = {row: " ".join(record_of(tmp_path, row)["encoder_source"]["assumed"]) for row in ROWS}
    table = (tmp_path / "table.md").read_text()
    for text in one["encoder_source"]["assumed"]:
        assert f"one: assumed of its encoder: {text.split(' ')[0]}" in table
    assert "num_heads" in assumed["one"] and "num_heads" not in assumed["two"], "what was said is not assumed"


def test_a_task_takes_them_too_and_keeps_encoders_apart(material: Path, tmp_path: Path) -> None:
    command = ["--ckpt", str(material / "one.pth"), "--data-root", str(material / "world"), "--preset", "demo"]
    command += ["--device", "cpu", "--workers", "0", "--out", str(tmp_path)]
    assert task.main("knn", command) == 0
    assert task.main("knn", [*command, "--normalize", "half"]) == 0
    entries = [json.loads(path.read_text()) for path in (tmp_path / "records").glob("*.json")]
    assert len({entry["encoder_fingerprint"] for entry in entries}) == 2 and len({e["work"] for e in entries}) == 2


def test_an_encoder_file_takes_none(material: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["--data-root", str(material / "world"), "--preset", "demo", "--device", "cpu", "--workers", "0"]
    command += ["--out", str(tmp_path)]
    assert task.main("knn", ["--ckpt", str(material / "one.pth"), *command]) == 0
    capsys.readouterr()
    own = str(tmp_path / "one" / "encoder.safetensors")
    assert task.main("knn", ["--ckpt", own, *command, "--normalize", "half"]) == 2
    assert "is already an encoder file" in capsys.readouterr().err
