"""Compiles the pretended CUDA runtime and says with which environment torch finds it.

    python -m tests.gpu.pretended.build FOLDER      prints the variables, for: env $(python -m … FOLDER) python -m …

Needs a C++ compiler (``CXX``, else c++ or g++) and headers of torch's own CUDA version, which come with torch's CUDA
wheels (triton brings them); CUDA_HEADERS names another folder that holds cuda_runtime_api.h.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import torch

HERE = Path(__file__).parent


class CannotBuild(Exception):
    """What is not there, in one sentence."""


def compiler() -> str:
    """The C++ compiler. Raises CannotBuild where there is none."""
    for name in (os.environ.get("CXX"), "c++", "g++"):
        if name and shutil.which(name):
            return name
    raise CannotBuild("there is no C++ compiler (CXX, c++ or g++)")


def headers() -> Path:
    """A whole folder of CUDA's headers, of the version torch was built for. Raises CannotBuild where there is none.

    The wheel nvidia-cuda-runtime holds but a part of them, so crt/ must lie beside.
    """
    if not torch.version.cuda:
        raise CannotBuild("this torch was built without CUDA")
    wanted = torch.version.cuda.partition(".")[0]
    installed = Path(sysconfig.get_path("purelib"))
    given = [Path(os.environ["CUDA_HEADERS"])] if "CUDA_HEADERS" in os.environ else []
    places = (
        *installed.glob("nvidia/*/include"),
        installed / "triton/backends/nvidia/include",
        *Path("/usr/local").glob("cuda*/include"),
    )
    for folder in [*given, *places]:
        api = folder / "cuda_runtime_api.h"
        if api.is_file() and (folder / "crt/host_defines.h").is_file():
            version = re.search(r"define CUDART_VERSION +(\d+)", api.read_text())
            if version and version[1].startswith(wanted):
                return folder
    raise CannotBuild(f"there are no whole headers of CUDA {wanted}; CUDA_HEADERS can name a folder that holds them")


def build(folder: Path) -> dict[str, str]:
    """Compiles both libraries below a folder; the variables with which a process sees the pretended GPU.

    Raises:
        CannotBuild: no compiler, no headers, or what the compiler said.
    """
    (folder / "lib").mkdir(parents=True, exist_ok=True)
    shim = folder / "shim.so"
    common = [compiler(), "-shared", "-fPIC", "-O1", "-o"]
    for command in (
        [*common, shim, f"-I{headers()}", HERE / "shim.cpp"],
        [*common, folder / "lib/libcuda.so.1", HERE / "stub.cpp"],
    ):
        done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
        if done.returncode:
            raise CannotBuild(f"the compiler failed: {done.stderr.strip()[:500]}")
    return {"LD_PRELOAD": str(shim), "LD_LIBRARY_PATH": str(folder / "lib"), "OMP_NUM_THREADS": "1"}


def main() -> int:
    """0 built, 2 not."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the two libraries go")
    try:
        variables = build(parser.parse_args().folder.resolve())
    except CannotBuild as error:
        print(f"build: {error}", file=sys.stderr)
        return 2
    print(" ".join(f"{name}={value}" for name, value in variables.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
