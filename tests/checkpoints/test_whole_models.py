"""timm's own models by their names: their features are timm's, from the file to the pyramid and to the table."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.optim import param_groups_layer_decay

from evaluate import encoder as encoders
from evaluate import finetune
from evaluate.checkpoints import conversion, named, whole_certificates, whole_models
from evaluate.checkpoints.certificate import Certificate
from evaluate.classification import classifier, finetuning
from evaluate.encoder import timm_models
from evaluate.encoder.model import Encoder
from evaluate.harness import rows
from evaluate.harness.cost import VIT_B
from evaluate.mm.backbones.pyramid import PyramidBackbone
from evaluate.runtime.errors import UserError
from results import record
from tests.worlds import write_folder

ROOT = Path(__file__).parents[2]
TEN = (
    "test_convnext",
    "test_convnext2",
    "convnextv2_atto",
    "swin_tiny_patch4_window7_224",
    "regnetx_002",
    "test_efficientnet",
    "test_efficientnet_ln",
    "mobilenetv3_small_050",
    "test_maxvit",
    "test_nfnet",
)


def weights(name: str, folder: Path) -> Path:
    """A file of random weights as timm's hub has them: with the classifier, flat."""
    torch.manual_seed(3)
    model = timm.create_model(name).eval()
    for buffer in model.buffers():
        if buffer.is_floating_point():
            buffer.data += 0.1 * torch.rand_like(buffer)  # running statistics of a training
    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, folder / "model.safetensors")
    return folder / "model.safetensors"


def converted(name: str, folder: Path) -> tuple[Encoder, Path]:
    file = weights(name, folder)
    return encoders.load(conversion.ensure(f"timm:{name}@{file}", folder / "encoder.safetensors")), file


