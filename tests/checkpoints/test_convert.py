"""Conversion: our own checkpoints, damaged and hostile files, and a certificate that can fail."""

import argparse
import dataclasses
import json
import pickle
import re
import sys
import types

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from evaluate import convert, encoder
from evaluate.checkpoints import certificate, conversion, formats
from evaluate.checkpoints.reference import Semantics
from evaluate.encoder.model import Encoder
from evaluate.harness import rows
from evaluate.runtime.errors import UserError
from pretrain.methods import siameseim
from pretrain.methods.siameseim import DEMO
from tests.checkpoints.tiny_files import tiny_vit
from tests.factories import WIDTH, mae_state


def test_our_own_checkpoint_both_branches(tmp_path) -> None:
    torch.manual_seed(0)
    model = siameseim.build(DEMO)
    with torch.no_grad():
        for parameter in model.target.parameters():
            parameter.add_(0.05)
    file = tmp_path / "own.pth"
    content = {
        "model": siameseim.to_official(model.state_dict()),
        "epoch": 3,
        "args": argparse.Namespace(a=1),
        "config": DEMO.to_json(),
    }
    torch.save(content, file)
    images = torch.randn(2, 3, DEMO.img_size, DEMO.img_size)
    for name, branch in (("online", model.online), ("target", model.target)):
        out = tmp_path / name / "encoder.safetensors"
        assert conversion.convert(file, out, branch=name).passed
        loaded = encoder.load(out)
        assert (loaded.spec.num_heads, loaded.spec.patch_size, loaded.spec.final_norm) == (
            DEMO.num_heads,
            DEMO.patch_size,
            False,
        )
        with torch.inference_mode():
            patches = branch.patch_embed(images) + model.pos_embed[:, 1:]
            cls = (branch.cls_token + model.pos_embed[:, :1]).expand(2, -1, -1)
            expected = branch.blocks(torch.cat([cls, patches], 1))
            tokens = loaded.forward_tokens(images)
        assert torch.allclose(tokens.cls, expected[:, 0], atol=1e-5) and torch.allclose(
            tokens.patches, expected[:, 1:], atol=1e-5
        )
    del content["config"]
    torch.save(content, file)
    with pytest.raises(UserError, match="num_heads"):
        conversion.convert(file, tmp_path / "encoder.safetensors")


def test_ensure_converts_once(tmp_path, monkeypatch) -> None:
    file, out = tmp_path / "mae.pth", tmp_path / "row" / "encoder.safetensors"
    torch.save({"model": mae_state()}, file)
    assert conversion.ensure(file, out) == out
    stamp = out.stat().st_mtime_ns
    assert conversion.ensure(file, out) == out and out.stat().st_mtime_ns == stamp
    assert (
        conversion.ensure(out, tmp_path / "other.safetensors") == out and not (tmp_path / "other.safetensors").exists()
    )
    torch.save({"model": mae_state(1)}, file)
    conversion.ensure(file, out)
    assert out.stat().st_mtime_ns != stamp
    encoder.certificate_path(out).unlink()
    with pytest.raises(UserError, match="no certificate"):
        conversion.ensure(out, tmp_path / "other.safetensors")
    assert encoder.load(conversion.ensure(file, out))


