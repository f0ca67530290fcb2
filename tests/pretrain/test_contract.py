"""Every method meets the contract of ``pretrain.methods``, and a method is one file and its name."""

import dataclasses
import inspect
import json
import os
import signal

import pytest
import torch

from evaluate.runtime.errors import UserError
from evaluate.runtime.settings import field_docs, from_json
from pretrain import checkpoint, methods, options, train
from pretrain.config import MODELS, PretrainConfig, VitConfig
from pretrain.data import views
from pretrain.data.images import Sample
from pretrain.data.loader import Draws
from tests.pretrain.runs import content, same, write_captions, write_images

IMAGES = 4


@pytest.fixture(params=methods.METHODS)
def method(request):
    return methods.module_of(request.param)


@pytest.fixture
def config(method):
    smaller = {"depth": 1} if issubclass(method.Config, VitConfig) else {"block": "bottleneck", "width_per_group": 4}
    if "bn_group" in vars(method.Config()):
        smaller["bn_group"] = IMAGES // 2
    return dataclasses.replace(method.PRESETS["demo"], **smaller, batch_size=IMAGES)


@pytest.fixture
def batch(config):
    images = [
        torch.randint(0, 255, (3, 40, 48), dtype=torch.uint8, generator=torch.Generator().manual_seed(i))
        for i in range(IMAGES)
    ]
    samples = [Sample(image, index, {}, f"a picture of {index} things") for index, image in enumerate(images)]
    return views.augment(Draws(samples, config)[0, [*range(IMAGES)]].crops, 0, config)


@pytest.fixture
def model(method, config):
    torch.manual_seed(0)
    return method.build(config).train()


def test_the_config_is_frozen_strict_and_described(method):
    assert issubclass(method.Config, PretrainConfig) and method.Config is not PretrainConfig
    with pytest.raises(dataclasses.FrozenInstanceError):
        method.Config().seed = 1
    assert all(not isinstance(value, list | dict) for value in vars(method.Config()).values())
    assert {field.name for field in dataclasses.fields(method.Config)} == field_docs(method.Config).keys()


def test_the_presets_are_legal_and_the_defaults_are_the_papers(method):
    assert {"paper", "demo"} <= method.PRESETS.keys() and method.PRESETS["paper"] == method.Config()
    for name, preset in method.PRESETS.items():
        assert type(preset) is method.Config and preset.method == method.__name__.rpartition(".")[2], name
        assert from_json(method.Config, json.loads(json.dumps(preset.to_json()))) == preset, name
    paper = next(name for name, preset in methods.presets().items() if preset is method.PRESETS["paper"])
    for encoder, sizes in MODELS.items():
        if sizes.keys() <= vars(method.Config()).keys():
            chosen = sizes | getattr(method, "MODELS", {}).get(encoder, {})
            assert vars(methods.configure(paper, model=encoder)).items() >= chosen.items()
        else:
            with pytest.raises(UserError, match=f"{encoder} is no encoder of .*its encoders are (vit|resnet)"):
                methods.configure(paper, model=encoder)
    assert methods.configure(paper, ["img_size=224", "epochs=3", "warmup_epochs=1"]) == dataclasses.replace(
        method.PRESETS["paper"], epochs=3, warmup_epochs=1.0
    )


def test_the_functions_are_documented(method):
    for function in (method.build, method.to_official, method.from_official):
        assert inspect.getdoc(function)


def test_a_step_trains(model, batch):
    loss = model(batch).loss
    assert loss.shape == () and loss.dtype == torch.float32
    loss.backward()
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    assert gradients and all(bool(torch.isfinite(gradient).all()) for gradient in gradients)
    assert any(bool(gradient.any()) for gradient in gradients)
    assert model.after_step(1, 2) is None and model.after_step(2, 2) is None
    assert all(bool(torch.isfinite(value).all()) for value in model.state_dict().values())


def test_hidden_and_features_have_their_shapes(model, batch, config):
    hidden = model.hidden(batch)
    if hidden is not None:
        assert hidden.shape == (IMAGES, config.num_patches) and hidden.dtype == torch.bool
        assert 0 < hidden.sum() < hidden.numel()
    with torch.inference_mode():
        features = model.eval().features(batch.view1)
    width = config.embed_dim if isinstance(config, VitConfig) else 2048
    assert features.shape == (IMAGES, width) and features.dtype == torch.float32