@pytest.mark.parametrize("name", TEN)
@torch.no_grad()
def test_features_and_pyramid_are_timms(name: str, tmp_path: Path) -> None:
    """timm itself reads the file; what we save, load and run is the same to 1e-4."""
    encoder, file = converted(name, tmp_path)
    theirs = {"pretrained": True, "pretrained_cfg_overlay": {"file": str(file)}}
    plain = timm.create_model(name, **theirs).eval()
    native = plain.pretrained_cfg["input_size"][1]
    images = torch.randn(2, 3, native, native)
    expected = plain.forward_head(plain.forward_features(images), pre_logits=True)
    assert encoder.spec.mean == plain.pretrained_cfg["mean"] and encoder.spec.embed_dim == expected.shape[1]
    torch.testing.assert_close(
        encoder.pooled(images), expected, rtol=0, atol=1e-4 * max(1, float(expected.abs().max()))
    )
    levels = timm.create_model(name, features_only=True, **theirs).eval()
    reductions = levels.feature_info.reduction()
    pyramid = [found for found, reduction in zip(levels(images), reductions, strict=True) if reduction >= 4]
    backbone = PyramidBackbone(encoder.spec.to_json())
    backbone.load(encoder.spec, encoder.model.state_dict())
    assert reductions[-4:] == [4, 8, 16, 32]
    for mine, found, width in zip(backbone.eval()(images), pyramid, encoder.spec.maps, strict=True):
        found = found if found.shape[1] == width else found.permute(0, 3, 1, 2)
        torch.testing.assert_close(mine, found, rtol=0, atol=1e-4 * max(1, float(found.abs().max())))
    uneven = backbone(torch.randn(1, 3, native + 20, native - 20))  # as pictures are
    assert [level.shape[2:] for level in uneven] == [
        (-(-(native + 20) // stride), -(-(native - 20) // stride)) for stride in (4, 8, 16, 32)
    ]


def test_the_certificate_sees_another_model(tmp_path: Path) -> None:
    encoder, _ = converted("test_convnext", tmp_path)
    kept = Certificate.read(encoders.certificate_path(tmp_path / "encoder.safetensors"))
    assert {name: check["passed"] for name, check in kept.checks.items()} == {
        "timm": True,
        "mmdet and mmseg, pyramid": True,
    }
    for name, layer in (("timm", "norm_pre"), ("mmdet and mmseg, pyramid", "stages")):
        handle = getattr(encoder.model, layer).register_forward_hook(lambda _, __, out: 1.001 * out)
        checks = whole_certificates.of_timm(encoder)
        handle.remove()
        assert not checks["timm"]["passed"], name
    other = replace(encoder.spec, maps=(24, 32, 48, 64))
    assert encoders.fingerprint(other, encoder.model.state_dict()) == encoder.fingerprint
    assert encoders.fingerprint(replace(other, model="x"), encoder.model.state_dict()) != encoder.fingerprint


def test_what_a_spec_did_not_have_changes_no_older_fingerprint() -> None:
    """Records are found by it."""
    assert encoders.fingerprint(VIT_B, {}) == "e72b4fa996528c85c017211932fea6aaec6bb1028270fda8436739159d246cfb"


def test_layer_decay_is_timms(tmp_path: Path) -> None:
    for name in ("test_convnext", "swin_tiny_patch4_window7_224", "regnetx_002"):
        encoder, _ = converted(name, tmp_path)
        model = classifier.Classifier(encoder, 5, drop_path_rate=0.1)
        drops = [part.drop_prob for part in model.modules() if type(part).__name__ == "DropPath"]
        assert drops and max(drops) == pytest.approx(0.1)
        assert all(parameter.requires_grad for parameter in model.parameters())
        groups = finetuning.make_optimizer(model, 0.5, 0.05).param_groups
        names = {id(parameter): key for key, parameter in model.named_timm_parameters()}
        mine = {names[id(p)]: (group["scale"], group["weight_decay"]) for group in groups for p in group["params"]}
        whole = timm.create_model(name, num_classes=5)
        theirs = {}
        for group in param_groups_layer_decay(
            whole, 0.05, whole.no_weight_decay() if hasattr(whole, "no_weight_decay") else (), layer_decay=0.5
        ):
            of = {id(parameter): key for key, parameter in whole.named_parameters()}
            theirs |= {of[id(p)]: (group["lr_scale"], group["weight_decay"]) for p in group["params"]}
        classifiers = {key for key in theirs if key not in mine}
        assert {theirs.pop(key)[0] for key in classifiers} == {mine["head.weight"][0]} == {1.0}
        assert {key: mine[key] for key in theirs} == theirs and len(set(theirs.values())) > 5


def test_a_vit_by_its_name_is_the_canonical_one(tmp_path: Path) -> None:
    """It keeps ViTDet's pyramid, windows and all columns."""
    encoder, file = converted("test_vit", tmp_path)
    plain = timm.create_model("test_vit", pretrained=True, pretrained_cfg_overlay={"file": str(file)}).eval()
    images = torch.randn(2, 3, 160, 160)
    assert encoder.spec.family == "vit" and not encoder.spec.assumed
    tokens = encoder.forward_tokens(images)
    torch.testing.assert_close(
        encoder.model.norm(tokens.cls), plain.forward_features(images)[:, 0], rtol=1e-4, atol=1e-4
    )


def test_what_a_name_cannot_be(tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    file = weights("test_convnext", tmp_path)
    for text, said in {
        "timm:convnext_gigantic": "has no model 'convnext_gigantic'; it has ",
        f"timm:test_convnext2@{file}": "the file has besides .* more; has another shape of .*; give weights",
        f"timm:test_convnext@{tmp_path}/none": "there is no checkpoint",
    }.items():
        with pytest.raises(UserError, match=said):
            conversion.convert(text, out)
    with pytest.raises(UserError, match="only --prefix, --normalize"):
        conversion.convert("timm:test_convnext", out, assume={"num_heads": 3})
    averaged = timm.create_model("test_convnext").state_dict()
    torch.save({"model": {"w": torch.ones(1)}, "ema": averaged}, tmp_path / "two.pth")
    conversion.convert(f"timm:test_convnext@{tmp_path / 'two.pth'}", out, normalize="half")
    assert encoders.load(out).spec.mean == (0.5, 0.5, 0.5) and not out.with_name("none").exists()
    encoder = encoders.load(conversion.ensure("timm:test_maxvit", out))
    with pytest.raises(
        UserError, match="takes images of multiples of 160 px, not of 224; choose with --set img_size=N"
    ):
        encoder.pooled(torch.zeros(1, 3, 224, 224))
    assert encoder.spec.remark == whole_models.RANDOM
    again = encoders.load(conversion.ensure("timm:test_maxvit", tmp_path / "again.safetensors"))
    assert again.fingerprint == encoder.fingerprint


def test_rows_of_named_models(tmp_path: Path) -> None:
    file = weights("test_convnext", tmp_path)
    (tmp_path / "my.py").write_text("")
    found = rows.named_checkpoints(
        ["timm:test_convnext", f"b=timm:test_nfnet@{file}", f"c={file}@{tmp_path}/my.py:Net"]
    )
    assert set(found) == {"test_convnext", "b", "c"}
    sources = {rows.source_id(path, {}) for path in (*found.values(), Path(f"timm:test_convnext@{file}"), file)}
    assert len(sources) == 5
    assert named.with_class(f"a={file}", "my.py:Net") == f"a={file}@my.py:Net"
    assert named.with_class("a=timm:test_nfnet", "my.py:Net") == "a=timm:test_nfnet"
    with pytest.raises(UserError, match=r"there is no file .*other.py; give a class"):
        rows.named_checkpoints([f"d={file}@{tmp_path}/other.py:Net"])


def test_from_a_name_to_the_table(tmp_path: Path) -> None:
    data, out = tmp_path / "data", tmp_path / "out"
    write_folder(data / "imagenet/train", 6, seed=1)
    write_folder(data / "imagenet/val", 3, seed=2)
    command = [sys.executable, "run_all.py", "--ckpt", f"cnx=timm:test_convnext@{weights('test_convnext', tmp_path)}"]
    command += ["--data-root", str(data), "--tasks", "knn", "--preset", "demo", "--out", str(out), "--device", "cpu"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (entry,) = record.read_all(out / "records")
    assert entry["architecture"] == "test_convnext" and entry["status"] == "ok" and entry["estimate"]["memory"] > 0
    again = subprocess.run([*command, "--dry-run"], cwd=ROOT, capture_output=True, text=True).stdout
    assert "stands" in again and "not converted yet" not in again
    assert json.loads((out / "cnx/encoder.certificate.json").read_text())["passed"]
    assert finetune.read_out(encoders.read_spec(out / "cnx/encoder.safetensors"))["head"] == "linear"
    assert timm_models.STRIDES == (4, 8, 16, 32)
