"""Whose number is it? Many invocations into one output folder, in random orders and some at once: each prints what it
prints alone.

Two encoders of one file name x two data roots of the same names x two limits x two settings x two branches. In full: -m
slow.
"""

import itertools
import random
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

import run_all
from pretrain import train
from tests.worlds import write_world

HERE = Path(run_all.__file__).parent
Invocation = tuple[str, str, int | None, str, str]  # encoder, data root, limit, temperature, branch


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """a/m.pth and b/m.pth, each with an online and another target branch; one/ and two/, whose files have the same
    names.
    """
    folder = tmp_path_factory.mktemp("matrix")
    for number, name in enumerate(("one", "two")):
        write_world(folder / name, train=20, val=12)
        if number:
            for path in (folder / name / "imagenet/val").rglob("*.png"):  # other pictures under the same names
                path.write_bytes((folder / "one/imagenet/train" / path.parent.name / path.name).read_bytes())
    for seed, name in enumerate("ab"):
        options = [
            "--preset",
            "demo",
            "--data",
            str(folder / "one/imagenet/train"),
            "--out",
            str(folder / name),
            "--init-only",
            "--set",
            f"seed={seed}",
        ]
        assert train.main(options) == 0
        saved = torch.load(folder / name / "checkpoint.pth", weights_only=True)
        generator = torch.Generator().manual_seed(seed)
        for key, value in saved["model"].items():
            if key.startswith("mm_") and value.is_floating_point():
                value += 0.3 * torch.randn(value.shape, generator=generator)
        torch.save(saved, folder / name / "m.pth")
    return folder


def call(material: Path, out: Path, invocation: Invocation) -> tuple[int, str, str]:
    """The exit status, the cell of kNN as it is printed, and what was refused."""
    encoder, root, limit, temperature, branch = invocation
    command = [
        sys.executable,
        "run_all.py",
        "--ckpt",
        str(material / encoder / "m.pth"),
        "--data-root",
        str(material / root),
        "--out",
        str(out),
    ]
    command += ["--tasks", "knn", "--preset", "demo", "--device", "cpu", "--jobs", "1", "--branch", branch]
    command += ["--set", f"knn.temperature={temperature}", *(["--limit", str(limit)] if limit else [])]
    done = subprocess.run(command, cwd=HERE, capture_output=True, text=True, timeout=300)
    lines = [[part.strip() for part in line.split("|")] for line in done.stdout.splitlines() if line.startswith("|")]
    rows = [line for line in lines if line[1:2] == ["m"]]
    return done.returncode, rows[-1][lines[0].index("kNN")] if rows else "", done.stderr.strip()


@pytest.mark.parametrize(("count", "seed"), [(6, 0), pytest.param(30, 1, marks=pytest.mark.slow)])
def test_every_cell_is_that_of_an_invocation_alone(count: int, seed: int, material: Path, tmp_path: Path) -> None:
    draw = random.Random(seed)
    every = list(itertools.product("ab", ("one", "two"), (None, 40), ("0.07", "5.0"), ("online", "target")))
    chosen = (
        draw.choices(every, k=count)
        if count < len(every) - 5
        else draw.sample(every, count - 8) + draw.choices(every, k=8)
    )
    alone = {one: call(material, tmp_path / f"alone{number}", one) for number, one in enumerate(dict.fromkeys(chosen))}
    assert all(status == 0 and text[:1].isdigit() for status, text, _ in alone.values()), alone
    found: list[tuple[Invocation, tuple[int, str, str]]] = []
    with ThreadPoolExecutor(3) as pool:
        while chosen:
            together, chosen = chosen[: (size := draw.choice((1, 1, 2, 3)))], chosen[size:]
            found += zip(together, pool.map(lambda one: call(material, tmp_path / "out", one), together), strict=True)
    refused = [(one, error) for one, (status, _, error) in found if status]
    wrong = [(one, text, alone[one][1]) for one, (status, text, _) in found if not status and text != alone[one][1]]
    numbers = {text for _, text, _ in alone.values()}
    print(
        f"{len(found)} cells compared, {len(wrong)} wrong, {len(refused)} refused, {len(numbers)} different numbers "
        f"among them"
    )
    assert not wrong and len(refused) <= count // 10 and len(numbers) > 2, (wrong, refused, numbers)
