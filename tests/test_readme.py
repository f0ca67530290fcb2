"""The README's commands exist: every module it names runs, and knows every option that is shown with it."""

import re
from pathlib import Path

import pytest

import run_all
from evaluate import benchmark, convert
from evaluate.harness import task
from pretrain import parity, train
from pretrain.benchmark import __main__
from results import __main__ as results_command

README = (Path(run_all.__file__).parent / "README.md").read_text()
HELP = {
    "run_all.py": lambda: run_all.main(["--help"]),
    "evaluate.linear_probe": lambda: task.main("linear_probe", ["--help"]),
    "evaluate.knn": lambda: task.main("knn", ["--help"]),
    "evaluate.benchmark": lambda: benchmark.main(["--help"]),
    "evaluate.convert": lambda: convert.main(["--help"]),
    "pretrain.train": lambda: train.main(["--help"]),
    "pretrain.benchmark": lambda: __main__.main(["--help"]),
    "results": lambda: results_command.main(["--help"]),
    "pretrain.parity": lambda: parity.main(["--help"]),
}
COMMANDS = re.findall(
    r"^ {4}(?:pip install uv && )?uv run (?:python -m |torchrun .*-m )?(\S+)(.*)$", README, flags=re.MULTILINE
)


def test_the_two_commands_stand_first():
    assert [name for name, _ in COMMANDS[:2]] == ["run_all.py", "pytest"]
    assert len(COMMANDS) >= 10


@pytest.mark.parametrize(("name", "options"), [command for command in COMMANDS if command[0] != "pytest"])
def test_a_command_knows_its_options(name, options, capsys):
    with pytest.raises(SystemExit) as ended:
        HELP[name]()
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert all(option in text for option in re.findall(r"--[a-z-]+", options.split("#")[0]))
