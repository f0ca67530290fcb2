"""Where a state dict lies and what wrappers leave in its keys does not matter; hostile files end in a sentence."""

import io
import json
import time
import zipfile

import pytest
import torch
from safetensors.torch import load_file, save_file

from evaluate import convert, encoder
from evaluate.checkpoints import conversion, formats
from evaluate.runtime.errors import UserError
from tests.checkpoints.tiny_files import checkpoint_of, tiny_resnet
from tests.factories import WIDTH, mae_state


def with_decoder() -> dict[str, torch.Tensor]:
    extra = {"mask_token": torch.zeros(1, 1, WIDTH), "decoder_blocks.0.norm1.weight": torch.zeros(WIDTH)}
    return {**mae_state(), **extra}


def behind(prefix: str, state=None) -> dict[str, torch.Tensor]:
    return {prefix + name: tensor for name, tensor in (state or mae_state()).items()}


def dotted(state, old: str, new: str) -> dict[str, torch.Tensor]:
    return {name.replace(old, new): tensor for name, tensor in state.items()}


HEADS = {"head.weight": torch.zeros(5, 4), "criterion.center": torch.zeros(4)}
CONTAINERS = {
    "compile outside": {"model": behind("_orig_mod.module.")},
    "compile inside": {"model": behind("module._orig_mod.")},
    "twice": {"model": behind("module.module.")},
    "fsdp": {"model": behind("_fsdp_wrapped_module.")},
    "fsdp within": {"model": dotted(mae_state(), "blocks.1.", "blocks.1._fsdp_wrapped_module.")},
    "activation checkpointing": {"model": dotted(mae_state(), "blocks.", "blocks._checkpoint_wrapped_module.")},
    "average": {"model": {"n_averaged": torch.tensor(3), **behind("module.")}},
    "average at the top": {"n_averaged": torch.tensor(3), **behind("module.")},
    "deepspeed": {"module": mae_state(), "ds_version": "0.14.0", "optimizer": None},
    "a place of its own": {"net": {"weights": mae_state()}, "epoch": 3},
    "ema alone": {"model_ema": mae_state()},
    "lightning": {
        "state_dict": {**behind("model."), "criterion.center": torch.zeros(4)},
        "hyper_parameters": {"lr": 1},
    },
    "lightning, deeper": {"state_dict": {**behind("model.backbone."), **HEADS}, "pytorch-lightning_version": "2"},
    "encoder": {"state_dict": {**behind("model.module.encoder."), "model.decoder.norm.weight": torch.zeros(4)}},
    "flat": mae_state(),
    "state dict": {"state_dict": mae_state()},
}


@pytest.mark.parametrize("name", CONTAINERS)
def test_every_container_gives_the_encoder_of_the_bare_tensors(name, tmp_path) -> None:
    torch.save({"model": mae_state()}, tmp_path / "bare.pth")
    torch.save(CONTAINERS[name], tmp_path / "file.pth")
    made = [conversion.convert(tmp_path / f"{file}.pth", tmp_path / "e.safetensors") for file in ("bare", "file")]
    assert made[0].fingerprint == made[1].fingerprint
    outside = [key for key in made[1].dropped if "criterion" in key or "decoder" in key or "n_averaged" in key]
    assert bool(outside) == any(word in name for word in ("average", "lightning", "encoder"))


@pytest.mark.parametrize("place", ["module", "state_dict", ""])
def test_a_decoder_tells_mae_wherever_it_lies(place, tmp_path) -> None:
    torch.save({"model": with_decoder()}, tmp_path / "bare.pth")
    torch.save({place: with_decoder()} if place else with_decoder(), tmp_path / "file.pth")
    made = [conversion.convert(tmp_path / f"{file}.pth", tmp_path / "e.safetensors") for file in ("bare", "file")]
    assert made[0].fingerprint == made[1].fingerprint and made[1].source_format == "mae"


@pytest.mark.parametrize("prefix", ["module.", "model.", "model.encoder.", "_orig_mod.backbone."])
def test_resnets_likewise(prefix, tmp_path) -> None:
    state = tiny_resnet({name: name for name in ("conv1", "bn1", "layer1", "layer2", "layer3", "layer4")}, 0)
    torch.save(state, tmp_path / "bare.pth")
    torch.save({"state_dict": behind(prefix, state), "epoch": 1}, tmp_path / "file.pth")
    made = [conversion.convert(tmp_path / f"{file}.pth", tmp_path / "e.safetensors") for file in ("bare", "file")]
    assert made[0].fingerprint == made[1].fingerprint


def test_two_keys_that_become_one_are_an_error(tmp_path) -> None:
    torch.save({"model": {**mae_state(), "module.norm.bias": torch.zeros(WIDTH)}}, tmp_path / "file.pth")
    with pytest.raises(UserError, match="two keys become 'norm.bias'"):
        conversion.convert(tmp_path / "file.pth", tmp_path / "e.safetensors")


