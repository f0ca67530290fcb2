"""What a run leaves for a person: log.jsonl, TensorBoard events, the picture, a bar on a terminal; and none of it
changes the run."""

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pretrain import train
from pretrain.log import Log
from pretrain.methods.siameseim import PAPER
from tests.terminals import shown_on

TINY = (
    "epochs=2",
    "warmup_epochs=0.5",
    "batch_size=4",
    "embed_dim=24",
    "num_heads=2",
    "depth=1",
    "decoder_embed_dim=24",
    "decoder_num_heads=2",
)
ROOT = Path(train.__file__).parents[1]


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    for label in ("a", "b"):
        (folder / label).mkdir()
        for i in range(6):
            Image.fromarray(np.random.default_rng(i).integers(0, 255, (40, 40, 3), dtype=np.uint8)).save(
                folder / label / f"{i}.png"
            )
    return folder


def arguments(images, out, *options):
    return [
        "--preset",
        "demo",
        "--data",
        str(images),
        "--out",
        str(out),
        "--device",
        "cpu",
        *options,
        *(p for s in TINY for p in ("--set", s)),
    ]


def test_the_measures_change_nothing_and_are_logged(images, tmp_path):
    assert train.main(arguments(images, tmp_path / "seen", "--monitor-epochs", "1")) == 0
    assert train.main(arguments(images, tmp_path / "unseen", "--monitor-epochs", "0")) == 0
    seen, unseen = (
        torch.load(tmp_path / name / "checkpoint.pth", weights_only=True)["model"] for name in ("seen", "unseen")
    )
    assert all(torch.equal(seen[name], unseen[name]) for name in seen)
    entries = [json.loads(line) for line in (tmp_path / "seen/log.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in entries if "loss" in entry] == [3, 6]
    assert [entry["step"] for entry in entries if "knn_top1" in entry] == [3, 6]
    assert list((tmp_path / "seen/tensorboard").glob("events.*"))
    assert Image.open(tmp_path / "seen/batch.png").size == (448, 4 * 224)


def test_a_resumed_log_drops_what_lies_past_its_checkpoint(tmp_path):
    (tmp_path / "log.jsonl").write_text(
        "".join(json.dumps({"step": step, "loss": 1.0}) + "\n" for step in (50, 100, 150)) + '{"step": 20'
    )
    with Log(tmp_path, PAPER, 100, 100) as log:
        log.entry(101, loss=0.5)
    assert [json.loads(line)["step"] for line in (tmp_path / "log.jsonl").read_text().splitlines()] == [50, 100, 101]


def test_an_entry_is_the_mean_of_its_steps(tmp_path):
    with Log(tmp_path, PAPER, 2, 0) as log:
        for step, loss in enumerate((1.0, 2.0, 5.0, 7.0), 1):
            log.step(step, torch.tensor(loss), torch.tensor(1.0), 0.1)
    assert [json.loads(line)["loss"] for line in (tmp_path / "log.jsonl").read_text().splitlines()] == [1.5, 6.0]


def test_a_terminal_shows_a_bar(images, tmp_path):
    reader, writer = pty.openpty()
    command = [sys.executable, "-m", "pretrain.train", *arguments(images, tmp_path)]
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=writer, stderr=subprocess.PIPE, env={**os.environ, "TERM": "xterm", "COLUMNS": "120"}
    )
    os.close(writer)
    shown = shown_on(reader)
    assert process.wait() == 0, process.stderr.read().decode()
    assert "━" in shown.decode() and b"img/s" in shown and b"knn_top1" in shown
