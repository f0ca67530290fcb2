"""A user's own class: what it must keep, how each lie is refused, and that its file runs only when it is named."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from evaluate import encoder as encoders
from evaluate import knn
from evaluate.checkpoints import conversion
from evaluate.checkpoints.certificate import Certificate
from evaluate.encoder import own
from evaluate.harness.task import main
from evaluate.runtime.errors import UserError
from results import record
from tests.worlds import write_folder

ROOT = Path(__file__).parents[2]
EXAMPLE = re.search(r"```python\n(.+?)```", (ROOT / "docs/own_encoder.md").read_text(), re.DOTALL)[1]  # type: ignore[index]
SMALL = EXAMPLE.replace("= 224, 32", "= 64, 32")


@pytest.fixture(autouse=True)
def nothing_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own, "_allowed", {})


def written(folder: Path, *changes: tuple[str, str]) -> str:
    """The example with changes, as FILE.py:CLASS."""
    text = SMALL
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    (folder / "mine.py").write_text(text)
    return f"{folder / 'mine.py'}:MyNet"


def test_the_documented_example_is_short_and_certified(tmp_path: Path) -> None:
    assert len(EXAMPLE.splitlines()) <= 40
    code = written(tmp_path)
    model = own.allow(code).made()
    torch.save({"state_dict": model.state_dict()}, tmp_path / "weights.pth")
    path = conversion.ensure(f"{tmp_path / 'weights.pth'}@{code}", tmp_path / "out.safetensors")
    loaded = encoders.load(path)
    images = torch.randn(2, 3, 96, 64)
    torch.testing.assert_close(loaded.pooled(images), model.eval().pooled(images))
    certificate = Certificate.read(encoders.certificate_path(path))
    assert len(certificate.checks) == 6 and all(check["passed"] for check in certificate.checks.values())
    assert loaded.spec.maps == (16, 32, 64, 128) and loaded.spec.architecture == "mine.py:MyNet"
    assert "not certified against a reference" in certificate.notes[0]


TRAINS = """    def train(self, mode=True):
        if mode:
            self.stages[0][0].weight.data *= 1.1
        return super().train(mode)

