"""Forward passes through ``torch.compile``, where a run asks for it: the same numbers to rounding."""

import argparse
import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from torch import nn

BACKEND = "inductor"
Function = TypeVar("Function", bound=Callable[..., Any])


def add_option(parser: argparse._ActionsContainer, what: str) -> None:
    """Adds ``--compile``; ``what`` is run through it."""
    parser.add_argument(
        "--compile",
        action="store_true",
        help=f"run {what} through torch.compile: slower to start, faster after (GPUs), the same to rounding",
    )


def compiled(function: Function, wanted: bool) -> Function:
    """A function of the module level, compiled where that is ``wanted``, else as it is."""
    return _compiled(function, BACKEND) if wanted else function


def compile_module(module: "nn.Module", wanted: bool) -> None:
    """Compiles a module in place where that is ``wanted``; its names and its state stay."""
    if wanted:
        _keep_draws()
        module.compile(backend=BACKEND)


@functools.cache  # a second wrapper would compile anew
def _compiled(function: Any, backend: str) -> Any:
    import torch

    _keep_draws()
    return torch.compile(function, backend=backend)


def _keep_draws() -> None:
    """Lets what is compiled draw the random numbers (drop path) that it would draw otherwise."""
    import torch._inductor.config

    torch._inductor.config.fallback_random = True
