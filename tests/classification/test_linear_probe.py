"""The linear probe's other protocols (MoCo, SimSiam, MoCo-v3, LIN fast), and what happens to a training that cannot go
on.
"""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from evaluate import finetune, linear_probe
from evaluate.classification import classifier, probe
from evaluate.classification.schedules import step_decay
from evaluate.data.transforms import RandomCropFlip
from evaluate.encoder.model import Encoder
from evaluate.harness import plan, task
from evaluate.runtime import settings, training_state
from evaluate.runtime.errors import UserError
from evaluate.runtime.lars import LARS
from results import record, tables
from tests.factories import FINETUNE, PROBE, environment, mae_state, resnet, vit
from tests.worlds import write_world

SMALL = {"img_size": 32, "resize": 32, "batch_size": 32, "micro_batch": 16, "epochs": 3}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_world(tmp_path_factory.mktemp("world"))


@pytest.mark.parametrize(
    ("name", "peak", "at_61", "epochs"),
    [("moco", 30.0, 3.0, 100), ("simsiam", 1.6, None, 90), ("moco_v3", 0.4, None, 90), ("moco_v3_vit", 12.0, None, 90)],
)
def test_protocols_of_other_papers(
    name: str, peak: float, at_61: float | None, epochs: int, data: Path, tmp_path: Path
) -> None:
    config = linear_probe.PRESETS[name]
    assert config.base_lr * config.batch_size / 256 == pytest.approx(peak) and config.epochs == epochs
    assert linear_probe.learning_rate(0.7, config, peak) == peak, "the rate changes once an epoch"
    if at_61:
        assert (
            linear_probe.learning_rate(61.0, config, peak) == pytest.approx(at_61)
            and linear_probe.learning_rate(59.99, config, peak) == peak
        )
    else:
        assert linear_probe.learning_rate(45.9, config, peak) == pytest.approx(peak / 2)
    assert not any(isinstance(layer, torch.nn.BatchNorm1d) for layer in probe.make_head(8, 3, config.batch_norm))
    env = environment(data, tmp_path, "linear_probe")
    small = replace(config, **SMALL, **({"milestones": (2,)} if name == "moco" else {}))
    assert linear_probe.run(vit() if name == "moco_v3_vit" else resnet(), small, env)["top5"] == 100
    assert env.notes["protocol"]["head"] == "linear"


def test_steps_of_the_rate() -> None:
    assert [step_decay(epoch, (60, 80), 30.0) for epoch in (0, 59.9, 60, 80, 99)] == pytest.approx(
        [30, 30, 3, 0.3, 0.3]
    )


def test_larc_scales_vectors_too() -> None:
    """w - lr trust |w| / |g| g, as apex's LARC without clipping, but for its 1e-8 in the denominator."""
    start = torch.randn(5, generator=torch.Generator().manual_seed(0))
    for vectors in (True, False):
        bias = torch.nn.Parameter(start.clone())
        bias.grad = torch.arange(5.0)
        LARS([bias], lr=0.5, momentum=0.0, trust=0.01, vectors=vectors).step()
        scale = 0.01 * start.norm() / bias.grad.norm() if vectors else 1.0
        torch.testing.assert_close(bias.data, start - 0.5 * scale * bias.grad)


def test_torchvision_crop_depends_on_seed_epoch_and_index_alone() -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8))
    crop = RandomCropFlip(16, "bilinear", seed=3)
    first = np.array(crop(image, 1, 2))
    torch.rand(5)
    assert first.shape == (16, 16, 3) and np.array_equal(first, np.array(crop(image, 1, 2)))
    others = [
        np.array(RandomCropFlip(16, "bilinear", seed)(image, *draw))
        for seed, *draw in ((4, 1, 2), (3, 2, 2), (3, 1, 3))
    ]
    assert not any(np.array_equal(first, other) for other in others)


def test_bad_settings() -> None:
    for change, says in (
        ("optimizer=adam", "optimizer"),
        ("schedule=steps", "milestones"),
        ("milestones=[3]", "milestones"),
    ):
        with pytest.raises(UserError, match=says):
            settings.override(PROBE, dict([change.split("=")]))