def test_a_tensor_of_the_encoder_outside_its_prefix_is_not_left_out(tmp_path) -> None:
    inside = {name: tensor for name, tensor in mae_state().items() if not name.startswith("norm.")}
    norm = {f"model.{name}": tensor for name, tensor in mae_state().items() if name.startswith("norm.")}
    torch.save({"state_dict": {**behind("model.backbone.", inside), **norm}}, tmp_path / "file.pth")
    with pytest.raises(UserError):
        conversion.convert(tmp_path / "file.pth", tmp_path / "e.safetensors")


def test_an_average_beside_the_weights_is_a_branch(tmp_path) -> None:
    torch.save({"model": mae_state(1), "model_ema": mae_state()}, tmp_path / "file.pth")
    torch.save({"model": mae_state()}, tmp_path / "bare.pth")
    bare = conversion.convert(tmp_path / "bare.pth", tmp_path / "e.safetensors")
    plain = conversion.convert(tmp_path / "file.pth", tmp_path / "e.safetensors")
    average = conversion.convert(tmp_path / "file.pth", tmp_path / "e.safetensors", branch="ema")
    assert average.fingerprint == bare.fingerprint != plain.fingerprint
    assert any("--branch ema" in note for note in plain.notes)


def test_several_encoders_are_refused_with_an_advice_that_works(tmp_path, capsys) -> None:
    state = {**behind("student.backbone."), **behind("teacher.backbone.", mae_state(1))}
    torch.save({"model": state}, tmp_path / "file.pth")
    torch.save({"model": mae_state(1)}, tmp_path / "bare.pth")
    assert convert.main([str(tmp_path / "file.pth")]) == 2
    error = capsys.readouterr().err
    assert "ambiguous" in error and "--prefix teacher.backbone." in error
    made = conversion.convert(tmp_path / "file.pth", tmp_path / "e.safetensors", prefix="teacher.backbone.")
    assert made.fingerprint == conversion.convert(tmp_path / "bare.pth", tmp_path / "e.safetensors").fingerprint
    torch.save({"left": mae_state(), "right": mae_state(1)}, tmp_path / "file.pth")
    with pytest.raises(UserError, match="--prefix"):
        conversion.convert(tmp_path / "file.pth", tmp_path / "e.safetensors")
    again = conversion.convert(tmp_path / "file.pth", tmp_path / "e.safetensors", prefix="right")
    assert again.fingerprint == made.fingerprint


def test_a_refusal_says_what_is_supported_and_what_it_looks_like(tmp_path) -> None:
    torch.save({"model": {"layers.0.blocks.0.attn.qkv.weight": torch.zeros(3, 3)}}, tmp_path / "swin.pth")
    with pytest.raises(UserError, match="Swin.*supported are plain ViTs.*ResNets"):
        conversion.convert(tmp_path / "swin.pth", tmp_path / "e.safetensors")


def test_the_format_that_is_asked_for_takes_the_only_state_dict(tmp_path) -> None:
    torch.save({"weights": with_decoder(), "epoch": 3}, tmp_path / "file.pth")
    assert conversion.convert(tmp_path / "file.pth", tmp_path / "e.safetensors", format="mae").source_format == "mae"


def dinov2(depth: int = 4) -> dict[str, torch.Tensor]:
    known = formats.by_name("dinov2")
    state = {name: tensor for name, tensor in checkpoint_of(known).items() if isinstance(tensor, torch.Tensor)}
    copies = {
        name.replace("blocks.0.", f"blocks.{i}."): t
        for name, t in state.items()
        for i in range(2, depth)
        if "blocks.0." in name
    }
    return {**state, **copies}


def test_dinov2s_own_files(tmp_path) -> None:
    plain = {name: tensor for name, tensor in dinov2().items() if name != "register_tokens"}
    chunked = {
        f"backbone.blocks.{int(name.split('.')[1]) // 2}.{name.removeprefix('blocks.')}"
        if name.startswith("blocks.")
        else f"backbone.{name}": tensor
        for name, tensor in plain.items()
    }
    heads = {"dino_head.mlp.0.weight": torch.zeros(4, 4), "ibot_head.last_layer.weight_g": torch.zeros(4, 1)}
    torch.save(plain, tmp_path / "bare.pth")
    torch.save({"teacher": {**behind("backbone.", plain), **heads}}, tmp_path / "teacher.pth")
    torch.save({"teacher": {**chunked, **heads}}, tmp_path / "chunks.pth")
    names = ("bare", "teacher", "chunks")
    made = {conversion.convert(tmp_path / f"{name}.pth", tmp_path / "e.safetensors").fingerprint for name in names}
    assert len(made) == 1


