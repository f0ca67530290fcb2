"""``--compile`` changes the time of the ImageNet tasks alone."""

import copy
import json
from functools import partial
from pathlib import Path

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from evaluate.classification import classifier, features, head_sweep
from evaluate.encoder import Encoder
from evaluate.harness import plan, task
from evaluate.runtime import compilation
from tests.factories import mae_state, resnet, vit
from tests.worlds import write_world

ENCODERS = {"vit": vit, "vit without class token": partial(vit, class_token=False), "resnet": resnet}
BACKENDS = ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)]  # traced alone; made into C++
STEPS = {"batch_size": 32, "micro_batch": 32}
TRAINING = {**STEPS, "epochs": 2, "warmup_epochs": 1}
SHORT = {"finetune": TRAINING, "linear_probe": TRAINING, "sweep": {**STEPS, "epochs": 1}}


@pytest.fixture(autouse=True)
def nothing_compiled_before() -> None:
    torch.compiler.reset()


def pictures(count: int = 4) -> torch.Tensor:
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def frozen(encoder: Encoder, images: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor]:
    return features.frozen_tokens(encoder, images, 2)


def heads(encoder: Encoder, images: torch.Tensor) -> dict[str, torch.Tensor]:
    return head_sweep.HeadInputs.__call__(head_sweep.HeadInputs(encoder, (1, 2), ("cls", "cls+mean")), images)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ENCODERS)
@pytest.mark.parametrize("forward", [frozen, heads])
def test_a_frozen_pass_is_one_graph_with_the_same_numbers(forward, name: str, backend: str) -> None:
    encoder = ENCODERS[name]()
    compiled = torch.compile(forward, backend=backend, fullgraph=True)  # raises where something is left to Python
    with torch.inference_mode():
        torch.testing.assert_close(compiled(encoder, pictures()), forward(encoder, pictures()), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ENCODERS)
def test_a_step_of_finetuning_is_one_graph_with_the_same_numbers(
    name: str, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Drop path among them, whose random numbers are the same."""
    plain = classifier.Classifier(ENCODERS[name](), 4, drop_path_rate=0.5 if name != "resnet" else 0.0).train()
    compiled, compile_module = copy.deepcopy(plain), torch.nn.Module.compile
    monkeypatch.setattr(compilation, "BACKEND", backend)
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **given: compile_module(self, fullgraph=True, **given))
    compilation.compile_module(compiled, True)
    assert compiled.state_dict().keys() == plain.state_dict().keys()
    losses = []
    for model in (plain, compiled):
        torch.manual_seed(0)
        losses.append(torch.nn.functional.cross_entropy(model(pictures(8)), torch.arange(8) % 4))
        losses[-1].backward()
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-5, atol=0)
    for (name, parameter), other in zip(plain.named_parameters(), compiled.parameters(), strict=True):
        if parameter.grad is not None:
            scale = parameter.grad.abs().max().item()
            torch.testing.assert_close(other.grad, parameter.grad, rtol=1e-4, atol=1e-5 * scale, msg=name)
    torch.testing.assert_close(compiled.state_dict(), plain.state_dict(), rtol=1e-5, atol=1e-6)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_world(tmp_path_factory.mktemp("world"), train=12, val=6)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoint") / "mine.pth"
    torch.save({"model": mae_state()}, path)
    return path


def line_of(name: str, world: Path, checkpoint: Path, out: Path) -> list[str]:
    settings = SHORT.get(name, {})
    line = ["--ckpt", str(checkpoint), "--data-root", str(world), "--preset", "demo", "--device", "cpu"]
    return [*line, "--out", str(out), *(part for key in settings for part in ("--set", f"{key}={settings[key]}"))]


@pytest.fixture(scope="module")
def tuned(world: Path, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("tuned")
    assert task.main("finetune", line_of("finetune", world, checkpoint, out)) == 0
    return next(out.glob("mine/finetune-*/classifier.safetensors"))


@pytest.mark.parametrize("name", plan.COMPILED)
def test_a_task_takes_the_option_and_its_record_says_so(
    name: str, world: Path, checkpoint: Path, tuned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its identity the same measurement, with the same numbers, beside a plain one whose passes it leaves alone."""
    counter = CompileCounterWithBackend("aot_eager")
    monkeypatch.setattr(compilation, "BACKEND", counter)
    line = line_of(name, world, checkpoint, tmp_path)
    line += ["--input", f"classifier={tuned}"] if name == "robustness" else []
    entries, kept = [], set()
    for options in ([], ["--compile"]):
        assert not counter.frame_count
        assert task.main(name, [*line, *options]) == 0
        (path,) = (tmp_path / "records").glob(f"mine-{name}*.json")
        entries.append(json.loads(path.read_text()))
        path.unlink()  # else it stands already
        passes = {found.parent.name for found in tmp_path.glob("mine/**/identity.json")}
        assert passes > kept
        kept = passes
    plain, compiled = entries
    assert counter.frame_count
    assert plain["key"] == compiled["key"] and plain["metrics"] == compiled["metrics"]
    assert "compiled" not in plain["protocol"] and compiled["protocol"] == {**plain["protocol"], "compiled": True}
