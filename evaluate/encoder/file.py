"""The encoder file: a safetensors file whose metadata hold the spec, with its certificate beside it."""

import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from evaluate.encoder.model import Encoder
from evaluate.encoder.spec import KIND, EncoderSpec, certificate_path, read_spec
from evaluate.runtime.errors import UserError
from results.atomic import atomic_write


def save(path: Path, state: dict[str, Tensor], spec: EncoderSpec) -> None:
    """Writes an encoder file atomically: float32 tensors under timm names, the spec as JSON in the metadata."""
    with atomic_write(path) as written:
        save_file(
            {name: tensor.contiguous() for name, tensor in state.items()},
            written,
            {"kind": KIND, "spec": spec.to_json()},
        )


def load(path: Path | str, device: str = "cpu", *, _uncertified: bool = False) -> Encoder:
    """An encoder in eval mode on ``device``.

    Raises:
        UserError: no encoder file, or one whose certificate is absent, failed, or belongs to other tensors.
    """
    path = Path(path)
    spec = read_spec(path)
    if spec is None:
        raise UserError(f"{path} is not an encoder file; convert it with python -m evaluate.convert {path}")
    try:
        with safe_open(path, "pt") as file:
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a dict)
        loaded = Encoder(spec, state)
    except (SafetensorError, OSError, RuntimeError, TypeError, ValueError, KeyError, ArithmeticError) as error:
        raise UserError(
            f"the encoder file {path} is damaged ({str(error).splitlines()[0]}); convert its source again"
        ) from error
    if not _uncertified:
        _check_certificate(path, loaded)
    if not spec.is_vit and device.startswith("cuda"):
        return loaded.eval().to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's own
    return loaded.eval().to(device)


def _check_certificate(path: Path, encoder: Encoder) -> None:
    file = certificate_path(path)
    remedy = "convert its source again with python -m evaluate.convert"
    if not file.is_file():
        raise UserError(f"the encoder {path} has no certificate ({file.name} is not beside it); {remedy}")
    try:
        certificate = json.loads(file.read_text())
        passed, certified = certificate["passed"], certificate["fingerprint"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"the certificate {file} is damaged; {remedy}") from error
    if certified != encoder.fingerprint:
        raise UserError(f"the certificate {file} belongs to another encoder than {path}; {remedy}")
    if passed is not True:
        raise UserError(f"the certificate of {path} did not pass; {remedy}")
