"""Whatever lies in records/ ends no run: what is no record is named and passed over, the others are shown."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from results import __main__ as command
from results import reading, record

GOOD = {
    "preset": "paper",
    "config": {"epochs": 100},
    "paper_config": {"epochs": 100},
    "status": "ok",
    "reason": "",
    "metrics": {"top1": 71.26},
    "protocol": {},
    "toy_data": False,
    "encoder_source": {"branch": "online"},
    "work": "mine/knn-0",
    "versions": {"torch": "2"},
    "git": {},
}


def good(task: str = "knn", **changes: Any) -> dict[str, Any]:
    known = record.identity(
        task, GOOD["config"], seed=0, limit=None, encoder_fingerprint="f" * 64, data_fingerprint="d", inputs={}
    )
    return {**known, **GOOD, "encoder": "mine", "started_utc": "2026-01-01T00:00:00+00:00", **changes}


def text(content: str | bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(content if isinstance(content, bytes) else content.encode())


def changed(**changes: Any) -> Callable[[Path], object]:
    return text(json.dumps(good(**changes)))


def without(name: str) -> Callable[[Path], object]:
    return text(json.dumps({key: value for key, value in good().items() if key != name}))


def bind(path: Path) -> None:
    server, here = socket.socket(socket.AF_UNIX), os.getcwd()
    os.chdir(path.parent)  # a socket's path may have some hundred bytes
    server.bind(path.name)
    os.chdir(here)
    server.close()


WHOLE = json.dumps(good()).encode()
ODD: dict[str, Callable[[Path], object]] = {
    "notes.json": text('{"note": "mine"}'),
    "._mine-knn.json": text(b"\x00\x05\x16\x07\x00\x02\x00\x00Mac OS X        "),
    ".hidden.json": text("{"),
    "folder.json": lambda path: path.mkdir(),
    "full folder.json": lambda path: (path.mkdir(), (path / "a.json").write_text("{}")),
    "dangling.json": lambda path: path.symlink_to("nowhere"),
    "loop.json": lambda path: path.symlink_to(path.name),
    "link to a folder.json": lambda path: path.symlink_to(".."),
    "device.json": lambda path: path.symlink_to("/dev/zero"),
    "terminal.json": lambda path: path.symlink_to("/dev/tty"),
    "pipe.json": lambda path: os.mkfifo(path),
    "link to a pipe.json": lambda path: (
        os.mkfifo(path.with_suffix(".pipe")),
        path.symlink_to(path.with_suffix(".pipe")),
    ),
    "socket.json": bind,
    "empty.json": text(""),
    "blank.json": text(" \n\t"),
    "nothing.json": text(b"\0" * 4096),
    "huge.json": lambda path: (path.touch(), os.truncate(path, 1 << 40)),
    "cut short.json": text(WHOLE[:200]),
    "last byte missing.json": text(WHOLE[:-1]),
    "twice.json": text(WHOLE + WHOLE),
    "zeros at its end.json": text(WHOLE[:-64] + b"\0" * 64),
    "other bytes.json": text(bytes(byte ^ 0x55 for byte in WHOLE)),
    "latin-1.json": text(json.dumps(good(encoder="é"), ensure_ascii=False).encode("latin-1")),
    "utf-16.json": text(json.dumps(good()).encode("utf-16")),
    "mark of order.json": text(b"\xef\xbb\xbf" + WHOLE),
    "deep.json": text("[" * 200_000),
    "deep object.json": text('{"a":' * 100_000),
    "long number.json": text('{"schema": ' + "9" * 100_000 + "}"),
    "list.json": text("[]"),
    "list of records.json": text(json.dumps([good()])),
    "string.json": text('"record"'),
    "number.json": text("3"),
    "null.json": text("null"),
    "true.json": text("true"),
    "lines.json": text("{}\n{}\n"),
    "conflict.json": text("<<<<<<< HEAD\n{}\n=======\n{}\n>>>>>>> other\n"),
    "lfs pointer.json": text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3\n"),
    "html.json": text("<html><body>502 Bad Gateway</body></html>"),
    "gzip.json": text(b"\x1f\x8b\x08\x00\x00\x00\x00\x00"),
    "python.json": text(repr(good())),
    "comment.json": text(b"// mine\n" + WHOLE),
    "schema as text.json": changed(schema=str(record.SCHEMA)),
    "schema as true.json": changed(schema=True),
    "schema as a list.json": changed(schema=[record.SCHEMA]),
    "schema of before.json": changed(schema=record.SCHEMA - 1),
    "schema to come.json": changed(schema=99, metrics=None),
    **{
        f"no {name}.json": without(name)
        for name in ("schema", "task", "encoder", "status", "metrics", "config", "limit", "started_utc")
    },
    **{
        f"{name} is none.json": changed(**{name: None})
        for name in ("task", "encoder", "status", "metrics", "protocol", "started_utc")
    },
    **{
        f"{name} is a list.json": changed(**{name: []})
        for name in ("task", "encoder", "status", "metrics", "config", "versions")
    },
    **{
        f"{name} is a number.json": changed(**{name: 7})
        for name in ("task", "reason", "protocol", "git", "work", "skipped", "encoder_source")
    },
    "another status.json": changed(status="great"),
    "metric is text.json": changed(metrics={"top1": "71"}),
    "metric is none.json": changed(metrics={"top1": None}),
    "metric is true.json": changed(metrics={"top1": True}),
    "metric is nan.json": changed(metrics={"top1": float("nan")}),
    "metric is infinite.json": text(WHOLE.replace(b"71.26", b"1e999")),
    "metric is endless.json": text(WHOLE.replace(b"71.26", b"9" * 400)),
    "limit is a fraction.json": changed(limit=0.5),
    "seed is text.json": changed(seed="0"),
    "encoder goes up.json": changed(encoder="../../mine"),
    "encoder has no name.json": changed(encoder=""),
    "subset of numbers.json": changed(subset={"val": 3}),
    "rests on text.json": changed(rests_on={"finetune": "well"}),
    "rests on a list.json": changed(rests_on={"finetune": {"config": []}}),
    "immaterial numbers.json": changed(immaterial={"": [1]}),
    "immaterial lists.json": changed(immaterial={"": [["a"]]}),
    "skipped lists.json": changed(skipped={"imagenet_a": []}),
    "unreadable numbers.json": changed(unreadable_images={"val": 3}),
    "line\nbreak.json": text("{"),
    "\x1b[31mred.json": text("{"),
    "<img src=x onerror=alert(1)>.json": text("{"),
    os.fsdecode(b"\xff\xfe bytes.json"): text("{"),
}


def fill(out: Path) -> None:
    (out / "records").mkdir(parents=True)
    record.write(out / "records", good())
    record.write(out / "records", good("few_shot", metrics={"top1": 50.0}))


@pytest.mark.parametrize("name", ODD)
def test_an_odd_file_is_named_and_the_others_are_shown(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fill(tmp_path)
    ODD[name](tmp_path / "records" / name)
    assert sorted(entry["task"] for entry in record.read_all(tmp_path / "records")) == ["few_shot", "knn"]
    assert command.main([str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "71.3" in shown and "50.0" in shown
    _, (problem,) = record.read(tmp_path / "records")
    assert problem.isprintable() and ("is not a record" in problem or "schema" in problem)
    assert shown.count("is not a record") + shown.count("not shown, since it is of schema") == 1


def test_all_at_once_and_a_record_in_the_place_of_each_good_one(tmp_path: Path) -> None:
    assert len(ODD) >= 60
    fill(tmp_path)
    for name, put in ODD.items():
        put(tmp_path / "records" / name)
    done = subprocess.run([sys.executable, "-m", "results", str(tmp_path)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and "71.3" in done.stdout and not done.stderr
    assert 5 < len(record.read(tmp_path / "records")[1]) < len(ODD), "faults of one kind are not counted together"


@pytest.mark.parametrize("name", ODD)
def test_what_lies_in_a_records_place_is_no_record_and_makes_way_for_one(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "records"
    folder.mkdir()
    ODD[name](path := record.path_of(folder, "mine", good()))
    assert record.find(folder, "mine", good()) is None
    assert record.write(folder, good()) == path
    whole = {**good(), "key": record.key_of(good())}
    assert record.find(folder, "mine", good()) == {**whole, "checksum": reading.checksum(whole)}
    if "folder" in name and "link" not in name:
        assert [moved.suffix for moved in folder.iterdir() if moved != path] == [".odd"], (
            "a folder of somebody's is gone"
        )


def test_a_record_of_another_identity_is_not_found_under_this_ones_name(tmp_path: Path) -> None:
    path = record.write(tmp_path, good(seed=1))
    path.rename(record.path_of(tmp_path, "mine", good()))
    assert record.find(tmp_path, "mine", good()) is None


@pytest.mark.parametrize(
    "put", [lambda path: path.write_text("x"), lambda path: path.symlink_to("nowhere"), lambda path: None]
)
def test_no_folder_of_records(
    put: Callable[[Path], object], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    put(tmp_path / "records")
    assert record.read_all(tmp_path / "records") == []
    assert command.main([str(tmp_path)]) == 2
    assert "no records below" in capsys.readouterr().err


def test_records_of_another_version_are_named_together(tmp_path: Path) -> None:
    fill(tmp_path)
    for number in range(7):
        (tmp_path / "records" / f"old{number}.json").write_text(json.dumps({"schema": 1, "status": "ok"}))
    _, problems = record.read(tmp_path / "records")
    assert len(problems) == 1 and "schema 1" in problems[0] and "old0.json" in problems[0] and "7 in all" in problems[0]