class Touch:
    """Unpickles to a call that creates a file."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return open, (str(self.marker), "w")


def _absent_class(path) -> None:
    module = types.ModuleType("absent_package")
    module.Config = type("Config", (), {"__module__": "absent_package"})  # type: ignore[attr-defined]
    sys.modules["absent_package"] = module
    torch.save({"model": mae_state(), "extra": module.Config()}, path)
    del sys.modules["absent_package"]


def _without(*names):
    return {key: value for key, value in mae_state().items() if not key.startswith(names)}


def _changed(name, tensor):
    return {**mae_state(), name: tensor}


def _cut(path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 6 // 10])


def _bad_files(path, marker):
    """(name of the fault, how to write it, what the sentence must say)."""
    nan = mae_state()["norm.bias"].index_fill(0, torch.tensor([3]), float("nan"))

    def state(value):
        return lambda: torch.save({"model": value}, path)

    def cut_archive():
        torch.save({"model": mae_state()}, path)
        _cut(path)

    def cut_legacy():
        torch.save({"model": mae_state()}, path, _use_new_zipfile_serialization=False)
        _cut(path)

    def cut_safetensors():
        save_file(mae_state(), path)
        _cut(path)

    return [
        ("missing", lambda: None, "does not exist"),
        ("empty", lambda: path.write_bytes(b""), "empty"),
        ("text", lambda: path.write_text("<html>404</html>"), "not a checkpoint"),
        ("truncated archive", cut_archive, "truncated"),
        ("truncated legacy", cut_legacy, "truncated"),
        ("truncated safetensors", cut_safetensors, "truncated"),
        ("bare tensor", lambda: torch.save(torch.zeros(3), path), "not a checkpoint"),
        ("no tensors", lambda: torch.save({"epoch": 3}, path), "no weights"),
        ("code", lambda: torch.save({"model": mae_state(), "x": Touch(marker)}, path), "open"),
        (
            "code in args",
            lambda: torch.save({"model": mae_state(), "args": argparse.Namespace(a=[Touch(marker)])}, path),
            "open",
        ),
        (
            "code in a bare pickle",
            lambda: path.write_bytes(pickle.dumps({"model": {}, "x": Touch(marker)}, protocol=2)),
            "open",
        ),
        ("absent class", lambda: _absent_class(path), "absent_package.Config"),
        ("unknown format", lambda: torch.save({"strange.weight": torch.zeros(3)}, path), "strange.weight"),
        ("NaN", state(_changed("norm.bias", nan)), "norm.bias"),
        ("unknown key", state(_changed("blocks.1.adapter.weight", torch.zeros(2))), "blocks.1.adapter.weight"),
        ("missing block", state(_without("blocks.1.")), "block 1"),
        ("missing tensor", state(_without("blocks.2.attn.proj.bias")), "blocks.2.attn.proj.bias"),
        ("wrong shape", state(_changed("blocks.0.norm1.weight", torch.ones(9))), r"\(9,\), expected \(128,\)"),
        ("no class token", state(_without("cls_token")), "cls_token"),
        ("no positions", state(_without("pos_embed")), "pos_embed"),
        ("positions of no grid", state(_changed("pos_embed", torch.zeros(1, 16, WIDTH))), "pos_embed"),
        ("whole numbers", state(_changed("norm.bias", torch.zeros(WIDTH, dtype=torch.int64))), "norm.bias"),
        ("absurd depth", state(_changed("blocks.99999999.norm1.weight", torch.ones(WIDTH))), "block 3 is missing"),
        ("absurd size", state(_changed("norm.weight", torch.ones(1).expand(10**12))), "norm.weight"),
    ]


FAULTS = [name for name, _, _ in _bad_files(None, None)]


@pytest.mark.parametrize("fault", FAULTS)
def test_bad_input_is_one_sentence_and_leaves_nothing(fault, tmp_path, capsys) -> None:
    file, marker, out = tmp_path / "file.pth", tmp_path / "marker", tmp_path / "out" / "encoder.safetensors"
    _, write, says = next(entry for entry in _bad_files(file, marker) if entry[0] == fault)
    write()
    assert convert.main([str(file), "--out", str(out)]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1 and str(file) in captured.err
    assert re.search(says, captured.err), captured.err
    assert not marker.exists() and not (out.parent.exists() and list(out.parent.iterdir()))


def test_two_encoders_of_no_known_format_are_ambiguous(tmp_path) -> None:
    state = {f"{name}.{key}": value for name in ("first", "second") for key, value in mae_state().items()}
    torch.save({"model": state}, tmp_path / "two.pth")
    with pytest.raises(UserError, match="ambiguous"):
        conversion.convert(tmp_path / "two.pth", tmp_path / "encoder.safetensors")


def test_numpy_numbers_of_a_trainer_do_not_stop_it(tmp_path) -> None:
    file = tmp_path / "mae.pth"
    torch.save({"model": mae_state(), "best": np.float64(0.5)}, file)
    plain = tmp_path / "plain.pth"
    torch.save({"model": mae_state()}, plain)
    made = conversion.convert(file, tmp_path / "a.safetensors")
    assert made.fingerprint == conversion.convert(plain, tmp_path / "b.safetensors").fingerprint
    assert "best holds objects that were not read" in made.notes


class Node(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def test_torchscript_archive_without_running_it(tmp_path) -> None:
    root = Node()
    for key, value in mae_state().items():
        module = root
        *parents, name = key.split(".")
        for parent in parents:
            if parent not in dict(module.named_children()):
                module.add_module(parent, Node())
            module = module.get_submodule(parent)
        module.register_buffer(name, value)
    torch.jit.save(torch.jit.script(root), tmp_path / "script.pt")
    torch.save(mae_state(), tmp_path / "plain.pth")
    made = [
        conversion.convert(tmp_path / name, tmp_path / f"{name}.safetensors", format="dino_backbone")
        for name in ("script.pt", "plain.pth")
    ]
    assert made[0].fingerprint == made[1].fingerprint


def test_huggingface_folder_says_its_eps_and_normalization(tmp_path) -> None:
    known = formats.by_name("hf_vit")
    save_file(
        {**tiny_vit(known, dict(known.branches["encoder"].roles), 0), "classifier.weight": torch.zeros(2, 2)},
        tmp_path / "model.safetensors",
    )
    (tmp_path / "config.json").write_text(
        json.dumps({"layer_norm_eps": 1e-3, "num_attention_heads": 4, "hidden_act": "gelu"})
    )
    (tmp_path / "preprocessor_config.json").write_text(
        json.dumps({"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]})
    )
    conversion.convert(tmp_path, tmp_path / "encoder.safetensors")
    spec = encoder.load(tmp_path / "encoder.safetensors").spec
    assert (spec.layer_norm_eps, spec.num_heads, spec.mean, spec.std) == (1e-3, 4, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))


@pytest.mark.parametrize("changed", ["model.safetensors", "config.json", "preprocessor_config.json"])
def test_a_huggingface_folder_is_converted_again_when_a_file_of_it_changes(changed, tmp_path) -> None:
    known, folder, out = formats.by_name("hf_vit"), tmp_path / "hf", tmp_path / "encoder.safetensors"
    folder.mkdir()
    state = {**tiny_vit(known, dict(known.branches["encoder"].roles), 0), "classifier.weight": torch.zeros(2, 2)}
    save_file(state, folder / "model.safetensors")
    (folder / "config.json").write_text(
        json.dumps({"layer_norm_eps": 1e-3, "num_attention_heads": 4, "hidden_act": "gelu"})
    )
    (folder / "preprocessor_config.json").write_text(
        json.dumps({"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]})
    )
    conversion.ensure(folder, out)
    source = rows.source_id(folder, {})
    assert source == rows.source_id(folder, {}) != rows.source_id(folder, {"branch": "target"})
    stamp = out.stat().st_mtime_ns
    conversion.ensure(folder, out)
    assert out.stat().st_mtime_ns == stamp
    if changed == "model.safetensors":
        save_file({name: tensor + 0.01 for name, tensor in state.items()}, folder / changed)
    else:
        (folder / changed).write_text((folder / changed).read_text().replace("0.001", "0.01").replace("0.5", "0.55"))
    assert rows.source_id(folder, {}) != source
    conversion.ensure(folder, out)
    assert out.stat().st_mtime_ns != stamp


def test_huggingface_folder_in_several_files(tmp_path) -> None:
    known = formats.by_name("hf_vit")
    state = {**tiny_vit(known, dict(known.branches["encoder"].roles), 0), "classifier.weight": torch.zeros(2, 2)}
    (tmp_path / "whole").mkdir()
    save_file(state, tmp_path / "whole" / "model.safetensors")
    names = {key: f"model-{1 + index % 2:05d}-of-00002.safetensors" for index, key in enumerate(sorted(state))}
    for name in set(names.values()):
        save_file({key: state[key] for key in state if names[key] == name}, tmp_path / name)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": names}))
    made = [
        conversion.convert(path, tmp_path / "out" / "encoder.safetensors") for path in (tmp_path, tmp_path / "whole")
    ]
    assert made[0].fingerprint == made[1].fingerprint and made[0].source_sha256 != made[1].source_sha256
    for wrong, says in (
        ("../other.safetensors", "same folder"),
        (index.name, "same folder"),
        ("absent.safetensors", "not beside it"),
        (name, "does not hold"),
    ):
        index.write_text(json.dumps({"weight_map": {**names, "classifier.weight": wrong, "another": wrong}}))
        with pytest.raises(UserError, match=says):
            conversion.convert(tmp_path, tmp_path / "out" / "encoder.safetensors")


def _swap_q_and_k(state):
    weight = state["blocks.0.attn.qkv.weight"]
    q, k, v = weight.chunk(3)
    return {**state, "blocks.0.attn.qkv.weight": torch.cat([k, q, v])}


FAULTY = {
    "nothing": (lambda state: state, {}, True),
    "one value": (
        lambda state: {
            **state,
            "blocks.1.mlp.fc1.bias": state["blocks.1.mlp.fc1.bias"].index_fill(0, torch.tensor([5]), 1.0),
        },
        {},
        False,
    ),
    "q and k": (_swap_q_and_k, {}, False),
    "eps": (lambda state: state, {"layer_norm_eps": 1e-5}, False),
    "eps the other way": (lambda state: state, {"layer_norm_eps": 1e-12}, False),
    "activation": (lambda state: state, {"activation": "quick_gelu"}, False),
    "heads": (lambda state: state, {"num_heads": 4}, False),
    "final norm": (lambda state: {**state, "norm.bias": state["norm.bias"] + 0.01}, {}, False),
    "class token": (
        lambda state: {
            **{key: value for key, value in state.items() if key != "cls_token"},
            "pos_embed": state["pos_embed"][:, 1:],
        },
        {"class_token": False},
        False,
    ),
}


@pytest.mark.parametrize("fault", FAULTY)
def test_the_certificate_can_fail(fault, tmp_path) -> None:
    change, semantics, passes = FAULTY[fault]
    torch.save({"model": mae_state()}, tmp_path / "mae.pth")
    conversion.convert(tmp_path / "mae.pth", tmp_path / "encoder.safetensors")
    good = encoder.load(tmp_path / "encoder.safetensors")
    state = {key: value.contiguous().clone() for key, value in change(good.model.state_dict()).items()}
    faulty = Encoder(dataclasses.replace(good.spec, **semantics), state)
    roles = formats.by_name("mae").branches["encoder"].roles
    checks = certificate.compare(mae_state(), roles, Semantics(2, 1e-6, "gelu"), faulty)
    assert all(check.get("passed", True) for check in checks.values()) is passes


def test_a_failing_certificate_writes_nothing(tmp_path, monkeypatch) -> None:
    torch.save({"model": mae_state()}, tmp_path / "mae.pth")
    monkeypatch.setattr(
        certificate, "compare", lambda *_: {"timm": {"difference": 1.0, "largest": 1.0, "passed": False}}
    )
    with pytest.raises(UserError, match="features differ"):
        conversion.convert(tmp_path / "mae.pth", tmp_path / "encoder.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["mae.pth"]


def test_inspect_and_json(tmp_path, capsys) -> None:
    file = tmp_path / "mae.pth"
    torch.save({"model": mae_state(), "epoch": 2}, file)
    assert convert.main([str(file), "--inspect", "--json"]) == 0
    seen = json.loads(capsys.readouterr().out)
    assert list(seen["formats"]) == ["mae"] and seen["state_dicts"]["model"]["tensors"] == len(mae_state())
    assert [path.name for path in tmp_path.iterdir()] == ["mae.pth"]
    assert convert.main([str(file), "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert made["certificate"]["passed"] and made["spec"]["layer_norm_eps"] == 1e-6
    assert encoder.load(made["encoder"]).fingerprint == made["certificate"]["fingerprint"]


def test_unknown_branch_and_format_list_the_legal_ones(tmp_path) -> None:
    file = tmp_path / "mae.pth"
    torch.save({"model": mae_state()}, file)
    with pytest.raises(UserError, match="its branches are encoder"):
        conversion.convert(file, tmp_path / "e.safetensors", branch="left")
    with pytest.raises(UserError, match="the formats are siameseim, mae"):
        conversion.convert(file, tmp_path / "e.safetensors", format="tensorflow")
