"""What a file does not say is read from beside it, said by an option, refused, or assumed aloud: never a number."""

import argparse
import json

import pytest
import timm
import torch
from safetensors.torch import save_file

from evaluate import convert, encoder
from evaluate.checkpoints import conversion, formats
from evaluate.checkpoints.statements import CLIP, HALF, IMAGENET, UNIT
from evaluate.runtime.errors import UserError
from tests.checkpoints.tiny_files import checkpoint_of
from tests.factories import WIDTH, mae_state

OTHER = ([0.1, 0.2, 0.3], [0.4, 0.5, 0.6])
BESIDE = {  # what lies beside a file of a format, and the fields that it decides
    "timm": ("config.json", {"pretrained_cfg": {"mean": OTHER[0], "std": OTHER[1]}}, {}),
    "beit_blocks": ("config.json", {"pretrained_cfg": {"mean": OTHER[0], "std": OTHER[1]}}, {}),
    "torchvision": ("config.json", {"pretrained_cfg": {"mean": OTHER[0], "std": OTHER[1]}}, {}),
    "moco_v3_vit": ("config.json", {"mean": OTHER[0], "std": OTHER[1]}, {}),
    "mmpretrain_vit": ("config.json", {"mean": OTHER[0], "std": OTHER[1]}, {}),
    "hf_vit": ("preprocessor_config.json", {"image_mean": OTHER[0], "image_std": OTHER[1]}, {}),
    "hf_clip": ("config.json", {"model_type": "clip", "vision_config": {"hidden_act": "gelu"}}, {"activation": "gelu"}),
    "open_clip": (
        "open_clip_config.json",
        {"model_cfg": {"quick_gelu": True, "vision_cfg": {"width": WIDTH, "head_width": 32}}},
        {"activation": "quick_gelu", "num_heads": 4},
    ),
}


def spec_of(path, folder, **options):
    """The spec of a conversion, and its certificate."""
    made = conversion.convert(path, folder / "out" / "encoder.safetensors", **options)
    return encoder.read_spec(folder / "out" / "encoder.safetensors"), made


@pytest.mark.parametrize("name", BESIDE)
def test_what_lies_beside_a_file_decides_for_every_format(name, tmp_path) -> None:
    file, content, fields = BESIDE[name]
    torch.save(checkpoint_of(formats.by_name(name)), tmp_path / "file.pth")
    (tmp_path / file).write_text(json.dumps(content))
    spec, made = spec_of(tmp_path / "file.pth", tmp_path)
    if "mean" in json.dumps(content):
        assert (spec.mean, spec.std) == (tuple(OTHER[0]), tuple(OTHER[1])) and "normalization" not in made.assumed
    assert all(getattr(spec, field) == value and field not in made.assumed for field, value in fields.items())


def hub_folder(folder, name, **arguments):
    """timm's model of a name, drawn at random, as its hub has it."""
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=0, **arguments).eval()
    folder.mkdir()
    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, folder / "model.safetensors")
    cfg = {"mean": list(model.pretrained_cfg["mean"]), "std": list(model.pretrained_cfg["std"])}
    (folder / "config.json").write_text(
        json.dumps({"architecture": name, "model_args": arguments, "pretrained_cfg": cfg})
    )
    return model


