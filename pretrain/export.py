"""Hands a finished run over: the weights alone in the official layout, and the certified encoder file that every task of evaluate/ takes."""

from pathlib import Path

import torch

from evaluate.checkpoints import conversion  # the one place where pretrain/ needs evaluate/: a checkpoint is handed over proven
from evaluate.runtime.errors import UserError


def export(path: Path, branch: str | None = None) -> tuple[Path, Path]:
    """From a checkpoint OUT/checkpoint.pth to OUT/export/<method>.pth and OUT/export/encoder.safetensors; both paths.

    The first holds ``model`` under the names of the method's official code, ``epoch`` and ``config``, and no optimizer. ``branch`` is
    "online" or "target" for a method that has two (default: what ``evaluate.convert`` takes).

    Raises:
        ValueError: an encoder that does not pass its certificate.
    """
    saved = torch.load(path, map_location="cpu", weights_only=True)
    folder = path.parent / "export"
    folder.mkdir(exist_ok=True)
    weights = folder / f"{saved['config']['method']}.pth"
    temporary = weights.with_suffix(".part")
    torch.save({name: saved[name] for name in ("model", "epoch", "config")}, temporary)
    temporary.replace(weights)
    encoder = folder / "encoder.safetensors"
    try:
        print(conversion.convert(weights, encoder, branch=branch))
    except UserError as error:
        raise ValueError(str(error)) from error
    return weights, encoder
