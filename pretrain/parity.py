"""Checks one training step against numbers made by the official code.

    python -m pretrain.parity FILE.json ... [--device cuda]

Prints the largest relative difference of each kind of number and exits with status 1 if one exceeds the bound. A file
holds sizes, the keys of the official state dict, inputs by formula and sampled results (tests/golden/README.md).
"""

import argparse
import dataclasses
import json
import sys
import zlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from evaluate.runtime import devices
from evaluate.runtime.cli import EXIT_FAILED, EXIT_USER
from evaluate.runtime.errors import UserError
from pretrain.data.views import Batch
from pretrain.geometry import RelativeGeometry, relative_sincos
from pretrain.methods import Method, MethodModule, mae, siameseim

BOUND = 1e-5
GPU_BOUND = 1e-4  # a GPU adds up in another order; set before any GPU was measured
FILL = {  # kind of a tensor: what is made of standard normal numbers r
    "weight": lambda r: 0.08 * r,
    "norm_weight": lambda r: 1 + 0.1 * r,
    "bias": lambda r: 0.05 * r,
    "running_mean": lambda r: 0.1 * r,
    "running_var": lambda r: 0.5 + r.abs(),
    "token": lambda r: 0.2 * r,
    "zero": lambda r: 0 * r,
}


def generate(key: str, shape: list[int]) -> Tensor:
    """Standard normal numbers that depend on the key alone."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(zlib.crc32(key.encode())))


def difference(ours: Tensor, expected: dict[str, Any] | float) -> float:
    """The largest difference of samples and norm, relative to the largest expected sample (for a number: to itself)."""
    if not isinstance(expected, dict):
        return abs(ours.item() - expected) / max(abs(expected), 1e-30)
    flat = ours.detach().cpu().double().flatten()
    values = torch.tensor(expected["value"], dtype=torch.float64)
    scale = max(values.abs().max().item(), expected["norm"] / max(len(flat), 1) ** 0.5, 1e-30)
    samples = (flat[torch.tensor(expected["index"])] - values).abs().max().item() / scale
    norm = abs(flat.norm().item() - expected["norm"]) / max(expected["norm"], 1e-30) if expected["norm"] > 1e-8 else 0.0
    return max(samples, norm)


def compare(golden: dict[str, Any], device: str = "cpu") -> dict[str, float]:
    """Runs the step of a file on a device; the largest difference by kind of number. Raises ValueError for a file of
    another form."""
    config = golden.get("config", {})
    if "predictor_depth" in config:
        return _compare_siameseim(golden, device)
    if "decoder_depth" in config:
        return _compare_mae(golden, device)
    raise ValueError(
        "this file holds neither a SiameseIM nor an MAE step (its config has no predictor_depth and no decoder_depth)"
    )


def fill(golden: dict[str, Any], fixed: dict[str, Tensor]) -> dict[str, Tensor]:
    """The official state dict of a file; ``fixed`` gives what the model computes itself."""
    state = {}
    for key, shape, kind in golden["entries"]:
        state[key] = fixed[key] if kind == "fixed_sincos" else FILL[kind](generate(f"{golden['tag']}/{key}", shape))
        if key.endswith("num_batches_tracked"):
            state[key] = state[key].long()
    return state


def _config(method: MethodModule, golden: dict[str, Any], **others: Any) -> Any:
    """A method's config with those sizes of a file that it knows."""
    sizes = golden["config"]
    same = {field.name for field in dataclasses.fields(method.Config)} & sizes.keys()
    return dataclasses.replace(method.PRESETS["paper"], **{name: sizes[name] for name in same}, **others)


def _load(method: MethodModule, model: Method, golden: dict[str, Any], device: str) -> dict[str, Tensor]:
    """Gives a model the file's weights, for training on a device; its position embeddings."""
    buffers = {name: getattr(model, name) for name in ("pos_embed", "decoder_pos_embed")}
    model.load_state_dict(method.from_official(fill(golden, buffers), list(model.state_dict())))
    model.to(device).train()
    return buffers