ARCHITECTURES = (
    "vit_base_patch16_clip_quickgelu_224",
    "vit_base_patch16_clip_224",
    "vit_small_patch14_reg4_dinov2",
    "vit_so400m_patch14_gap_224.pali",
    "deit3_small_patch16_224",
    "vit_medium_patch16_gap_240",
    "beitv2_base_patch16_224",
    "resnet18",
)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_named_architecture_gives_the_features_that_timm_gives(name, tmp_path) -> None:
    name = name.partition(".")[0]
    arguments = {} if name.startswith("resnet") else {"depth": 2}
    try:
        model = hub_folder(tmp_path / "hub", name, **arguments)
    except RuntimeError:
        pytest.skip(f"timm {timm.__version__} has no {name}")
    spec, made = spec_of(tmp_path / "hub", tmp_path)
    assert not made.assumed, made.assumed
    loaded = encoder.load(tmp_path / "out" / "encoder.safetensors")
    image = torch.randn(1, 3, spec.img_size, spec.img_size, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        theirs, ours = model.forward_features(image), loaded.forward_tokens(image)
        if spec.family == "resnet":
            assert (theirs - ours.map).abs().max() < 1e-4 * theirs.abs().max().clamp(min=1)
            return
        tokens = ours.patches if not spec.class_token else torch.cat([ours.cls[:, None], ours.patches], 1)
        tokens = loaded.model.norm(tokens) if spec.final_norm else tokens
        theirs = torch.cat([theirs[:, : int(spec.class_token)], theirs[:, int(spec.class_token) + spec.registers :]], 1)
    assert (theirs - tokens).abs().max() < 1e-4 * theirs.abs().max().clamp(min=1)
    wanted = "mean" if str(getattr(model, "global_pool", "token")).startswith("avg") else "cls"
    assert spec.pooling == wanted and (spec.mean, spec.std) == (
        model.pretrained_cfg["mean"],
        model.pretrained_cfg["std"],
    )


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"architecture": "swin_tiny_patch4_window7_224"}, "SwinTransformer"),
        ({"architecture": "vit_from_the_future"}, "does not know"),
        ({"architecture": "vit_base_patch16_224"}, "inconsistent"),
        ({"architecture": "vit_base_patch16_224", "model_args": {"depth": 10**9}}, "depth"),
        (
            {
                "architecture": "vit_base_patch16_224",
                "model_args": {"act_layer": "gelu_tanh", "embed_dim": 128, "num_heads": 2},
            },
            "GELUTanh",
        ),
    ],
)
def test_an_architecture_that_does_not_fit_is_refused(config, says, tmp_path) -> None:
    save_file(mae_state(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=says):
        conversion.convert(tmp_path, tmp_path / "encoder.safetensors")


def test_a_contradiction_is_refused_and_an_option_settles_it(tmp_path) -> None:
    file = tmp_path / "file.pth"
    torch.save(
        {"model": mae_state(), "args": argparse.Namespace(num_heads=4), "hyper_parameters": {"num_heads": 8}}, file
    )
    with pytest.raises(UserError, match="--assume num_heads"):
        conversion.convert(file, tmp_path / "encoder.safetensors")
    spec, made = spec_of(file, tmp_path, assume={"num_heads": "8"})
    assert spec.num_heads == 8 and "num_heads" not in made.assumed


@pytest.mark.parametrize("ending", [".pth", ".safetensors"])
def test_the_same_tensors_give_the_same_encoder_in_any_file(ending, tmp_path) -> None:
    torch.save({"model": mae_state()}, tmp_path / "first.pth")
    _, first = spec_of(tmp_path / "first.pth", tmp_path)
    file = tmp_path / f"second{ending}"
    (save_file if ending == ".safetensors" else torch.save)(mae_state(), file)
    _, second = spec_of(file, tmp_path)
    assert first.fingerprint == second.fingerprint
    assert set(first.assumed) == set(second.assumed) >= {"num_heads", "normalization", "layer_norm_eps", "activation"}


def test_a_norm_before_the_blocks_needs_the_activation_said(tmp_path) -> None:
    state = {name: tensor for name, tensor in mae_state().items() if name != "patch_embed.proj.bias"}
    save_file(
        {**state, "norm_pre.weight": torch.ones(WIDTH), "norm_pre.bias": torch.zeros(WIDTH)}, tmp_path / "a.safetensors"
    )
    with pytest.raises(UserError, match="activation=quick_gelu for OpenAI's models, --assume activation=gelu"):
        conversion.convert(tmp_path / "a.safetensors", tmp_path / "encoder.safetensors")
    spec, _ = spec_of(tmp_path / "a.safetensors", tmp_path, assume={"activation": "quick_gelu"})
    assert (spec.activation, spec.layer_norm_eps) == ("quick_gelu", 1e-5)


def test_a_resnets_state_dict_alone_is_no_simclr(tmp_path) -> None:
    torch.save(checkpoint_of(formats.by_name("simclr_converted")), tmp_path / "file.pth")
    spec, made = spec_of(tmp_path / "file.pth", tmp_path)
    assert (spec.mean, spec.std) == IMAGENET and "--normalize" in made.assumed["normalization"]["option"]
    spec, _ = spec_of(tmp_path / "file.pth", tmp_path, format="simclr_converted")
    assert (spec.mean, spec.std) == UNIT


def test_moco_v3s_linear_file_has_its_own_heads(tmp_path) -> None:
    content = checkpoint_of(formats.by_name("moco_v3_linear"))
    torch.save(content, tmp_path / "file.pth")
    assert spec_of(tmp_path / "file.pth", tmp_path)[1].source_format == "moco_v3_linear"
    del content["optimizer"], content["best_acc1"]
    torch.save(content, tmp_path / "file.pth")
    assert "num_heads" in spec_of(tmp_path / "file.pth", tmp_path)[1].assumed


def test_two_programs_files_in_one_folder_are_never_mixed(tmp_path) -> None:
    torch.save(checkpoint_of(formats.by_name("open_clip")), tmp_path / "open_clip_pytorch_model.bin")
    save_file(mae_state(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"pretrained_cfg": {"mean": OTHER[0], "std": OTHER[1]}}))
    (tmp_path / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": {"quick_gelu": True}, "preprocess_cfg": {"mean": HALF[0], "std": HALF[1]}})
    )
    spec, _ = spec_of(tmp_path / "open_clip_pytorch_model.bin", tmp_path)
    assert (spec.activation, spec.mean) == ("quick_gelu", HALF[0])
    spec, _ = spec_of(tmp_path, tmp_path)
    assert (spec.activation, spec.mean) == ("gelu", tuple(OTHER[0]))


