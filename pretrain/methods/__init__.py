"""What a pretraining method is, and the methods there are.

A method is a file of this folder, as ``MethodModule`` below describes it; its name in METHODS makes it known to every
command. What its ``build`` gives is a ``Method``. ``siameseim.py`` is the method of the paper, ``mae.py`` the shorter
example.
"""

import importlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from evaluate.runtime.errors import UserError
from evaluate.runtime.settings import from_json, override, split_overrides
from pretrain.config import MODELS, PretrainConfig
from pretrain.data.views import Batch

METHODS = (
    "siameseim",
    "mae",
    "simsiam",
    "moco_v3_vit",
    "moco_v3_resnet",
    "byol",
    "simclr",
    "moco_v1",
    "moco_v2",
    "swav",
    "clip",
    "mscn",
)


class Outputs(Protocol):
    """What one forward pass gives; a method may give more."""

    @property
    def loss(self) -> Tensor:
        """A float32 scalar."""


class Method(nn.Module):
    """What a method's model offers to the training loop. Axes: B batch, N patches of a view, D width."""

    def forward(self, batch: Batch) -> Outputs:
        """The loss of one (micro-)batch on the model's device. Every process must take part where it computes sums over
        the processes."""
        raise NotImplementedError

    def before_step(self, step: int) -> None:
        """What is done to the gradients of step ``step``, from 0, before the optimizer sees them."""

    def after_step(self, step: int, total: int) -> None:
        """What changes the model otherwise than by gradients (a moving average), after the ``step``-th of ``total``
        optimizer steps."""

    def constant_rate(self) -> Iterable[nn.Parameter]:
        """Parameters whose learning rate stays at its start."""
        return ()

    def hidden(self, batch: Batch) -> Tensor | None:
        """The cells of view 1 (B, N), bool, that the method does not show to its encoder: for the picture of the first
        batch. None: it shows all."""
        return None

    def features(self, images: Tensor) -> Tensor:
        """What the encoder that is handed over makes of whole images (B, 3, H, W): one float32 vector each, (B, D)."""
        raise NotImplementedError


class MethodModule(Protocol):
    """What a file of pretrain/methods/ offers.

    It may also have MODELS: how the method's settings differ from ``pretrain.config.MODELS`` with an encoder.
    """

    __name__: str

    @property
    def Config(self) -> type[PretrainConfig]:
        """A frozen dataclass that adds the method's settings; ``method`` is the file's name. Without arguments it is
        the paper's run.

        It overrides ``draw_mask`` or ``draw_noise`` if the method hides patches by one of them.
        """

    @property
    def PRESETS(self) -> Mapping[str, PretrainConfig]:
        """At least ``paper`` and ``demo``; ``--preset`` knows them as in ``presets``."""

    def build(self, config: Any) -> Method:
        """The model with its random start from torch's global generator. Raises ValueError for a config that it cannot
        train."""

    def to_official(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """The model's state dict under the names of the method's official code, which ``evaluate.convert`` takes."""

    def from_official(self, state: dict[str, Tensor], names: list[str]) -> dict[str, Tensor]:
        """Back to a state dict of the given names. Raises ValueError that lists keys which are absent or left over."""


def method_of(config: PretrainConfig) -> MethodModule:
    """The file of pretrain/methods/ that a config names."""
    return module_of(config.method)


def module_of(name: str) -> MethodModule:
    """The file of pretrain/methods/ of a method. Raises UserError for a name that is not in METHODS."""
    if name not in METHODS:
        raise UserError(f"there is no method {name!r}; the methods are {', '.join(METHODS)}")
    return cast(MethodModule, importlib.import_module(f"pretrain.methods.{name}"))


def presets() -> dict[str, PretrainConfig]:
    """What ``--preset`` knows: the first method's presets by their names, another's as METHOD_NAME (``mae_paper``)."""
    return {
        name if method == METHODS[0] else f"{method}_{name}": config
        for method in METHODS
        for name, config in module_of(method).PRESETS.items()
    }


def preset_of(text: str) -> PretrainConfig:
    """A preset by its name, or ``A+B``: preset A with what preset B of the same method changes of its ``paper``.

    Raises:
        UserError: naming a preset that there is not, or one of another method.
    """
    known = presets()
    first, *others = text.split("+")
    for name in (first, *others):
        if name not in known:
            raise UserError(f"there is no preset {name!r}; the presets are {', '.join(sorted(known))}")
    config = known[first]
    paper = method_of(config).PRESETS["paper"]
    for name in others:
        if known[name].method != config.method:
            raise UserError(f"--preset {text}: {name} is of {known[name].method}, {first} of {config.method}")
        own = {field.name: getattr(known[name], field.name) for field in fields(paper)}
        config = replace(config, **{key: value for key, value in own.items() if value != getattr(paper, key)})
    return config


def configure(
    preset: str | PretrainConfig, assignments: Sequence[str] = (), model: str | None = None
) -> PretrainConfig:
    """A preset (as ``preset_of`` takes it), or a config, with the encoder of MODELS that ``model`` names and
    ``NAME=VALUE`` settings on top.

    Raises:
        UserError: one sentence with the setting, its value and what is legal.
    """
    config = preset_of(preset) if isinstance(preset, str) else preset
    encoder = {**MODELS[model], **getattr(method_of(config), "MODELS", {}).get(model, {})} if model else {}
    known = {field.name for field in fields(config)}
    if not encoder.keys() <= known:
        possible = ", ".join(name for name, values in MODELS.items() if values.keys() <= known)
        raise UserError(f"--model {model} is no encoder of {config.method}; its encoders are {possible}")
    for text in assignments:
        if "=" not in text or "." in text.partition("=")[0]:
            raise UserError(f"--set takes NAME=VALUE, for example epochs=400, not {text!r}")
    overrides = split_overrides(assignments)
    texts = {name: value if isinstance(value, str) else json.dumps(value) for name, value in encoder.items()}
    values = texts | overrides.get("", {})
    if values.get("method", config.method) != config.method:
        module_of(values["method"])
        raise UserError(f"--set method={values['method']}: a preset chooses the method; take another --preset")
    return override(config, values)


def read_config(path: Path) -> PretrainConfig:
    """The config in a file that a run wrote: config.json, or a checkpoint.

    Raises:
        UserError: a file that cannot be read or holds no config, or settings that are not legal.
    """
    try:
        if path.suffix == ".json":
            values = json.loads(path.read_text())
        else:
            values = torch.load(path, map_location="cpu", weights_only=True, mmap=True)["config"]
        module = module_of(values["method"])
    except UserError:
        raise
    except Exception as error:  # torch.load has many for a file of another kind
        reason = error.strerror if isinstance(error, OSError) else type(error).__name__
        raise UserError(
            f"--config {path} holds no settings of a run ({reason}); give the config.json or a checkpoint of a run"
        ) from error
    return from_json(module.Config, own_settings(module, values))


def own_settings(module: MethodModule, values: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of one method from a written config: before a method had its own Config, one file held the settings
    of all."""
    names = {method: {field.name for field in fields(module_of(method).Config)} for method in METHODS}
    own = {field.name for field in fields(module.Config)}
    foreign = set().union(*names.values()) - own
    return {name: value for name, value in values.items() if name not in foreign}
