"""Names of rows, and the folder that belongs to each encoder alone."""

from pathlib import Path

import pytest

from evaluate.harness import rows
from evaluate.runtime.errors import UserError


def files(tmp_path: Path, *names: str) -> list[str]:
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    return [str(tmp_path / name) for name in names]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["mae.pth"], ["mae"]),
        (["model.safetensors"], ["model"]),
        (["runA/checkpoint.pth"], ["runA"]),
        (["runA/checkpoint.pth", "runB/checkpoint.pth"], ["runA", "runB"]),
        (["run/checkpoint-0399.pth", "run/checkpoint-0799.pth"], ["run-0399", "run-0799"]),
        (["a/model.safetensors", "b/model.safetensors"], ["a", "b"]),
        (["x/m.pth", "y/m.pth"], ["x-m", "y-m"]),
        (
            ["epoch=9-step=100.ckpt"],
            ["epoch=9-step=100"],
        ),  # as Lightning writes it: a path that exists wins over NAME=FILE
    ],
)
def test_default_names_are_the_shortest_that_tell(names: list[str], expected: list[str], tmp_path: Path) -> None:
    assert list(rows.named_checkpoints(files(tmp_path, *names))) == expected


def test_a_folder_of_epochs_is_a_row_for_each_in_their_order(tmp_path: Path) -> None:
    files(tmp_path, "run/checkpoint-9.pth", "run/checkpoint-10.pth", "run/checkpoint-100.pth", "run/log.jsonl")
    expected = ["run-9", "run-10", "run-100"]
    assert list(rows.named_checkpoints([str(tmp_path / "run")])) == expected
    assert list(rows.named_checkpoints([str(tmp_path / "run" / "*.pth")])) == expected
    files(tmp_path, "ours/checkpoint.pth", "ours/checkpoint.1.pth", "ours/checkpoint.2.pth")
    assert list(rows.named_checkpoints([str(tmp_path / "ours")])) == ["ours"], "older copies are no epochs"
    (model,) = files(tmp_path, "hf/model.safetensors")
    folder = rows.named_checkpoints([str(Path(model).parent)])
    assert folder == {"hf": Path(model).parent}, "a Hugging Face folder is one checkpoint"
    (tmp_path / "empty").mkdir()
    for nothing in ("empty", "run/*.bin"):
        with pytest.raises(UserError, match="give the path of a"):
            rows.named_checkpoints([str(tmp_path / nothing)])


def test_a_name_may_be_given(tmp_path: Path) -> None:
    one, two = files(tmp_path, "a/m.pth", "b/m.pth")
    assert rows.named_checkpoints([f"first={one}", two]) == {"first": Path(one), "m": Path(two)}
    with pytest.raises(UserError, match="two checkpoints are called 'm'"):
        rows.named_checkpoints([f"m={one}", two])
    with pytest.raises(UserError, match="there is no checkpoint .*absent"):
        rows.named_checkpoints([f"m={tmp_path / 'absent.pth'}"])


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "../x", "a/b", "/abs", "records", "logs", "-x", ".hidden", "a\nb", "a\x00", "x" * 200, "a\\b"],
)
def test_a_name_that_leaves_its_folder_is_refused(name: str) -> None:
    with pytest.raises(UserError, match="row") as error:
        rows.check_name(name)
    assert "\n" not in str(error.value)


def test_one_folder_for_each_encoder_of_a_name(tmp_path: Path) -> None:
    first, again, other = (rows.claim_folder(tmp_path, "m", source) for source in ("1" * 16, "1" * 16, "2" * 16))
    assert first == again == tmp_path / "m" and other == tmp_path / "m-22222222"
    assert rows.claim_folder(tmp_path, "m", "1" * 16) == first and rows.claim_folder(tmp_path, "m", "2" * 16) == other


def test_the_source_is_told_by_contents_branch_and_options(tmp_path: Path) -> None:
    one, two = map(Path, files(tmp_path, "a/m.pth", "b/m.pth"))
    base = rows.source_id(one, {})
    assert base == rows.source_id(one, {})
    others = {
        rows.source_id(two, {}),
        rows.source_id(one, {"branch": "target"}),
        rows.source_id(one, {"normalize": "half"}),
    }
    assert len(others | {base}) == 4
    copy = tmp_path / "copy.pth"
    copy.write_text(one.read_text())
    assert rows.source_id(copy, {}) == base, "where a file lies does not matter"