OPTIONS = {
    "heads": ({"assume": {"num_heads": "4"}}, {"num_heads": 4}),
    "eps": ({"assume": {"layer_norm_eps": "1e-5"}}, {"layer_norm_eps": 1e-5}),
    "mean": (
        {"assume": {"mean": "0.1,0.2,0.3", "std": "(0.4, 0.5, 0.6)"}},
        {"mean": tuple(OTHER[0]), "std": tuple(OTHER[1])},
    ),
    "clip": ({"normalize": "clip"}, {"mean": CLIP[0], "std": CLIP[1]}),
    "none": ({"normalize": "none"}, {"mean": UNIT[0], "std": UNIT[1]}),
    "pooling": ({"assume": {"pooling": "mean"}}, {"pooling": "mean"}),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_an_option_wins_and_is_part_of_the_encoders_identity(name, tmp_path, capsys) -> None:
    options, fields = OPTIONS[name]
    file, out = tmp_path / "mae.pth", tmp_path / "encoder.safetensors"
    torch.save({"model": mae_state()}, file)
    conversion.ensure(file, out)
    plain = encoder.load(out)
    assert "--assume num_heads=VALUE" in capsys.readouterr().err
    stamp = out.stat().st_mtime_ns
    conversion.ensure(file, out, **options)
    loaded = encoder.load(out)
    assert out.stat().st_mtime_ns != stamp and all(getattr(loaded.spec, field) == v for field, v in fields.items())
    assert not set(fields) & set(loaded.spec.assumed) and (name == "pooling" or loaded.fingerprint != plain.fingerprint)
    stamp = out.stat().st_mtime_ns
    conversion.ensure(file, out, **options)
    assert out.stat().st_mtime_ns == stamp
    with pytest.raises(UserError, match="already an encoder file"):
        conversion.ensure(out, tmp_path / "other.safetensors", **options)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--assume", "heads=4"], "the fields are num_heads"),
        (["--assume", "num_heads"], "NAME=VALUE"),
        (["--assume", "num_heads=3"], "divide"),
        (["--assume", "activation=relu"], "one of gelu"),
        (["--assume", "mean=0.5"], "three numbers"),
        (["--normalize", "cifar"], "imagenet, half, clip, none"),
        (["--normalize", "half", "--assume", "std=1,1,1"], "twice"),
        (["--prefix", "left."], "no key that begins with"),
        (["--assume", "batch_norm_eps=1e-3"], "fields are num_heads"),
    ],
)
def test_an_option_that_cannot_be_meant_is_one_sentence(arguments, says, tmp_path, capsys) -> None:
    torch.save({"model": mae_state()}, tmp_path / "mae.pth")
    assert convert.main(["--ckpt", str(tmp_path / "mae.pth"), *arguments]) == 2
    error = capsys.readouterr().err
    assert says in error and error.count("\n") == 1 and [path.name for path in tmp_path.iterdir()] == ["mae.pth"]


def test_what_is_assumed_is_printed_and_kept(tmp_path, capsys) -> None:
    torch.save({"model": mae_state()}, tmp_path / "mae.pth")
    assert convert.main(["--ckpt", str(tmp_path / "mae.pth"), "--out", str(tmp_path / "e.safetensors")]) == 0
    printed = capsys.readouterr().out
    assert "assumed: num_heads 2 (64 channels a head); otherwise --assume num_heads=VALUE" in printed
    certificate = json.loads((tmp_path / "e.certificate.json").read_text())
    assert certificate["assumed"] == encoder.read_spec(tmp_path / "e.safetensors").assumed
    assert certificate["assumed"]["normalization"]["value"]["mean"] == list(IMAGENET[0])


def test_nothing_compared_is_not_passed(tmp_path) -> None:
    state = {name: torch.zeros_like(tensor) for name, tensor in mae_state().items()}
    torch.save({"model": state}, tmp_path / "zero.pth")
    with pytest.raises(UserError, match="nothing could be compared"):
        conversion.convert(tmp_path / "zero.pth", tmp_path / "encoder.safetensors")
    state = mae_state()
    state["blocks.1.mlp.fc2.weight"] *= 1e30
    state["blocks.2.mlp.fc2.weight"] *= 1e30
    torch.save({"model": state}, tmp_path / "large.pth")
    with pytest.raises(UserError, match="not finite"):
        conversion.convert(tmp_path / "large.pth", tmp_path / "encoder.safetensors")


def test_registers_are_compared_in_every_framework(tmp_path) -> None:
    torch.save(checkpoint_of(formats.by_name("dinov2")), tmp_path / "registers.pth")
    made = conversion.convert(tmp_path / "registers.pth", tmp_path / "encoder.safetensors")
    assert "5 of 5 comparisons made" in str(made) and all(check["passed"] for check in made.checks.values())