def test_dinov2s_registers_have_no_position(tmp_path) -> None:
    state = dinov2()
    torch.save(state, tmp_path / "registers.pth")
    conversion.convert(tmp_path / "registers.pth", tmp_path / "e.safetensors")
    loaded = encoder.load(tmp_path / "e.safetensors")
    image = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        patches = torch.nn.functional.conv2d(image, state["patch_embed.proj.weight"], state["patch_embed.proj.bias"], 8)
        patches = patches.flatten(2).transpose(1, 2) + state["pos_embed"][:, 1:]
        expected = torch.cat([state["cls_token"] + state["pos_embed"][:, :1], state["register_tokens"], patches], 1)
        assert torch.allclose(loaded.embed(image), expected, atol=1e-6)


def test_inspect_says_it_in_ten_lines(tmp_path, capsys) -> None:
    torch.save({"model": mae_state(), "epoch": 2}, tmp_path / "mae.pth")
    assert convert.main(["--ckpt", str(tmp_path / "mae.pth"), "--inspect"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 10
    for word in ("architecture:", "width:", "depth:", "heads:", "patch:", "where:", "branches:", "converts:"):
        assert sum(line.startswith(word) for line in lines) == 1, word
    assert lines[-1].split(None, 1)[1] == "yes, as mae" and "128" in lines[2]
    torch.save({"model": {"layers.0.blocks.0.attn.qkv.weight": torch.zeros(3, 3)}}, tmp_path / "swin.pth")
    assert convert.main([str(tmp_path / "swin.pth"), "--inspect"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 10 and "Swin" in lines[-1] and "no: " in lines[-1]


def nested(levels: int, make):
    value = make("x")
    for _ in range(levels):
        value = make(value)
    return value


def expanding_archive(path) -> None:
    buffer = io.BytesIO()
    torch.save({"model": mae_state()}, buffer)
    with zipfile.ZipFile(buffer) as source, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as out:
        for name in source.namelist():
            out.writestr(name, source.read(name))
        out.writestr("archive/data/9999", b"\0" * 2**27)


def one_storage() -> dict[str, torch.Tensor]:
    shared = torch.zeros(3 * WIDTH, WIDTH)
    return {f"blocks.{index}.attn.qkv.weight": shared for index in range(10_000)}


HOSTILE = {
    "lists": lambda path: torch.save({"model": mae_state(), "args": {"a": nested(7, lambda v: [v] * 300)}}, path),
    "dictionaries": lambda path: torch.save(
        {"model": mae_state(), "x": nested(5, lambda v: {str(i): v for i in range(300)})}, path
    ),
    "an archive": expanding_archive,
    "many positions": lambda path: torch.save(
        {"model": {**mae_state(), "pos_embed": torch.zeros(1, 1 + 250**2, WIDTH).half()}}, path
    ),
    "one storage": lambda path: torch.save({"model": {**mae_state(), **one_storage()}}, path),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_expands_ends_soon(name, tmp_path, capsys) -> None:
    HOSTILE[name](tmp_path / "file.pth")
    begun = time.process_time()  # what runs beside must not count
    status = convert.main([str(tmp_path / "file.pth"), "--out", str(tmp_path / "e.safetensors")])
    assert time.process_time() - begun < 30
    error = capsys.readouterr().err
    assert status == 0 or status == 2 and error.count("\n") == 1 and "file.pth" in error


ODD_SPECS = {
    "unknown field": {"later": 1},
    "no heads": {"num_heads": 0},
    "patches of 0": {"patch_size": 0},
    "activation": {"activation": "x"},
    "mlp_ratio": {"mlp_ratio": 1e308},
    "depth": {"depth": 3_000_000},
    "text for a number": {"embed_dim": "wide"},
    "a list": {"mean": [1]},
    "not finite": {"mean": [float("nan")] * 3},
    "huge image": {"img_size": 10**9},
    "negative": {"registers": -1},
    "bool": {"depth": True},
    "family": {"family": "cnn"},
    "assumed": {"assumed": 3},
    "std": {"std": [0, 0, 0]},
    "positions": {"img_size": 4096, "patch_size": 1, "rel_pos_bias": True},
}


@pytest.mark.parametrize("name", ODD_SPECS)
def test_a_hostile_spec_is_one_sentence(name, tmp_path) -> None:
    torch.save({"model": mae_state()}, tmp_path / "mae.pth")
    conversion.convert(tmp_path / "mae.pth", tmp_path / "e.safetensors")
    spec = json.loads(encoder.read_spec(tmp_path / "e.safetensors").to_json())
    text = json.dumps({**spec, **ODD_SPECS[name]})
    save_file(load_file(tmp_path / "e.safetensors"), tmp_path / "odd.safetensors", {"kind": encoder.KIND, "spec": text})
    for call in (encoder.load, conversion.convert):
        with pytest.raises(UserError, match="odd.safetensors") as caught:
            call(tmp_path / "odd.safetensors", *([tmp_path / "x.safetensors"] if call is conversion.convert else []))
        assert "\n" not in str(caught.value)
