"""Which device a command computes on, and what a record says of it."""

import argparse
import os
import re
from pathlib import Path
from typing import Any

from evaluate.runtime import precision
from evaluate.runtime.errors import UserError

DEVICE_FILES = Path("/dev")  # NVIDIA's driver makes nvidia0, nvidia1, … there
DRIVER_FILE = Path("/proc/driver/nvidia/version")
PROCESS_FILE = Path("/proc/self/status")
VISIBLE = "CUDA_VISIBLE_DEVICES"


def add_option(parser: argparse._ActionsContainer) -> None:
    """Adds ``--device``, which ``resolve_device`` reads."""
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: auto)")


def check_word(text: str) -> None:
    """Raises UserError unless a text is ``auto``, ``cpu``, ``cuda`` or ``cuda:N``; needs no torch."""
    if text == "mps":
        raise UserError("--device mps is not supported: the code runs on CUDA and on CPUs; choose --device cpu")
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", text):
        raise UserError(f"--device is auto, cpu, cuda or cuda:N, not {text!r}")


def resolve_device(text: str) -> str:
    """``auto`` (a GPU where there is one), ``cpu``, ``cuda`` or ``cuda:N`` to the device's name for torch.

    From here on a GPU computes float32 in whole float32, until a precision says otherwise.

    Raises:
        UserError: any other word, a GPU that is not there, or ``auto`` where a GPU is there but torch cannot use it.
    """
    check_word(text)
    if text == "cpu":
        return text
    import torch  # here, so that a command refuses a wrong word without torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if text == "auto" and not count:
        if has_unused_gpu():
            raise UserError(f"this machine has a GPU, but {_why_unusable()}; or compute without it by --device cpu")
        return "cpu"
    number = int(text.partition(":")[2] or 0)
    if number >= count:
        there = f"torch can use {count} GPUs here, numbered from 0" if count else _why_unusable()
        raise UserError(f"--device {text} cannot be used: {there}; choose another, or --device cpu")
    precision.allow_tf32(False)
    return "cuda" if text == "auto" else text


def has_unused_gpu() -> bool:
    """Whether the machine has an NVIDIA GPU that ``CUDA_VISIBLE_DEVICES`` does not hide."""
    hidden = os.environ.get(VISIBLE, "0").strip() in ("", "-1", "NoDevFiles")
    return not hidden and any(DEVICE_FILES.glob("nvidia[0-9]*"))


def _why_unusable() -> str:
    """Why torch finds no GPU, and what to do, in torch's own words where it has some."""
    import torch

    if not torch.version.cuda:
        return f"this build of torch ({torch.__version__}) has no CUDA; install the default build (docs/environment.md)"
    try:
        torch.cuda.init()
        reason = "torch finds no GPU"
    except (RuntimeError, AssertionError) as error:
        reason = " ".join(str(error).split()).partition(". ")[0].rstrip(".")
    return (
        f"torch {torch.__version__}, built for CUDA {torch.version.cuda}, cannot use one ({reason}; driver: "
        f"{driver() or 'none'}); install a driver for CUDA {torch.version.cuda}, or a build of torch for your driver "
        f"(docs/environment.md)"
    )


def driver() -> str:
    """The version of NVIDIA's driver, or an empty text where none is loaded."""
    text = DRIVER_FILE.read_text() if DRIVER_FILE.is_file() else ""
    found = re.search(r"\s(\d+\.\d+(\.\d+)?)\s", text)
    return found[1] if found else ""


def visible_gpus(device: str) -> list[str]:
    """The names by which ``CUDA_VISIBLE_DEVICES`` gives a job one GPU: all that a resolved device allows.

    ``cuda`` allows every GPU that this process sees, ``cuda:N`` one. The names are those of this process's own list
    (numbers, UUIDs or MIG instances), which numbers of torch point into.
    """
    if not device.startswith("cuda"):
        return []
    import torch

    listed = [name.strip() for name in os.environ.get(VISIBLE, "").split(",") if name.strip()]
    names = listed or [str(number) for number in range(torch.cuda.device_count())]
    names = names[: torch.cuda.device_count()]
    return names if device == "cuda" else [names[int(device.partition(":")[2])]]


def hardware(device: str) -> dict[str, Any]:
    """What a record says of a GPU: its name, its memory in GiB, the driver and CUDA; {} of a CPU."""
    if not device.startswith("cuda"):
        return {}
    import torch

    found = torch.cuda.get_device_properties(device)
    return {
        "gpu": found.name,
        "gpu_gib": round(found.total_memory / 2**30, 1),
        "driver": driver(),
        "cuda": torch.version.cuda,
    }


def peak_memory(device: str) -> dict[str, int]:
    """Bytes that this process has held at most (``process``), and its tensors on a GPU (``gpu``), as far as known."""
    status = PROCESS_FILE.read_text() if PROCESS_FILE.is_file() else ""  # getrusage would have the parent's memory too
    found = re.search(r"^VmHWM:\s+(\d+) kB", status, re.MULTILINE)
    taken = {"process": 1024 * int(found[1])} if found else {}
    if device.startswith("cuda"):
        import torch

        taken["gpu"] = torch.cuda.max_memory_allocated(device)
    return taken
