"""What converting and certifying a ViT-B/16 costs besides imports: at most three times the file in memory. Prints the
seconds (`pytest -s`)."""

import json
import subprocess
import sys
from pathlib import Path

import torch

from evaluate.encoder.model import build
from evaluate.encoder.spec import EncoderSpec

MEASURE = """
import json, os, sys, time
import torch
torch.set_num_threads(int(sys.argv[3]))
from evaluate import convert
import evaluate.mm.backbones.vitdet, evaluate.mm.backbones.segmentation
# Linux: the peak of this program alone; resource.getrusage also counts what the parent had when it forked
peak = lambda: 1024 * next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
before, begun = peak(), time.monotonic()
made = convert.convert(sys.argv[1], sys.argv[2])
ratio = (peak() - before) / os.path.getsize(sys.argv[1])
print(json.dumps({"passed": made.passed, "ratio": ratio, "seconds": time.monotonic() - begun}))
"""


def test_memory_of_a_base_model(tmp_path) -> None:
    spec = EncoderSpec("vit", 768, 12, (0.5,) * 3, (0.5,) * 3, num_heads=12, class_token=True, final_norm=True)
    state = {name: torch.empty(tensor.shape).normal_(0, 0.02) for name, tensor in build(spec).state_dict().items()}
    torch.save({"model": state}, tmp_path / "mae.pth")
    del state
    command = [sys.executable, "-c", MEASURE, str(tmp_path / "mae.pth"), str(tmp_path / "encoder.safetensors"), "2"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr
    measured = json.loads(done.stdout)
    print(measured)
    assert measured["passed"] and measured["ratio"] < 3
