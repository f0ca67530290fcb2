"""Written out and read back: the same encoder bit by bit, in files that the other programs load; and what cannot be
written is refused."""

import json

import pytest
import timm
import torch
import torchvision

from evaluate import convert, encoder
from evaluate.checkpoints import conversion, export, formats
from evaluate.checkpoints.certificate import fixed_image
from evaluate.runtime.errors import UserError
from tests.checkpoints.tiny_files import checkpoint_of, tiny_resnet
from tests.factories import mae_state

REFUSED = {  # format of the source: what cannot be written, and why
    "mae": {"torchvision": "ViT"},
    "finetuned": {"hf": "fc_norm", "torchvision": "ViT"},
    "clip_openai": {"mae": "norm before the blocks", "hf": "norm before the blocks", "torchvision": "ViT"},
    "beit": {"mae": "relative position bias", "hf": "layer scale", "torchvision": "ViT"},
    "simclr_converted": {"mae": "ResNet", "hf": "ResNet"},
}
SOURCES = (
    "mae",
    "siameseim",
    "finetuned",
    "dino",
    "clip_openai",
    "beit",
    "hf_vit",
    "hf_vit_mae",
    "timm",
    "simclr_converted",
)


def _encoder(name, tmp_path):
    torch.save(checkpoint_of(formats.by_name(name)), tmp_path / "source.pth")
    conversion.convert(tmp_path / "source.pth", tmp_path / "encoder.safetensors")
    return tmp_path / "encoder.safetensors"


@pytest.mark.parametrize("to", export.TARGETS)
@pytest.mark.parametrize("name", SOURCES)
def test_round_trip_is_bit_identical(name, to, tmp_path, capsys) -> None:
    file = _encoder(name, tmp_path)
    first = encoder.load(file)
    out = tmp_path / "written" / f"file{export.TARGETS[to].ending}"
    status = convert.main([str(file), "--to", to, "--out", str(out)])
    captured = capsys.readouterr()
    refused = {
        **REFUSED.get(name, {}),
        **({"torchvision": "ViT"} if first.spec.family == "vit" else {"mae": "ResNet", "hf": "ResNet"}),
    }
    if to in refused:
        assert status == 2 and refused[to] in captured.err and captured.err.count("\n") == 1
        assert not out.exists() and not out.parent.exists()
        return
    assert status == 0, captured.err
    conversion.convert(out, tmp_path / "again.safetensors")
    again = encoder.load(tmp_path / "again.safetensors")
    before, after = first.model.state_dict(), again.model.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)
    assert again.fingerprint == first.fingerprint and again.spec.pooling == first.spec.pooling
    image = fixed_image(first.spec.img_size)
    assert torch.equal(first.forward_tokens(image).pooled("mean"), again.forward_tokens(image).pooled("mean"))
    assert sorted(path.name for path in out.parent.iterdir()) == [out.name]


def test_an_encoder_file_converts_to_itself(tmp_path) -> None:
    """Its tensors alone look like timm's, whose mean and std are others."""
    for name in ("siameseim", "beit", "clip_openai", "simclr_converted"):
        folder = tmp_path / name
        folder.mkdir()
        file = _encoder(name, folder)
        assert conversion.convert(file, folder / "copy.safetensors").fingerprint == encoder.load(file).fingerprint


def test_branch_and_foreign_checkpoint(tmp_path) -> None:
    torch.save(checkpoint_of(formats.by_name("siameseim")), tmp_path / "source.pth")
    for branch in ("online", "target"):
        assert (
            convert.main(
                [
                    str(tmp_path / "source.pth"),
                    "--to",
                    "mae",
                    "--branch",
                    branch,
                    "--out",
                    str(tmp_path / f"{branch}.pth"),
                ]
            )
            == 0
        )
    online, target = (
        torch.load(tmp_path / f"{branch}.pth", weights_only=True)["model"] for branch in ("online", "target")
    )
    assert online.keys() == target.keys() and not torch.equal(online["cls_token"], target["cls_token"])


def test_timm_loads_the_timm_file(tmp_path) -> None:
    loaded = encoder.load(_encoder("mae", tmp_path))
    export.export(loaded, "timm", tmp_path / "timm.safetensors")
    arguments = export.timm_arguments(loaded.spec)
    model = timm.create_model(
        "vit_base_patch16_224", checkpoint_path=str(tmp_path / "timm.safetensors"), **arguments
    ).eval()
    image = fixed_image(loaded.spec.img_size)
    with torch.no_grad():
        assert torch.allclose(model.forward_features(image), loaded.model.forward_features(image), atol=1e-6)


def test_torchvision_loads_the_torchvision_file(tmp_path) -> None:
    roles = {name: name for name in ("conv1", "bn1", "layer1", "layer2", "layer3", "layer4")}
    torch.save(tiny_resnet(roles, 0), tmp_path / "source.pth")
    conversion.convert(tmp_path / "source.pth", tmp_path / "encoder.safetensors")
    loaded = encoder.load(tmp_path / "encoder.safetensors")
    export.export(loaded, "torchvision", tmp_path / "written.pth")
    model = torchvision.models.ResNet(torchvision.models.resnet.Bottleneck, [1, 1, 1, 1], width_per_group=8)
    model.fc = torch.nn.Identity()
    model.load_state_dict(torch.load(tmp_path / "written.pth", weights_only=True), strict=True)
    image = fixed_image(64)
    with torch.no_grad():
        assert torch.allclose(model.eval()(image), loaded.forward_tokens(image).pooled(), atol=1e-5)


def test_huggingface_folder_is_transformers_own(tmp_path) -> None:
    loaded = encoder.load(_encoder("hf_vit_mae", tmp_path))
    export.export(loaded, "hf", tmp_path / "hf")
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert (config["layer_norm_eps"], config["hidden_act"], config["model_type"]) == (1e-12, "gelu", "vit")
    transformers = pytest.importorskip("transformers")
    model = transformers.ViTModel.from_pretrained(tmp_path / "hf", add_pooling_layer=False).eval()
    image = fixed_image(loaded.spec.img_size)
    with torch.no_grad():
        assert torch.allclose(model(image).last_hidden_state, loaded.model.forward_features(image), atol=1e-5)


def test_what_an_exported_file_says_is_checked(tmp_path) -> None:
    torch.save({"model": mae_state(), "encoder_spec": {"activation": "relu"}}, tmp_path / "file.pth")
    with pytest.raises(UserError, match="activation 'relu'"):
        conversion.convert(tmp_path / "file.pth", tmp_path / "encoder.safetensors")
    torch.save({"model": mae_state(), "encoder_spec": {"mean": ["a", 0, 0]}}, tmp_path / "file.pth")
    with pytest.raises(UserError, match="three numbers"):
        conversion.convert(tmp_path / "file.pth", tmp_path / "encoder.safetensors")


def test_an_existing_folder_is_not_overwritten(tmp_path) -> None:
    loaded = encoder.load(_encoder("mae", tmp_path))
    with pytest.raises(UserError, match="there already"):
        export.export(loaded, "hf", tmp_path)


def test_the_ending_that_readers_go_by_is_asked_for(tmp_path) -> None:
    loaded = encoder.load(_encoder("mae", tmp_path))
    with pytest.raises(UserError, match="end in .safetensors; write --out .*model.safetensors"):
        export.export(loaded, "timm", tmp_path / "model.bin")
    assert not (tmp_path / "model.bin").exists() and export.export(loaded, "mae", tmp_path / "model.pt") is not None
