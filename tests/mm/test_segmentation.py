"""UPerNet as MAE's protocol has it: groups, precision, several scales, several processes, ResNet-50."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import mmcv
import mmseg
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, DefaultScope
from safetensors.torch import save_file
from timm.models.resnet import Bottleneck, ResNet

from evaluate import segmentation
from evaluate.encoder.model import Encoder
from evaluate.encoder.spec import EncoderSpec
from evaluate.mm import hooks, recipes, segmenter
from evaluate.mm.multi_scale import MultiScale, Views, resize_short, short_sides
from evaluate.mm.optimizer import layer_id, parameter_groups
from evaluate.runtime import distributed
from evaluate.runtime.env import Env
from evaluate.runtime.errors import UserError
from evaluate.runtime.settings import override
from tests.factories import MEAN, STD, tiny_encoder

RATIOS = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
ROOT = Path(__file__).parents[2]


def recipe(name: str, encoder: Encoder, classes: int = 7) -> Any:
    cfg = recipes.read_recipe(name)
    segmenter.fill_encoder(cfg, encoder)
    cfg.model.decode_head.num_classes = cfg.model.auxiliary_head.num_classes = classes
    return cfg


def built(cfg: Any) -> torch.nn.Module:
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope("mmseg"):
        model = revert_sync_batchnorm(MODELS.build(cfg.model))
    return model


def watched(encoder: Encoder, world: Path, folder: Path, watch: Any, **changes: Any) -> dict[str, float]:
    """A short run whose runner ``watch`` sees before and after the training."""
    folder.mkdir(parents=True, exist_ok=True)
    hooks.Progress.before_train = lambda self, runner: watch(runner, False)
    hooks.Progress.after_train = lambda self, runner: watch(runner, True)
    try:
        config = dataclasses.replace(segmentation.PRESETS["demo"], **{"iterations": 2, **changes})
        return segmentation.run(encoder, config, Env(world, folder, limit=2))
    finally:
        del hooks.Progress.before_train, hooks.Progress.after_train


def test_weight_decay_and_rates_are_those_of_mmsegs_code() -> None:
    """pos_embed, cls_token and the bias tables are decayed; what has one axis is not; new parameters are neutral."""
    cfg = recipe("upernet_vit_160k_ade20k", tiny_encoder())
    with torch.device("meta"):
        model = built(cfg)
    settings = cfg.optim_wrapper
    assert (settings.paramwise_cfg.layer_decay, settings.optimizer.weight_decay, settings.optimizer.lr) == (
        0.65,
        0.05,
        1e-4,
    )
    groups = parameter_groups(model, 1e-4, 0.05, 0.65, 3, "mmseg")
    found = {name: (round(group["lr_scale"], 9), group["weight_decay"]) for group in groups for name in group["names"]}
    expected = {
        "backbone.pos_embed": (0.65**4, 0.05),
        "backbone.cls_token": (0.65**4, 0.05),
        "backbone.patch_embed.proj.bias": (0.65**4, 0.0),
        "backbone.blocks.0.attn.relative_position_bias_table": (0.65**3, 0.05),
        "backbone.blocks.1.ls1.gamma": (0.65**2, 0.0),
        "backbone.blocks.2.norm2.weight": (0.65, 0.0),
        "backbone.blocks.2.mlp.fc1.weight": (0.65, 0.05),
        "decode_head.conv_seg.weight": (1.0, 0.05),
    }
    assert {name: found[name] for name in expected} == {
        name: (round(rate, 9), decay) for name, (rate, decay) in expected.items()
    }
    assert len(found) == len(list(model.parameters()))


def test_registers_are_embeddings_to_the_layer_decay() -> None:
    cfg = recipe("upernet_vit_160k_ade20k", tiny_encoder(registers=2))
    with torch.device("meta"):
        model = built(cfg)
    groups = parameter_groups(model, 1e-4, 0.05, 0.65, 3, "mmseg")
    assert next(group["lr_scale"] for group in groups if "backbone.reg_token" in group["names"]) == 0.65**4
    assert layer_id("backbone.prefix_tokens", 12) == 0


def test_what_an_encoder_lacks_begins_neutrally() -> None:
    encoder = tiny_encoder()
    backbone = built(recipe("upernet_vit_demo_ade20k", encoder)).backbone
    new = backbone.load(encoder.spec, encoder.model.state_dict())["new"]
    state = backbone.state_dict()
    assert len(new) == 9  # three blocks, a table and two layer scales each
    assert all((state[name] == (1.0 if name.endswith("gamma") else 0.0)).all() for name in new)
    scaled = tiny_encoder(layer_scale=True)
    kept = backbone.load(scaled.spec, scaled.model.state_dict())
    assert len(kept["new"]) == 3 and torch.equal(
        backbone.blocks[1].ls1.gamma, scaled.model.state_dict()["blocks.1.ls1.gamma"]
    )


@pytest.mark.parametrize(
    ("precision", "expected"),
    [("auto", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)],
    ids=["auto", "bf16", "fp16"],
)
def test_mixed_precision_is_in_force(
    precision: str, expected: torch.dtype, encoder: Encoder, world: Path, tmp_path: Path
) -> None:
    """Linear layers compute in the short type in training, weights stay float32 and move; the test is in float32."""
    seen: dict[bool, set[torch.dtype]] = {True: set(), False: set()}
    weights: list[torch.Tensor] = []

    def watch(run: Any, trained: bool) -> None:
        layer = run.model.backbone.blocks[1].mlp.fc1
        weights.append(layer.weight.detach().clone())
        if not trained:
            layer.register_forward_hook(lambda module, _, output: seen[module.training].add(output.dtype))
        elif precision == "fp16":
            state = run.optim_wrapper.state_dict()
            assert state["scaler"]["scale"] >= 1
            run.optim_wrapper.load_state_dict(state)

    metrics = watched(encoder, world, tmp_path, watch, precision=precision)
    assert seen == {True: {expected}, False: {torch.float32}}
    assert weights[0].dtype == weights[1].dtype == torch.float32 and not torch.equal(*weights)
    assert torch.isfinite(weights[1]).all() and 0 <= metrics["miou"] <= 100


def test_a_precision_that_does_not_exist_is_refused() -> None:
    with pytest.raises(UserError, match="'precision' is one of auto, fp32"):
        override(segmentation.PRESETS["paper"], {"precision": "half"})


def test_sizes_of_several_scales() -> None:
    """mmseg 0.x with a least size: the shorter side is never below the crop, and the longer one is free."""
    assert short_sides(512, RATIOS) == {512: 3, 640: 1, 768: 1, 896: 1}
    assert resize_short(np.zeros((300, 2000, 3), np.uint8), 512).shape == (512, 3413, 3)
    assert resize_short(np.zeros((683, 512, 3), np.uint8), 640).shape == (854, 640, 3)


def test_several_scales_are_the_mean_of_twelve_views(encoder: Encoder) -> None:
    """Beside each of the six ratios and its mirror image taken alone, and a picture smaller than the crop."""
    model = built(recipe("upernet_vit_demo_ade20k", encoder)).eval()
    model.backbone.load(encoder.spec, encoder.model.state_dict())
    model.decode_head.conv_seg.weight.data.mul_(100)  # probabilities that differ
    picture = np.random.default_rng(0).integers(0, 256, (40, 56, 3), np.uint8)
    sample = {
        "img": picture,
        "img_path": "x",
        "ori_shape": (40, 56),
        "gt_seg_map": np.zeros((40, 56), np.uint8),
        "seg_fields": ["gt_seg_map"],
    }
    views = Views(64, RATIOS)(sample)
    assert len(views["inputs"]) == 8
    with torch.no_grad():
        (ours,) = MultiScale(model).test_step({key: [[value] for value in values] for key, values in views.items()})
        total = torch.zeros(7, 40, 56)
        for ratio in RATIOS:
            short = max(64, int(64 * ratio))
            image = mmcv.imrescale(picture, (short * 56 / 40, short))
            for mirrored in (False, True):
                tensor = torch.from_numpy(np.ascontiguousarray(image[:, ::-1] if mirrored else image)).permute(2, 0, 1)
                data = model.data_preprocessor({"inputs": [tensor]}, False)["inputs"]
                logits = model.inference(data, [{"ori_shape": (40, 56)}])
                logits = logits.flip(3) if mirrored else logits
                total += torch.nn.functional.interpolate(logits, (40, 56), mode="bilinear", align_corners=False)[
                    0
                ].softmax(0)
    assert torch.equal(ours.pred_sem_seg.data[0], total.argmax(0))
    assert len(total.argmax(0).unique()) > 1


def test_both_tests_are_in_the_record(encoder: Encoder, world: Path, tmp_path: Path) -> None:
    env = Env(world, tmp_path, limit=2)
    config = dataclasses.replace(segmentation.PRESETS["demo"], iterations=2, multi_scale=True)
    metrics = segmentation.run(encoder, config, env)
    assert set(metrics) == {"miou", "aacc", "miou_ms", "aacc_ms"} and metrics["miou"] != metrics["miou_ms"]
    assert env.notes["protocol"]["test of the _ms metrics"] == f"ratios {list(RATIOS)}, mirrored"
    assert env.notes["images_evaluated"] == {"ade20k": 2}
    assert segmentation.PRESETS["paper"].multi_scale


def test_resnet50_through_upernet() -> None:
    """The heads have the shapes of mmseg's own UPerNet-R50, and the loss of a step is finite."""
    torch.manual_seed(0)
    spec = EncoderSpec(
        family="resnet",
        embed_dim=2048,
        depth=4,
        patch_size=32,
        mean=MEAN,
        std=STD,
        layers=(3, 4, 6, 3),
        block="bottleneck",
    )
    encoder = Encoder(spec, ResNet(Bottleneck, (3, 4, 6, 3), 0).state_dict())
    model = built(recipe("upernet_resnet_160k_ade20k", encoder, classes=150)).train()
    model.backbone.load(spec, encoder.model.state_dict())
    path = Path(mmseg.__file__).parent / ".mim/configs/upernet/upernet_r50_4xb4-160k_ade20k-512x512.py"
    with torch.device("meta"), DefaultScope.overwrite_default_scope("mmseg"):
        theirs = MODELS.build({**Config.fromfile(path).model, "pretrained": None})
    for head in ("decode_head", "auxiliary_head"):
        ours = {name: value.shape for name, value in getattr(model, head).state_dict().items()}
        assert ours == {name: value.shape for name, value in getattr(theirs, head).state_dict().items()}
    losses = model(torch.zeros(2, 3, 64, 96), _labels(64, 96), mode="loss")
    assert {"decode.loss_ce", "aux.loss_ce"} <= set(losses) and all(
        torch.isfinite(value).all() for value in losses.values()
    )