"""
INPUT_POOLED = ("self.features(images)[-1].mean(dim=(2, 3))", "images.mean(dim=(2, 3))")
LIES = {
    "no method": ([("def pooled", "def pool")], "has no method pooled"),
    "no such class": ([("class MyNet(nn.Module)", "class Net(nn.Module)")], "has no class MyNet"),
    "arguments": (
        [("def __init__(self)", "def __init__(self, width)")],
        "raised TypeError .* in line|raised TypeError",
    ),
    "syntax": (
        [("def features(self, images: Tensor) -> list[Tensor]:", "def features(")],
        "raised SyntaxError .* in line",
    ),
    "raises": (
        [("        maps = []", "        raise RuntimeError('no maps today')")],
        r"RuntimeError \(no maps today\) in line 20",
    ),
    "leaves": ([("        maps = []", "        raise SystemExit(0)")], "raised SystemExit"),
    "prints": ([("        maps = []", "        maps = []\n        print('here I am')")], "prints .'here I am'"),
    "prints when read": ([("class MyNet", "print('hello')\n\n\nclass MyNet")], "prints .'hello'"),
    "shape": ([(".mean(dim=(2, 3))", "")], r"gave a tensor of shape \(2, 128, 2, 2\)"),
    "width": ([(".mean(dim=(2, 3))", ".flatten(1)")], "512 values at 64 px and 1152 at 96"),
    "tokens": ([("return maps", "return maps[-1].flatten(2).mT[:, 1:]"), INPUT_POOLED], r"\(2, 3, 128\); patch tokens"),
    "maps": ([("return maps", "return maps[:2]+maps[3:]+maps[3:]")], "of sides 16, 8, 2, 2 for an image of 64 px"),
    "no tensor": (
        [("return maps", "return {'maps': maps}"), INPUT_POOLED],
        "features.. of 2 images of 64 px gave a dict",
    ),
    "mean": ([("return (0.485, 0.456, 0.406)", "return (0.485,)")], r"normalization\(\) gave"),
    "draws": ([("maps.append(images)", "maps.append(nn.functional.dropout(images))")], "differ from call to call"),
    "batch": (
        [
            (
                "            images = stage(images)",
                "            images = stage(images)\n            images = images - 1e-3 * images.mean(0)",
            )
        ],
        "depend on the other images",
    ),
    "training": (
        [
            (
                "    def features",
                TRAINS + "    def features",
            )
        ],
        r"change after train\(\) and eval\(\)",
    ),
    "state": (
        [("        maps = []", "        maps = []\n        self.stages[0][1].num_batches_tracked += 1")],
        "num_batches_tracked changes",
    ),
    "not finite": ([(".mean(dim=(2, 3))", ".mean(dim=(2, 3)) / 0")], "not finite"),
}


@pytest.mark.parametrize("name", LIES)
def test_a_lie_is_refused_in_one_sentence(name: str, tmp_path: Path) -> None:
    changes, said = LIES[name]
    code = written(tmp_path, *changes)
    with pytest.raises(UserError, match=said) as refused:
        conversion.convert(code, tmp_path / "out.safetensors")
    assert "\n" not in str(refused.value) and "mine.py" in str(refused.value)
    assert not (tmp_path / "out.safetensors").exists()


def test_a_class_that_changes_its_shapes_later_is_refused(tmp_path: Path) -> None:
    code = written(tmp_path, (".mean(dim=(2, 3))", ".mean(dim=(2, 3))[:, : 64 if len(images) == 5 else 128]"))
    loaded = encoders.load(conversion.ensure(code, tmp_path / "out.safetensors"))
    with pytest.raises(UserError, match=r"gave not \(5, 128\), which its certificate promises"):
        loaded.pooled(torch.randn(5, 3, 64, 64))
    with pytest.raises(UserError, match="takes images of multiples of 32 px, not of 40"):
        loaded.pooled(torch.randn(2, 3, 40, 40))


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    torch.save({"weight": torch.zeros(3)}, tmp_path / "weights.pth")
    with pytest.raises(UserError, match=r"the file lacks stages.0.0.weight and \d+ more; has besides weight"):
        conversion.convert(f"{tmp_path / 'weights.pth'}@{written(tmp_path)}", tmp_path / "out.safetensors")


def test_the_file_runs_only_when_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = written(tmp_path)
    path = conversion.ensure(code, tmp_path / "out.safetensors")
    first = encoders.load(path).fingerprint
    assert str(tmp_path).encode() not in path.read_bytes()
    monkeypatch.setattr(own, "_allowed", {})
    with pytest.raises(UserError, match="its file is run only when named; give --ckpt FILE@mine.py:MyNet"):
        encoders.load(path)
    written(tmp_path, ('"""A small', '"""Another small'))  # the same numbers: but who knows
    own.allow(code)
    with pytest.raises(UserError, match="is not as it was when this encoder was made"):
        encoders.load(path)
    assert encoders.load(conversion.ensure(code, path)).fingerprint != first


def test_from_the_class_to_a_marked_table(tmp_path: Path) -> None:
    """By ``run_all.py``; then by the task alone, which finds the record; and after a change of the file it is none."""
    data, out = tmp_path / "data", tmp_path / "out"
    write_folder(data / "imagenet/train", 6, seed=1)
    write_folder(data / "imagenet/val", 3, seed=2)
    code = written(tmp_path)
    torch.save(own.allow(code).made().state_dict(), tmp_path / "weights.pth")
    command = [sys.executable, "run_all.py", "--ckpt", f"mine={tmp_path / 'weights.pth'}", "--encoder", code]
    command += ["--data-root", str(data), "--tasks", "knn", "--preset", "demo", "--out", str(out), "--device", "cpu"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (
        "mine: user's encoder, not certified against a reference (mine.py:MyNet, SHA-256"
        in (out / "table.md").read_text()
    )
    (entry,) = record.read_all(out / "records")
    assert entry["architecture"] == "mine.py:MyNet" and own.allow(code).sha256[:12] in json.dumps(entry)
    written(tmp_path, ('"""A small', '"""Another small'))
    alone = ["--ckpt", f"{tmp_path / 'weights.pth'}@{code}", "--name", "mine", "--preset", "demo", "--device", "cpu"]
    assert main("knn", [*alone, "--data-root", str(data), "--out", str(out)]) == 0
    entries = record.read_all(out / "records")
    assert len({one["encoder_fingerprint"] for one in entries}) == len(entries) == 2
    assert knn.PRESETS["demo"].img_size == 32
