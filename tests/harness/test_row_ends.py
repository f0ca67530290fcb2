"""Rows from the file to the table where something unusual is measured, or ends."""

import json
import re
from pathlib import Path

import pytest
import torch

import run_all
from evaluate import convert
from evaluate.checkpoints import formats
from tests.checkpoints.tiny_files import checkpoint_of
from tests.worlds import write_world

ROOT = Path(__file__).parents[2]
NET = re.search(r"```python\n(.+?)```", (ROOT / "docs/own_encoder.md").read_text(), re.DOTALL)[1]  # type: ignore[index]
NET = NET.replace("= 224, 32", "= 64, 32")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_world(tmp_path_factory.mktemp("world"), train=10, val=5)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An encoder file with its certificate, as evaluate.convert leaves it."""
    folder = tmp_path_factory.mktemp("encoder")
    torch.save(checkpoint_of(formats.by_name("simsiam")), folder / "x.pth")
    assert convert.main([str(folder / "x.pth"), "--out", str(folder / "mine.safetensors")]) == 0
    return folder / "mine.safetensors"


def command(root: Path, out: Path, *rows: str) -> list[str]:
    sizes = [part for name in ("img_size=64", "resize=64") for part in ("--set", f"knn.{name}")]
    return ["--ckpt", *rows, "--data-root", str(root), "--tasks", "knn", "--device", "cpu", "--out", str(out), *sizes]


def cells(out: Path) -> dict[str, str]:
    lines = [
        line.strip("| ").split("|") for line in (out / "table.md").read_text().splitlines() if line.startswith("| ")
    ]
    place = [cell.strip() for cell in lines[0]].index("kNN")
    return {line[0].strip(): line[place].strip() for line in lines[1:]}


def test_an_encoder_file_is_a_row_of_its_own(root: Path, encoder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run_all.main(command(root, out, f"mine={encoder}")) == 0
    assert re.match(r"\**\d", cells(out)["mine"])
    copied = out / "mine/encoder.safetensors"
    assert copied.read_bytes() == encoder.read_bytes()
    assert json.loads(copied.with_name("encoder.certificate.json").read_text())["passed"] is True
    encoder.rename(encoder.with_name("moved.safetensors"))
    try:
        assert run_all.main(command(root, out, f"mine={encoder.with_name('moved.safetensors')}")) == 0
    finally:
        encoder.with_name("moved.safetensors").rename(encoder)


@pytest.mark.parametrize(
    ("ends", "says"),
    [
        ("len(images) > 1", "it ended without writing"),  # in its certificate
        ("len(images) > 8", "it ended without a record"),  # in kNN
    ],
)
def test_what_ends_as_if_all_were_well_fails_alone(
    root: Path, encoder: Path, tmp_path: Path, ends: str, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code = NET.replace(
        "        return self.features(images)[-1]",
        f"        if {ends}:\n            __import__('os')._exit(0)\n        return self.features(images)[-1]",
    )
    (tmp_path / "net.py").write_text(code)
    out = tmp_path / "out"
    assert run_all.main(command(root, out, f"gone={tmp_path / 'net.py'}:MyNet", f"mine={encoder}")) == 1
    said = capsys.readouterr()
    assert says in said.out + said.err and "Traceback" not in said.out + said.err
    table = cells(out)
    assert table["gone"] == "failed" and re.match(r"\**\d", table["mine"]), "the other row goes on"