def _labels(height: int, width: int) -> list[Any]:
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample

    return [SegDataSample(gt_sem_seg=PixelData(data=torch.randint(0, 150, (1, height, width)))) for _ in range(2)]


TWO = """
import sys
from pathlib import Path
import torch
from safetensors.torch import load_file
from evaluate import segmentation
from evaluate.encoder import Encoder, EncoderSpec
from evaluate.mm import hooks
from evaluate.runtime import distributed
from evaluate.runtime.env import Env
import dataclasses, json
torch.set_num_threads(1)
distributed.start("cpu")
weights, world, out = map(Path, sys.argv[1:4])

def after_train(self, runner):
    if runner.rank == 0:
        torch.save(runner.model.module.state_dict(), out / "trained.pt")

hooks.Progress.after_train = after_train
encoder = Encoder(EncoderSpec.from_json(weights.with_suffix(".json").read_text()), load_file(weights))
config = dataclasses.replace(segmentation.PRESETS["demo"], iterations=3, multi_scale=True)
metrics = segmentation.run(encoder, config, Env(world, out, limit=3))
(out / f"metrics{torch.distributed.get_rank()}.json").write_text(json.dumps(metrics))
distributed.end(0)
"""


def test_two_processes(encoder: Encoder, world: Path, tmp_path: Path) -> None:
    """Two processes train together; both give the mIoU of one process with the same weights; 3 pictures are uneven."""
    weights = tmp_path / "encoder.safetensors"
    save_file(encoder.model.state_dict(), weights)
    weights.with_suffix(".json").write_text(encoder.spec.to_json())
    script = tmp_path / "two.py"
    script.write_text(TWO)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*command, str(weights), str(world), str(tmp_path)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    first, second = ((tmp_path / f"metrics{rank}.json").read_text() for rank in range(2))
    trained = torch.load(tmp_path / "trained.pt", weights_only=True)

    (tmp_path / "one").mkdir()
    hooks.Progress.after_train = lambda self, run: run.model.load_state_dict(trained)
    try:
        config = dataclasses.replace(segmentation.PRESETS["demo"], iterations=1, multi_scale=True)
        one = segmentation.run(encoder, config, Env(world, tmp_path / "one", limit=3))
    finally:
        del hooks.Progress.after_train
    assert json.loads(first) == json.loads(second) == one


def test_a_batch_that_processes_cannot_share_is_refused(
    encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = recipe("upernet_vit_demo_ade20k", encoder)
    monkeypatch.setattr(distributed, "world_size", lambda: 3)
    with pytest.raises(UserError, match="4 images cannot be divided evenly among 3 processes"):
        recipes.share_out(cfg, Env(tmp_path, tmp_path))


@pytest.mark.parametrize("changes", [{"batch_size": 1}, {"micro_batch": 1}], ids=["batch", "at once"])
def test_a_single_crop_is_refused(changes: dict[str, int], encoder: Encoder, world: Path, tmp_path: Path) -> None:
    config = dataclasses.replace(segmentation.PRESETS["demo"], **changes)
    with pytest.raises(UserError, match="at least two crops at once"):
        segmentation.run(encoder, config, Env(world, tmp_path))
    cfg = recipe("upernet_vit_demo_ade20k", encoder)
    segmenter.require_two_crops(cfg, 2, "cpu")
