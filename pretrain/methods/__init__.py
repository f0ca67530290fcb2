"""The pretraining methods, one file each, and the contract between a method and the loop."""

import importlib
from types import ModuleType

from pretrain.config import PretrainConfig

METHODS = ("siameseim", "mae")


def method_of(config: PretrainConfig) -> ModuleType:
    """The file of pretrain/methods/ that a config names."""
    if config.method not in METHODS:
        raise ValueError(f"there is no method {config.method!r}; the methods are {', '.join(METHODS)}")
    return importlib.import_module(f"pretrain.methods.{config.method}")
