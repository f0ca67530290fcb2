"""Which device a command takes: words, GPUs that cannot be used, lists of visible GPUs, and float32 that is float32."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import run_all
from evaluate import calibrate
from evaluate.harness import task
from evaluate.mm import benchmark as mm_benchmark
from evaluate.mm.parity import __main__ as mm_parity
from evaluate.runtime import devices
from evaluate.runtime.errors import UserError
from pretrain import parity, train
from pretrain.benchmark import __main__ as benchmark

ROOT = Path(__file__).resolve().parents[2]
NO_GPU = {"CUDA_VISIBLE_DEVICES": ""}
HOW = """
import json, sys, torch
from pathlib import Path
from evaluate.runtime import devices, precision
from evaluate.runtime.errors import UserError
devices.DEVICE_FILES = Path(sys.argv[1])
try:
    device = devices.resolve_device(sys.argv[2])
except UserError as error:
    print(json.dumps(str(error)))
else:
    flags = lambda: [torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32]
    found = {"device": device, "tf32 at first": flags(), "gpus": devices.visible_gpus(device)}
    for name in ("tf32", "fp16", "tf32", "fp32"):
        with precision.autocast(name, device):
            found[name] = flags()
    print(json.dumps({**found, "hardware": devices.hardware(device)}))
"""


def resolved(environment, word, folder, **changes):
    """What ``resolve_device`` and its neighbors say in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", HOW, str(folder), word],
        cwd=ROOT,
        env={**environment, **changes},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("gpu", "--device is auto, cpu, cuda or cuda:N, not 'gpu'"),
        ("cuda:x", "not 'cuda:x'"),
        ("mps", "--device mps is not supported"),
        ("cuda", "--device cuda cannot be used: torch "),
    ],
)
@pytest.mark.parametrize("command", ["run_all", "task", "calibrate", "train", "benchmark", "parity", "mm", "mm parity"])
def test_every_command_refuses_a_word_in_one_sentence(command, word, says, tmp_path, capsys, monkeypatch):
    for name, value in NO_GPU.items():
        monkeypatch.setenv(name, value)
    common = ["--data-root", str(tmp_path), "--out", str(tmp_path / "out"), "--device", word]
    (tmp_path / "a.pth").touch()
    (tmp_path / "imagenet").mkdir()
    ckpt = ["--ckpt", str(tmp_path / "a.pth")]
    status = {
        "run_all": lambda: run_all.main([*ckpt, *common]),
        "task": lambda: task.main("knn", [*ckpt, *common]),
        "calibrate": lambda: calibrate.main([*ckpt, *common]),
        "train": lambda: train.main(["--data", str(tmp_path), *common[2:]]),
        "benchmark": lambda: benchmark.main(["--device", word]),
        "parity": lambda: parity.main(["x.json", "--device", word]),
        "mm": lambda: mm_benchmark.main(["--device", word]),
        "mm parity": lambda: mm_parity.main(["x.json", "--device", word]),
    }[command]()
    said = capsys.readouterr().err.strip()
    assert status == 2 and says in said and len(said.splitlines()) == 1, said


def test_a_gpu_in_the_machine_that_torch_cannot_use_is_an_error_and_not_a_cpu(pretended, tmp_path):
    """As with a driver older than torch's wheel: the driver, the wheel and the remedy are named."""
    (tmp_path / "nvidia0").touch()
    said = resolved(pretended, "auto", tmp_path, PRETENDED_DRIVER="12040")
    for part in ("this machine has a GPU", "12040", "built for CUDA 13.0", "install a driver", "--device cpu"):
        assert part in said, said
    assert "12040" in resolved(pretended, "cuda", tmp_path, PRETENDED_DRIVER="12040")
    assert resolved(pretended, "cpu", tmp_path, PRETENDED_DRIVER="12040")["device"] == "cpu"
    assert resolved(pretended, "auto", tmp_path, PRETENDED_DRIVER="12040", **NO_GPU)["device"] == "cpu", "hidden"
    (tmp_path / "nvidia0").unlink()
    assert resolved(pretended, "auto", tmp_path, PRETENDED_GPUS="0")["device"] == "cpu", "a login node"


def test_a_number_beyond_the_gpus_is_refused(pretended, tmp_path):
    said = resolved(pretended, "cuda:2", tmp_path, PRETENDED_GPUS="2")
    assert said.startswith("--device cuda:2 cannot be used: torch can use 2 GPUs here, numbered from 0")


@pytest.mark.parametrize(
    ("listed", "word", "gpus"),
    [
        (None, "auto", ["0", "1"]),
        ("4,5", "auto", ["4", "5"]),
        ("4,5", "cuda:1", ["5"]),
        ("GPU-8932f937, MIG-2af0/1/0", "cuda", ["GPU-8932f937", "MIG-2af0/1/0"]),
        ("6,5,-1,4", "cuda", ["6", "5"]),
    ],
)
def test_a_job_gets_a_gpu_of_the_list_that_was_given(listed, word, gpus, pretended, tmp_path):
    changes = {} if listed is None else {"CUDA_VISIBLE_DEVICES": listed}
    assert resolved(pretended, word, tmp_path, PRETENDED_GPUS="2", **changes)["gpus"] == gpus


def test_only_the_word_tf32_lets_a_gpu_shorten_float32(pretended, tmp_path):
    found = resolved(pretended, "auto", tmp_path)
    assert found["device"] == "cuda" and found["tf32"] == [True, True]
    assert found["tf32 at first"] == found["fp16"] == found["fp32"] == [False, False]
    assert found["hardware"] == {"gpu": "Pretended H100", "gpu_gib": 79.2, "driver": devices.driver(), "cuda": "13.0"}


def test_the_version_of_the_driver(tmp_path, monkeypatch):
    monkeypatch.setattr(devices, "DRIVER_FILE", tmp_path / "version")
    assert devices.driver() == ""
    for line in (
        "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar  5 22:23:56 UTC 2024",
        "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  550.54.15  Release Build  (dvs-builder)",
    ):
        (tmp_path / "version").write_text(f"{line}\nGCC version:  gcc version 12.2.0\n")
        assert devices.driver() == "550.54.15"


def test_a_cpu_has_no_tf32_and_no_hardware_to_tell(monkeypatch):
    from evaluate.runtime import precision

    assert precision.resolve("tf32", "cpu") == "fp32" and precision.resolve("tf32", "cuda:1") == "tf32"
    assert not precision.is_allowed("tf32", "auto"), "a cell measured in it is marked"
    assert devices.hardware("cpu") == {} and devices.visible_gpus("cpu") == []
    with pytest.raises(UserError, match="not 'CUDA'"):
        devices.resolve_device("CUDA")