def test_official_names_go_there_and_back_and_are_strict(method, model):
    state = model.state_dict()
    official = method.to_official(state)
    assert len(official) == len(state)
    back = method.from_official(official, list(state))
    assert back.keys() == state.keys() and all(torch.equal(back[name], tensor) for name, tensor in state.items())
    name = next(iter(official))
    with pytest.raises(ValueError, match="missing"):
        method.from_official({key: value for key, value in official.items() if key != name}, list(state))
    with pytest.raises(ValueError, match="surprise"):
        method.from_official({**official, "surprise": official[name]}, list(state))


def test_a_stopped_run_resumes_to_the_same_bits(method, config, tmp_path, monkeypatch):
    """With learning rates that change, momentum and a moving average: all of a checkpoint but its clock is equal."""
    images = write_images(tmp_path / "images", 8)
    images = write_captions(images) if config.needs_captions else images
    (tmp_path / "config.json").write_text(
        json.dumps(dataclasses.replace(config, epochs=2, warmup_epochs=1.0).to_json())
    )

    def run(out):
        command = ["--config", str(tmp_path / "config.json"), "--data", str(images), "--out", str(tmp_path / out)]
        return train.main([*command, "--device", "cpu", "--monitor-epochs", "0"])

    assert run("unbroken") == 0
    step = train.Log.step

    def stop(self, number, *rest):
        step(self, number, *rest)
        if number == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(train.Log, "step", stop)
    assert run("broken") == train.EXIT_SAVED
    monkeypatch.undo()
    assert run("broken") == 0
    unbroken, broken = (content(tmp_path / name) for name in ("unbroken", "broken"))
    assert unbroken["step"] == 4 and unbroken["optimizer"]["state"] and same(unbroken, broken)


TOY = '''
"""Predicts an image's mean color from its first view."""

from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Literal

from torch import nn

from evaluate.runtime.settings import Probability
from pretrain.config import DEMO_SETTINGS, VitConfig
from pretrain.methods import Method


@dataclass(frozen=True)
class Config(VitConfig):
    method: Literal["toy"] = "toy"
    dropout: Probability = 0.0
    """Share of the inputs that are dropped."""


PRESETS = {"paper": Config(), "demo": replace(Config(), **DEMO_SETTINGS)}


class Toy(Method):
    def __init__(self, config):
        super().__init__()
        self.embed = nn.Conv2d(3, config.embed_dim, config.patch_size, config.patch_size)
        self.head = nn.Linear(config.embed_dim, 3)

    def features(self, images):
        return self.embed(images).mean((2, 3))

    def forward(self, batch):
        error = self.head(self.features(batch.view1)) - batch.view1.mean((2, 3))
        return SimpleNamespace(loss=error.square().mean())


def build(config):
    return Toy(config)


def to_official(state):
    return dict(state)


def from_official(state, names):
    return dict(state)
'''


def test_a_method_is_one_file_and_its_name(tmp_path, monkeypatch, capsys):
    (tmp_path / "toy.py").write_text(TOY)
    monkeypatch.setattr(methods, "__path__", [*methods.__path__, str(tmp_path)])
    monkeypatch.setattr(methods, "METHODS", (*methods.METHODS, "toy"))
    monkeypatch.setattr(options, "METHODS", methods.METHODS)
    common = [
        "--data",
        str(write_images(tmp_path / "images", 8)),
        "--out",
        str(tmp_path / "out"),
        "--preset",
        "toy_demo",
        "--device",
        "cpu",
    ]
    common += ["--set", "batch_size=4", "--set", "epochs=2"]
    assert train.main([*common, "--set", "dropout=2"]) == 2
    assert "setting 'dropout' is a number from 0 to 1, not 2" in capsys.readouterr().err
    assert train.main([*common, "--set", "dropout=0.5"]) == 0
    saved = torch.load(tmp_path / "out" / checkpoint.NAME, weights_only=True)
    assert (
        saved["step"] == 4
        and saved["config"]["dropout"] == 0.5
        and saved["model"].keys() == {"embed.weight", "embed.bias", "head.weight", "head.bias"}
    )
