"""Steps of pretraining and of the tasks on a pretended GPU: nothing of the CPU is mixed in; their waits are told."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.gpu.pretended.expected import check

ROOT = Path(__file__).resolve().parents[2]
PRETRAINING, TASKS = "tests.gpu.pretended.pretraining", "tests.gpu.pretended.tasks"
DENSE, DENSE_TASKS = "tests.gpu.pretended.dense", ("detection", "segmentation")
ALL = ["finetune", "linear_probe", "sweep", "features", "predictions", "knn"]
SHORT = ["--batch", "8", "--set", "depth=2"]  # widths and tokens of ViT-B; no block does what the one before does not
SHORT_RESNET = ["--batch", "8", "--set", "layers=[1,1,1,1]"]
RESNETS = ("simsiam", "moco_v3_resnet", "byol", "simclr", "swav", "mscn")
# A step brings no tensor to the CPU; what is no step brings its results, all from one line.
STEPS = ("views of a micro-batch", "views, forward and backward", "optimizer", "finetune", "linear_probe", "sweep")
ON_A_GPU_WITHOUT_VALUES = """
import torch
from tests.gpu.pretended.audit import pretended_gpu
from tests.gpu.pretended.trace import Trace
trace = Trace()
with pretended_gpu():
    weight = torch.ones(4, 4, device="cuda", requires_grad=True)
    with trace.part("clean"):
        (weight @ weight).sum().backward()
    with trace.part("faulty"):
        loss = (weight @ weight).sum()
        total = torch.zeros((), device="cuda") + loss.detach().cpu()
        if total > 0:
            total = total * torch.tensor(2.0, device="cuda")
    try:
        weight.detach() + torch.ones(4, 4)
    except Exception as error:
        print(type(error).__name__)
clean, faulty = trace.parts
assert not clean["waits"] and not clean["mixed"] and not clean["to_cpu"], clean
print(len(faulty["mixed"]), len(faulty["to_cpu"]), faulty["waits"])
"""
NORMALIZED = """
import torch
from evaluate.data.transforms import normalize
from tests.gpu.pretended.audit import pretended_gpu
from tests.gpu.pretended.trace import Trace
trace = Trace()
with pretended_gpu():
    with trace.part("normalized"):
        normalize(torch.zeros(8, 3, 224, 224, dtype=torch.uint8), (0.5,) * 3, (0.25,) * 3, "cuda")
print(trace.parts[0]["kernels"], trace.parts[0]["waits"], len(trace.parts[0]["mixed"]))
"""


def run(environment, *arguments):
    command = [sys.executable, "-W", "ignore", *arguments]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.parametrize(
    "command",
    [
        pytest.param([PRETRAINING, "--preset", "paper", *SHORT], id="siameseim"),
        pytest.param([PRETRAINING, "--preset", "mae_paper", *SHORT], id="mae"),
        pytest.param([PRETRAINING, "--preset", "moco_v3_vit_paper", *SHORT], id="moco_v3_vit"),
        pytest.param([PRETRAINING, "--preset", "clip_paper", *SHORT, "--set", "text_depth=2"], id="clip"),
        *(pytest.param([PRETRAINING, "--preset", f"{name}_paper", *SHORT_RESNET], id=name) for name in RESNETS),
        *(
            pytest.param([PRETRAINING, "--preset", f"{name}_paper", *SHORT_RESNET, "--set", "bn_group=4"], id=name)
            for name in ("moco_v1", "moco_v2")
        ),
        pytest.param([TASKS, *ALL, "--encoder", "vit_short"], id="tasks"),
        pytest.param([TASKS, "finetune", "features", "--encoder", "resnet50"], id="tasks of a ResNet"),
        *(pytest.param([DENSE, task, "--batch", "2", "--encoder", "vit_short"], id=task) for task in DENSE_TASKS),
    ],
)
def test_no_tensor_of_the_cpu_is_mixed_in(command, pretended, tmp_path):
    print(run(pretended, "-m", *command, "--details", "--json", str(tmp_path / "trace.json")))
    parts = json.loads((tmp_path / "trace.json").read_text())
    assert parts
    for part in parts:
        assert part["operations"] > 2 and part["peak_bytes"] > 2**20 and part["waits"] >= 0
        # mmdet fills its tensors with single numbers of the CPU, and rasterizes outlines there
        ours = [entry for kind in ("mixed", "to_cpu") for entry in part[kind] if not entry["place"].startswith("mm")]
        assert not [entry for entry in ours if entry["kind"].startswith("mixed")], part["part"]
        assert len({entry["place"] for entry in ours}) <= 1, part["to_cpu"]
        assert not (part["part"].partition(":")[0] in STEPS and part["to_cpu"]), part["to_cpu"]
        check(part, command[-1])


def test_views_are_few_kernels_and_add_little_to_a_step(pretended, tmp_path):
    """As many kernels for 512 images as for few, and by the roofline a step with its views takes at most 1.11 times the
    step alone."""
    run(pretended, "-m", PRETRAINING, "--batch", "512", "--json", str(tmp_path / "trace.json"))
    views, step, *_ = json.loads((tmp_path / "trace.json").read_text())
    print(views["kernels"], views["seconds"], step["seconds"])
    assert views["part"] == "views of a micro-batch" and 50 < views["kernels"] <= 100
    assert step["seconds"] <= 1.11 * (step["seconds"] - views["seconds"])


def test_pixels_are_normalized_in_one_pass(pretended):
    assert run(pretended, "-c", NORMALIZED).split() == ["3", "0", "0"]  # two copies to the GPU, and the pass


def test_the_audit_sees_a_copy_to_the_cpu_a_mixed_tensor_and_waits(pretended):
    error, counts = run(pretended, "-c", ON_A_GPU_WITHOUT_VALUES).split("\n")[:2]
    assert error == "FakeTensorDeviceMismatchError"
    assert counts == "1 1 3"  # the copy, the number in the condition, the tensor made there
