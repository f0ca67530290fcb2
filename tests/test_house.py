"""The plan of the house: a folder imports only from lower levels, mm* stays in the dense room, help and plans do
without torch.
"""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from evaluate.checkpoints import formats
from evaluate.harness.plan import NODES
from pretrain import methods
from results.columns import COLUMNS, EXTRA_COLUMNS

ROOT = Path(__file__).parents[1]
LEVELS = {  # the longest name that a module begins with counts; level 1 is the ground
    "results": 1,
    "evaluate.runtime": 2,
    "evaluate.data": 3,
    "evaluate.encoder": 3,
    "evaluate.classification": 4,
    "evaluate.mm": 4,
    "evaluate.checkpoints": 5,
    "mm_configs": 5,
    "evaluate.harness": 6,
    "evaluate.convert": 6,
    "evaluate.benchmark": 6,
    "evaluate.calibrate": 6,
    "pretrain": 6,
    "evaluate": 7,  # the tasks
    "run_all": 7,
}
OPEN_MMLAB = {"mmengine", "mmcv", "mmdet", "mmseg"}
TASKS = tuple(dict.fromkeys(node.task for node in NODES))


def modules() -> dict[str, Path]:
    """The product's modules by their names."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "*.py"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    paths = [Path(name) for name in listed.stdout.split() if not name.startswith("tests/") and (ROOT / name).is_file()]
    return {
        ".".join(path.parent.parts if path.stem == "__init__" else path.with_suffix("").parts): path for path in paths
    }


def imports(name: str, path: Path) -> set[str]:
    """Every name that a module imports, those inside functions too."""
    package = name if path.stem == "__init__" else name.rpartition(".")[0]
    found: set[str] = set()
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".") if node.level else []
            parts = parts[: len(parts) - node.level + 1] if node.level else []
            base = ".".join([*parts, *([node.module] if node.module else [])])
            found |= {f"{base}.{alias.name}" for alias in node.names}
    return found


def room(name: str) -> str:
    """The key of LEVELS that a module belongs to; empty for what is not the product's."""
    parts = name.split(".")
    return next((key for end in range(len(parts), 0, -1) if (key := ".".join(parts[:end])) in LEVELS), "")


def test_no_import_points_up() -> None:
    wrong = []
    for name, path in modules().items():
        own = room(name)
        assert own, f"{path} stands in no room: give its folder a level in tests/test_house.py"
        for target in imports(name, path):
            other = room(target)
            task = own == "evaluate" and other == "evaluate"  # one task never knows another
            if (
                other
                and other != own
                and LEVELS[other] >= LEVELS[own]
                or task
                and target.split(".")[1] != name.split(".")[-1]
            ):
                wrong.append(f"{path} imports {target}: from level {LEVELS[own]} to {LEVELS[other]}")
    assert not wrong, "\n".join(wrong)


def test_the_commands_alone_stand_at_the_top_of_evaluate() -> None:
    names = {path.stem for path in (ROOT / "evaluate").glob("*.py")}
    assert names == {*TASKS, "benchmark", "convert", "calibrate", "__init__"}


def test_open_mmlab_is_imported_by_the_dense_room_alone() -> None:
    wrong = [
        f"{path} imports {target}"
        for name, path in modules().items()
        if room(name) not in ("evaluate.mm", "mm_configs")
        for target in imports(name, path)
        if target.split(".")[0] in OPEN_MMLAB
    ]
    assert not wrong, "\n".join(wrong)
    backbones = {name: path for name, path in modules().items() if name.startswith("evaluate.mm.backbones")}
    assert not [
        name
        for name, path in backbones.items()
        if any(target.split(".")[0] in OPEN_MMLAB for target in imports(name, path))
    ]


def test_no_test_imports_another() -> None:
    for path in sorted((ROOT / "tests").rglob("*.py")):
        for target in imports(f"tests.{path.stem}", path):
            assert not any(part.startswith("test_") for part in target.split(".")), f"{path} imports {target}"


@pytest.mark.parametrize(
    "command", ["run_all.py --help", "run_all.py --dry-run", *(f"-m evaluate.{task} --help" for task in TASKS)]
)
def test_help_and_plans_do_without_torch(command: str) -> None:
    code = "import sys, runpy; from unittest import mock\n"
    script, *options = command.split()
    if script == "-m":
        code += (
            f"sys.argv = {options!r}\nrun = lambda: runpy.run_module({options[0]!r}, run_name='__main__', "
            f"alter_sys=True)\n"
        )
    else:
        code += f"sys.argv = {[script, *options]!r}\nrun = lambda: runpy.run_path({script!r}, run_name='__main__')\n"
    code += "try:\n    run()\nexcept SystemExit as ended:\n    assert not ended.code, ended.code\n"
    code += "assert 'torch' not in sys.modules, 'torch was imported'"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("folder", "registered", "others"),
    [
        ("evaluate/checkpoints/formats", formats.MODULES, {"__init__", "table"}),
        ("pretrain/methods", methods.METHODS, {"__init__"}),
    ],
)
def test_every_file_is_registered(folder: str, registered: tuple[str, ...], others: set[str]) -> None:
    assert {path.stem for path in (ROOT / folder).glob("*.py")} - others == set(registered)


def test_columns_name_tasks_that_there_are() -> None:
    assert {node for _, node, _ in (*COLUMNS, *EXTRA_COLUMNS)} <= {node.name for node in NODES}