def test_lin_fast_takes_each_feature_once(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = replace(PROBE, views="cached", epochs=40, optimizer="sgd", base_lr=2.0)
    env = environment(data, tmp_path, "linear_fast")
    result = linear_probe.run(vit(), config, env)
    assert result["top1"] > 40, "four classes; chance is 25"
    assert env.notes["protocol"]["augmented"] is False and "LIN fast" in env.notes["protocol"]["other_protocol"]
    augmented = environment(data, tmp_path, "linear_probe")
    linear_probe.run(vit(), replace(config, views="augmented", epochs=2), augmented)
    assert "other_protocol" not in augmented.notes["protocol"]
    monkeypatch.setattr(Encoder, "forward_blocks", lambda *_: pytest.fail("features were computed again"))
    assert linear_probe.run(vit(), config, environment(data, tmp_path, "again")) == result


def test_lin_fast_has_a_column_and_a_footnote_of_its_own(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save({"model": mae_state()}, tmp_path / "mine.pth")
    common = [
        "--ckpt",
        str(tmp_path / "mine.pth"),
        "--data-root",
        str(data),
        "--out",
        str(tmp_path / "out"),
        "--preset",
        "demo",
        "--device",
        "cpu",
    ]
    small = ["--set", "epochs=2", "--set", "warmup_epochs=1", "--set", "batch_size=32"]
    assert task.main("linear_probe", [*common, *small]) == 0
    assert task.main("linear_probe", [*common, *small, "--set", "views=cached"]) == 0
    assert not list((tmp_path / "out").glob("mine/linear_fast-*/training_state.pt")), (
        "a training state stayed after its record"
    )
    entries = sorted(record.read_all(tmp_path / "out/records"), key=lambda entry: entry["task"], reverse=True)
    assert [entry["task"] for entry in entries] == ["linear_probe", "linear_fast"]
    made = tables.build(tmp_path, ["mine"], entries)
    cells = made.rows[-1].cells
    assert [cells[name].entry["task"] for name in ("LIN fast", "LIN")] == ["linear_fast", "linear_probe"]
    assert any(note.startswith("LIN fast: on features") for note in cells["LIN fast"].marks)
    assert "LIN fast" not in tables.build(tmp_path, ["mine"], entries[:1]).rows[-1].cells, "a column that nothing fills"
    text = tables.render(tmp_path, ["mine"], entries)
    assert "LIN fast" in text and "nan" not in text


def test_a_task_may_have_a_preset_of_its_own() -> None:
    nodes = plan.choose(["finetune", "linear_probe"])
    configs = plan.configure(nodes, "paper", settings.split_overrides(["finetune.preset=mae", "finetune.epochs=7"]))
    assert configs["linear_probe"] == ("paper", linear_probe.PRESETS["paper"])
    assert configs["finetune"] == ("mae", replace(finetune.PRESETS["mae"], epochs=7))
    with pytest.raises(UserError, match="'nonsense' of evaluate.finetune; the presets are paper, mae"):
        plan.configure(nodes, "paper", settings.split_overrides(["finetune.preset=nonsense"]))


def test_extra_nodes_run_only_when_they_are_asked_for() -> None:
    names = [node.name for node in plan.choose([])]
    assert "linear_probe" in names and not {"linear_fast", "sweep"} & set(names)
    assert [node.name for node in plan.choose(["linear_probe"])] == ["linear_probe"]
    assert [node.name for node in plan.choose(["linear_fast", "sweep"])] == ["linear_fast", "sweep"]


def test_maes_fine_tuning_trains_the_position_embedding() -> None:
    mae, large = finetune.PRESETS["mae"], finetune.PRESETS["mae_large"]
    assert mae.base_lr * mae.batch_size / 256 == pytest.approx(2e-3) and (
        mae.epochs,
        mae.layer_decay,
        mae.drop_path_rate,
    ) == (100, 0.65, 0.1)
    assert large.base_lr * large.batch_size / 256 == pytest.approx(4e-3) and (
        large.epochs,
        large.layer_decay,
        large.drop_path_rate,
    ) == (50, 0.75, 0.2)
    assert mae.train_positions and not finetune.PRESETS["paper"].train_positions
    model = classifier.Classifier(vit(), 4, train_positions=True)
    model(torch.randn(2, 3, 32, 32)).sum().backward()
    assert model.encoder.model.pos_embed.grad is not None


@pytest.mark.parametrize(("module", "config"), [(finetune, FINETUNE), (linear_probe, replace(PROBE, optimizer="sgd"))])
def test_a_diverged_training_says_so_and_leaves_no_state(module, config, data: Path, tmp_path: Path) -> None:
    env = environment(data, tmp_path, "task")
    with pytest.raises(UserError, match=r"diverged: the loss is not finite in epoch \d") as fault:
        module.run(vit(), replace(config, base_lr=1e38, warmup_epochs=0), env)
    epoch, path = int(re.search(r"epoch (\d)", str(fault.value))[1]), env.out_dir / training_state.FILE
    step = torch.load(path, weights_only=True)["step"] if path.exists() else 0
    assert step == epoch * 160 // 32, "the state that stays is not that of the last epoch whose loss was finite"


def test_a_damaged_state_is_named(data: Path, tmp_path: Path) -> None:
    env = environment(data, tmp_path, "linear_probe")
    (env.out_dir / training_state.FILE).write_bytes(b"PK\x03\x04 and then nothing")
    with pytest.raises(UserError, match=r"training_state\.pt is damaged.*remove it"):
        linear_probe.run(vit(), PROBE, env)


def test_an_unreadable_image_of_val_fails_the_column_unless_allowed(tmp_path: Path) -> None:
    root = write_world(tmp_path / "data")
    victim = sorted((root / "imagenet/val").glob("*/*.png"))[7]
    victim.write_bytes(victim.read_bytes()[:60])
    for module, config in ((finetune, replace(FINETUNE, epochs=2)), (linear_probe, replace(PROBE, epochs=2))):
        env = environment(root, tmp_path / module.__name__, "task")
        with pytest.raises(UserError, match=victim.name):
            module.run(vit(), config, env)
        module.run(vit(), replace(config, max_unreadable_images=1), env)
        assert env.notes["images_evaluated"]["val"] == 59 and env.notes["unreadable_images"]["val"] == [str(victim)]


@pytest.mark.parametrize(
    ("change", "limit", "says"),
    [({}, 1, "1 images a step are too few"), ({"micro_batch": 1}, None, "at least 2 images")],
)
def test_steps_that_cannot_be_shared_out(
    change: dict, limit: int | None, says: str, data: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=says):
        linear_probe.run(vit(), replace(PROBE, **change), environment(data, tmp_path, "linear_probe", limit=limit))
