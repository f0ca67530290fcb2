"""Export of a finished run: the weights alone in the official layout, and the certified encoder file that every task
takes."""

from pathlib import Path

import torch

from evaluate.checkpoints import conversion  # the one place where pretrain/ needs it: an exported encoder is certified


def export(path: Path, branch: str | None = None) -> tuple[Path, Path]:
    """Writes OUT/export/<method>.pth and OUT/export/encoder.safetensors from OUT/checkpoint.pth; returns both paths.

    The first holds ``model`` under the names of the method's official code, ``epoch`` and ``config``, and no optimizer.
    ``branch`` is "online" or "target" for a method that has two (default: what ``evaluate.convert`` takes).

    Raises:
        UserError: an encoder that does not pass its certificate.
    """
    saved = torch.load(path, map_location="cpu", weights_only=True)
    folder = path.parent / "export"
    folder.mkdir(exist_ok=True)
    weights = folder / f"{saved['config']['method']}.pth"
    temporary = weights.with_suffix(".part")
    torch.save({name: saved[name] for name in ("model", "epoch", "config")}, temporary)
    temporary.replace(weights)
    encoder = folder / "encoder.safetensors"
    print(conversion.convert(weights, encoder, branch=branch))
    return weights, encoder