def _compare_gradients(
    method: MethodModule, model: Method, buffers: dict[str, Tensor], expected: dict[str, Any]
) -> dict[str, float]:
    """Gradients and position embeddings, and which parameters have no gradient."""
    gradients = method.to_official({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    without = set(method.to_official(dict(model.named_parameters())) | buffers) - gradients.keys()
    return {
        **{name: difference(buffer, expected[name]) for name, buffer in buffers.items()},
        "gradients": worst(gradients, expected["grads"]),
        "parameters without gradient": 0.0 if without == set(expected["no_grad"]) else float("inf"),
    }


def _compare_mae(golden: dict[str, Any], device: str) -> dict[str, float]:
    inputs, expected, tag = golden["inputs"], golden["expected"], golden["tag"]
    config = _config(mae, golden, train_patch_embed=True)
    model = mae.build(config)
    buffers = _load(mae, model, golden, device)
    image, noise = (
        generate(f"{tag}/image", [inputs["batch"], 3, config.img_size, config.img_size]).to(device),
        torch.tensor(inputs["noise"], device=device),
    )
    out = model.reconstruct(image, noise)
    out.loss.backward()
    return {
        "inputs": difference(image, inputs["image"]),
        "loss": difference(out.loss, expected["loss"]),
        "mask": 0.0 if torch.equal(out.mask.cpu(), torch.tensor(expected["mask"]).bool()) else float("inf"),
        "prediction": difference(out.prediction, expected["pred"]),
        **_compare_gradients(mae, model, buffers, expected),
    }


def _compare_siameseim(golden: dict[str, Any], device: str) -> dict[str, float]:
    inputs, expected, tag = golden["inputs"], golden["expected"], golden["tag"]
    frozen = golden["config"]["patch_embed_frozen"]
    config = _config(siameseim, golden, num_masked=sum(inputs["mask"][0]), train_patch_embed=not frozen)
    model = siameseim.build(config)
    buffers = _load(siameseim, model, golden, device)
    shape = [inputs["batch"], 3, config.img_size, config.img_size]
    views = {name: generate(f"{tag}/{name}", shape).to(device) for name in ("view1", "view2")}
    geometry = RelativeGeometry(
        *(torch.tensor(inputs[field.name], device=device) for field in dataclasses.fields(RelativeGeometry))
    )
    mask = torch.tensor(inputs["mask"], device=device).bool()

    model.update_target(golden["config"]["momentum"])
    out = model(Batch(views["view1"], views["view2"], mask, geometry, torch.arange(inputs["batch"], device=device)))
    out.loss.backward()

    return {
        "inputs": max(difference(views[name], inputs[name]) for name in views),
        "loss": difference(out.loss, expected["loss"]),
        "relative_pos_embed": difference(
            relative_sincos(geometry, config.grid_size, config.decoder_embed_dim), expected["relative_pos_embed"]
        ),
        "prediction": difference(out.prediction, expected["pred"]),
        "target": difference(out.target, expected["target_before_norm"]),
        "state after the step": worst(siameseim.to_official(model.state_dict()), expected["after"]),
        **_compare_gradients(siameseim, model, buffers, expected),
    }


def worst(ours: dict[str, Tensor], expected: dict[str, Any]) -> float:
    """The largest difference over named tensors; infinite where one is absent."""
    return max(
        (difference(ours[key], value) if key in ours else float("inf") for key, value in expected.items()), default=0.0
    )


def main(argv: list[str] | None = None) -> int:
    """Prints a line a kind of number; 0 if all are within the bound, 1 if not, 2 if a file cannot be used."""
    parser = argparse.ArgumentParser(
        prog="python -m pretrain.parity", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE", help="numbers of one training step")
    devices.add_option(parser)
    arguments = parser.parse_args(argv)
    files = arguments.files
    try:
        device = devices.resolve_device(arguments.device)
    except UserError as error:
        print(f"pretrain.parity: {error}", file=sys.stderr)
        return EXIT_USER
    statuses = []
    for path in files:
        if len(files) > 1:
            print(path)
        statuses.append(_report(path, device))
    return max(statuses)


def _report(path: Path, device: str) -> int:
    """Compares one file and prints what was found; its exit status."""
    try:
        found = compare(json.loads(path.read_text()), device)
    except (OSError, ValueError, KeyError) as error:
        print(f"pretrain.parity: {path} cannot be compared: {error}", file=sys.stderr)
        return EXIT_USER
    bound = BOUND if device == "cpu" else GPU_BOUND
    for name, value in found.items():
        print(f"{name:<30} {value:.2e} {'ok' if value <= bound else 'TOO LARGE'}")
    return EXIT_FAILED if max(found.values()) > bound else 0


if __name__ == "__main__":
    sys.exit(main())
