"""The five ImageNet tasks on a small world: they learn, they are repeatable, and a killed one gives what an unbroken
one does.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from evaluate import few_shot, finetune, knn, linear_probe, robustness
from evaluate.classification import classifier
from evaluate.data.layouts import CORRUPTIONS
from evaluate.runtime import training_state
from evaluate.runtime.errors import Skip, UserError
from results import predictions
from tests.factories import FINETUNE, PROBE, environment, resnet, vit
from tests.worlds import WNIDS, write_world


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def tuned(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, float]]:
    """A classifier and its metrics."""
    env = environment(data, tmp_path_factory.mktemp("tuned"), "finetune")
    return env.out_dir, finetune.run(vit(), FINETUNE, env)


def test_finetune_learns(data: Path, tmp_path: Path) -> None:
    config = replace(finetune.PRESETS["demo"], epochs=12, warmup_epochs=2, batch_size=16, micro_batch=16, base_lr=0.03)
    env = environment(data, tmp_path, "finetune")
    result = finetune.run(vit(), config, env)
    assert result["top1"] > 45, "four classes; chance is 25"
    assert result["top5"] == 100
    correct = predictions.outcome(predictions.load(env.out_dir), "top1")
    assert correct.dtype == bool and 100 * correct.mean() == pytest.approx(result["top1"])
    assert env.notes["images_evaluated"] == {"train": 160, "val": 60}
    adapted = classifier.load(env.out_dir / "classifier.safetensors", vit())[0].encoder
    config = replace(PROBE, epochs=10, batch_size=16, base_lr=100.0)  # the paper's rate, 6.25, at this batch
    probe = linear_probe.run(adapted, config, environment(data, tmp_path / "adapted", "linear_probe"))
    assert probe["top1"] > 40, "the probe finds what fine-tuning put into the encoder"


@pytest.mark.parametrize("task", ["finetune", "linear_probe"])
def test_killed_run_continues_to_the_same_bits(
    data: Path, tmp_path: Path, task: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, config = (finetune, FINETUNE) if task == "finetune" else (linear_probe, PROBE)
    whole = environment(data, tmp_path / "whole", task)
    expected = module.run(vit(), config, whole)
    broken = environment(data, tmp_path / "broken", task)
    save, saved = training_state.save, []

    def save_then_die(*arguments: object) -> None:
        save(*arguments)
        saved.append(1)
        if len(saved) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(training_state, "save", save_then_die)
    with pytest.raises(KeyboardInterrupt):
        module.run(vit(), config, broken)
    saved.append(1)
    assert (broken.out_dir / "training_state.pt").is_file()
    torch.rand(7)  # the state of the global generator must not matter
    assert module.run(vit(), config, broken) == expected
    assert len(saved) == 3 + 2, "it did not continue after epoch 2 of 4"
    for name in ("predictions.npz", "classifier.safetensors")[: 2 if task == "finetune" else 1]:
        assert (broken.out_dir / name).read_bytes() == (whole.out_dir / name).read_bytes()
    assert module.run(vit(), config, broken) == expected, "the finished state, which stays until there is a record"
    assert len(saved) == 3 + 2, "a finished training was repeated"


def test_state_of_another_config_is_not_continued(data: Path, tmp_path: Path) -> None:
    env = environment(data, tmp_path, "linear_probe")
    training_state.save(env.out_dir, "another", {"step": 10**6})
    assert linear_probe.run(vit(), PROBE, env) == linear_probe.run(
        vit(), PROBE, environment(data, tmp_path / "b", "linear_probe")
    )


def test_few_shot_and_knn(data: Path, tmp_path: Path) -> None:
    env = environment(data, tmp_path, "few_shot")
    shot = few_shot.run(vit(), few_shot.PRESETS["demo"], env)
    assert set(shot) == {"top1"} and env.notes["images_evaluated"] == {"1percent": 24, "val": 60}
    env = environment(data, tmp_path, "knn")
    near = knn.run(vit(), knn.PRESETS["demo"], env)
    assert near["top1"] == near["top1_k20"] > 30
    assert predictions.outcome(predictions.load(env.out_dir), "top1").mean() * 100 == pytest.approx(near["top1"])


def test_robustness(data: Path, tmp_path: Path, tuned: tuple[Path, dict[str, float]]) -> None:
    folder, metrics = tuned
    env = environment(data, tmp_path, "robustness", inputs={"classifier": folder / "classifier.safetensors"})
    result = robustness.run(vit(), robustness.PRESETS["demo"], env)
    assert result["clean_top1"] == metrics["top1"], "the classifier that was saved is not the one that was measured"
    assert result["imagenet_a_top1"] >= result["imagenet_a_top1_all_classes"]
    assert result["imagenet_c"] == 100 - result["imagenet_c_mce"]
    assert set(env.notes["protocol"]["corruption_errors"]) == set(CORRUPTIONS)
    assert env.notes["images_evaluated"] == {
        "val": 60,
        "imagenet_a": 6,
        "imagenet_r": 9,
        "imagenet_sketch": 8,
        "imagenet_c": 300,
    }
    assert np.mean(list(env.notes["protocol"]["corruption_errors"].values())) == pytest.approx(
        result["imagenet_c_mean_error"]
    )


def test_robustness_without_some_sets(tmp_path: Path, tuned: tuple[Path, dict[str, float]]) -> None:
    root = write_world(tmp_path / "data")
    (root / "imagenet-a").rename(root / "away")
    (root / "imagenet-c/fog").rename(root / "fog")
    env = environment(root, tmp_path, "robustness", inputs={"classifier": tuned[0] / "classifier.safetensors"})
    result = robustness.run(vit(), robustness.PRESETS["demo"], env)
    assert {"imagenet_r_top1", "imagenet_sketch_top1"} < set(result) and not {"imagenet_a_top1", "imagenet_c"} & set(
        result
    )
    assert set(env.notes["skipped"]) == {"imagenet_a", "imagenet_c"} and "fog" in env.notes["skipped"]["imagenet_c"]


def test_robustness_refuses_a_wrong_classifier(
    data: Path, tmp_path: Path, tuned: tuple[Path, dict[str, float]]
) -> None:
    path = tuned[0] / "classifier.safetensors"
    with pytest.raises(UserError, match="another encoder"):
        robustness.run(
            vit(seed=5), robustness.Config(), environment(data, tmp_path, "robustness", inputs={"classifier": path})
        )
    damaged = tmp_path / "classifier.safetensors"
    damaged.write_bytes(path.read_bytes()[:500])
    with pytest.raises(UserError, match="not a classifier"):
        robustness.run(
            vit(), robustness.Config(), environment(data, tmp_path, "robustness", inputs={"classifier": damaged})
        )
    with pytest.raises(Skip, match="evaluate.finetune"):
        robustness.run(vit(), robustness.Config(), environment(data, tmp_path, "robustness"))


def test_other_architectures(data: Path, tmp_path: Path) -> None:
    """Without class token, and a ResNet: every task runs; the limit is obeyed and reported."""
    for name, encoder in (("plain", vit(class_token=False)), ("resnet", resnet())):
        for module, config in (
            (finetune, replace(FINETUNE, epochs=2)),
            (linear_probe, replace(PROBE, epochs=2)),
            (few_shot, few_shot.PRESETS["demo"]),
            (knn, knn.PRESETS["demo"]),
        ):
            env = environment(data, tmp_path / name, module.__name__, limit=20)
            assert 0 <= module.run(encoder, config, env)["top1"] <= 100
            assert env.notes["images_evaluated"]["val"] == 20 and env.notes["images_asked"]["val"] == 60


def test_classifier_trains_all_but_position_embedding_and_last_norm() -> None:
    model = classifier.Classifier(vit(), len(WNIDS), drop_path_rate=0.1)
    model.train()
    model(torch.randn(4, 3, 32, 32)).sum().backward()
    without = {name for name, parameter in model.named_timm_parameters() if parameter.grad is None}
    assert without == {"pos_embed"}
    rates = [getattr(block.drop_path1, "drop_prob", 0.0) for block in model.encoder.model.blocks]
    assert rates == pytest.approx([0.0, 0.1])


def test_paper_presets() -> None:
    """Rates that the recipes state as such."""
    tune, probe = finetune.PRESETS["paper"], linear_probe.PRESETS["paper"]
    assert tune.base_lr * tune.batch_size / 256 == pytest.approx(1e-3)
    assert probe.base_lr * probe.batch_size / 256 == pytest.approx(6.4)
    with pytest.raises(ValueError, match="warmup"):
        replace(tune, epochs=5)
