"""Checks one training step against numbers made by the official code.

    python -m pretrain.parity FILE.json ... [--device cuda]

Prints the largest relative difference of each kind of number and exits with status 1 if one exceeds the bound. A file
holds sizes, the keys of the official state dict, inputs by formula and sampled results (tests/golden/README.md); or
steps of optimizers, or learning rates and momenta at chosen steps.
"""

import argparse
import dataclasses
import json
import math
import sys
import zlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from evaluate.runtime import devices
from evaluate.runtime.cli import EXIT_FAILED, EXIT_USER
from evaluate.runtime.errors import UserError
from pretrain.data.views import Batch
from pretrain.geometry import RelativeGeometry, relative_sincos
from pretrain.methods import METHODS, Method, MethodModule, mae, module_of, siameseim
from pretrain.optimizer import learning_rate, make_optimizer, set_rate
from results.ending import leave

FLOAT32_BOUND = 1e-5  # of a step of SiameseIM or MAE
GPU_BOUND = 1e-4  # the same on a GPU, which adds up in another order; set before any GPU was measured
FLOAT64_BOUND = 1e-6  # of a step of a method that a file names
OPTIMIZER_BOUND = 5e-9  # the nine digits of a sample
SCHEDULE_BOUND = 1e-9
FLOAT32_SCHEDULES = ("byol", "simclr")  # whose sources compute in float32: FLOAT64_BOUND
OPTIMIZERS = {  # the name in a file: whose optimizer it is
    "lars_moco_v3": "moco_v3_resnet",
    "lars_byol": "byol",
    "lars_simclr": "simclr",
    "larc_sgd_swav": "swav",
    "sgd_moco_simsiam": "moco_v2",
    "adamw_moco_v3_vit": "moco_v3_vit",
    "adamw_clip": "clip",
}
FILL = {  # kind of a tensor: what is made of standard normal numbers r
    "weight": lambda r: 0.08 * r,
    "norm_weight": lambda r: 1 + 0.1 * r,
    "bias": lambda r: 0.05 * r,
    "running_mean": lambda r: 0.1 * r,
    "running_var": lambda r: 0.5 + r.abs(),
    "token": lambda r: 0.2 * r,
    "zero": lambda r: 0 * r,
    "logit_scale": lambda r: math.log(1 / 0.07) + 0.1 * r,
    "unit_columns": lambda r: r / r.norm(dim=0),
    "unit_rows": lambda r: r / r.norm(dim=-1, keepdim=True),
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
    if device != "cpu":
        raise ValueError(f"it is compared on a CPU alone, not on {device}; leave out --device")
    if golden.get("method") in METHODS:
        return _compare_method(golden)
    if "optimizers" in golden:
        return _compare_optimizers(golden)
    if "schedules" in golden:
        return _compare_schedules(golden)
    raise ValueError(f"this file holds no step of a method that is here ({', '.join(METHODS)})")


def fill(golden: dict[str, Any], fixed: dict[str, Tensor]) -> dict[str, Tensor]:
    """The official state dict of a file; ``fixed`` gives what the model computes itself."""
    state = {}
    for key, shape, kind in golden["entries"]:
        if kind == "queue_ptr":
            state[key] = torch.tensor([golden["config"]["queue_ptr"]])
            continue
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


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A method as a file has it before its step, in float64."""

    method: MethodModule
    config: Any
    model: Method
    fixed: dict[str, Tensor]
    """What the model computes itself, under its official names."""
    inputs: dict[str, Tensor]


def prepare(golden: dict[str, Any]) -> Prepared:
    """The model of a file that names its method, with the file's weights and inputs."""
    method, settings = module_of(golden["method"]), golden["config"]["optimizer"]
    given = {"optimizer": settings["name"], "batch_size": golden["config"]["batch"]}
    given |= _optimizer_settings(settings, method)
    if "stop_grad_conv1" in golden["config"]:
        given |= {"train_patch_embed": not golden["config"]["stop_grad_conv1"]}
    if "queue_ptr" in golden["config"]:  # each process normalizes its part of the batch
        given |= {"bn_group": golden["config"]["batch"] // golden["config"].get("processes", 1)}
    if "num_crops" in golden["config"]:
        given |= {"small_views": sum(golden["config"]["num_crops"][1:])}
    config = _config(method, {"config": golden["config"] | given})
    model = method.build(config).double().train()
    names = list(model.state_dict())
    official = method.to_official(model.state_dict())
    fixed = {key: official[key] for key, _, kind in golden["entries"] if kind == "fixed_sincos"}
    start = {key: tensor.double() for key, tensor in fill(golden, fixed).items()}
    if "queue" in golden["inputs"]:  # which the released code keeps beside its state dict
        start["queue"] = FILL["unit_rows"](
            generate(f"{golden['tag']}/queue", golden["inputs"]["queue"]["shape"])
        ).double()
    model.load_state_dict(method.from_official(start, names))
    inputs = {
        name: generate(f"{golden['tag']}/{name}", value["shape"]).double()
        for name, value in golden["inputs"].items()
        if name.startswith(("view", "image"))
    }
    if "text" in golden["inputs"]:
        inputs["text"] = torch.tensor(golden["inputs"]["text"])
    if "shuffle" in golden["inputs"]:
        shuffle = torch.tensor(golden["inputs"]["shuffle"])
        model.draw_shuffle = lambda count: shuffle  # type: ignore[assignment]  # told instead of drawn
    return Prepared(method, config, model, fixed, inputs)


def _compare_method(golden: dict[str, Any]) -> dict[str, float]:
    """The step of a file that names its method, with its optimizer's step and the moving average."""
    prepared, expected, settings = prepare(golden), golden["expected"], golden["config"]["optimizer"]
    method, config, model, inputs = prepared.method, prepared.config, prepared.model, prepared.inputs
    # MoCo-v3 moves its target before the forward pass, BYOL (whose file tells of it) after the optimizer's step.
    moves_after = "target_after" in expected
    momentum = golden["config"].get("momentum")
    if momentum is not None and not moves_after:
        model.update_target(momentum)  # type: ignore[operator]  # its method has one

    out = model(_batch(inputs))
    out.loss.backward()
    model.before_step(0)
    found = {
        "inputs": max(difference(tensor, golden["inputs"][name]) for name, tensor in inputs.items() if name != "text")
    }
    found |= {
        name: difference(prepared.fixed["base_encoder.pos_embed"] if name == "pos_embed" else getattr(out, name), value)
        for name, value in expected.items()
        if isinstance(value, float) or "norm" in value
    }
    found["state after the forward pass"] = worst(
        method.to_official(model.state_dict()), expected["after"] | expected.get("after_process_0", {})
    )
    parameters = method.to_official(dict(model.named_parameters()))
    gradients = {name: p.grad for name, p in parameters.items() if p.grad is not None}
    largest = max(gradient.abs().max().item() for gradient in gradients.values())
    found["gradients"] = worst(gradients, expected["grads"])
    zero = expected["zero_grads"]
    found["gradients of zero"] = max((gradients[name].abs().max().item() / largest for name in zero), default=0.0)
    told = gradients.keys() == expected["grads"].keys() | set(zero)
    without = parameters.keys() - gradients.keys() == set(expected["no_grad"])
    found["parameters without gradient"] = 0.0 if told and without else float("inf")

    before = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    optimizer = make_optimizer(model, config, model.constant_rate())
    for group in optimizer.param_groups:
        group["lr"] = settings["lr"]  # the same for all here
    optimizer.step()
    if momentum is None:
        model.after_step(1, config.epochs)  # what bounds a parameter; a moving average is compared apart
    updates = {name: parameter.detach() - before[name] for name, parameter in parameters.items()}
    found["updates"] = worst(updates, expected["updates"])
    if moves_after:
        model.update_target(momentum)  # type: ignore[operator]  # its method has one
        found["target after the step"] = worst(method.to_official(model.state_dict()), expected["target_after"])
    return found


def _batch(inputs: dict[str, Tensor]) -> Batch:
    """The inputs of a file as the loop gives them to a method."""
    first = inputs["image"] if "image" in inputs else inputs["view1"]
    small = [view for name, view in inputs.items() if name.startswith("view") and name not in ("view1", "view2")]
    others = torch.stack(small, dim=1) if small else None
    index = torch.arange(len(first))
    return Batch(first, inputs.get("view2"), None, None, index, small=others, text=inputs.get("text"))


def bound_of(golden: dict[str, Any], name: str) -> float:
    """The largest difference that is rounding, of one kind of number of a file."""
    if "optimizers" in golden:
        return OPTIMIZER_BOUND
    if "schedules" in golden:
        return FLOAT64_BOUND if name.startswith(FLOAT32_SCHEDULES) else SCHEDULE_BOUND
    return FLOAT64_BOUND if "method" in golden else FLOAT32_BOUND


def _optimizer_settings(given: dict[str, Any], method: MethodModule) -> dict[str, Any]:
    """The settings of an optimizer in a file that a method has, under our names."""
    names = {"momentum": "sgd_momentum"} | {same: same for same in ("weight_decay", "trust", "betas", "eps")}
    known = {field.name for field in dataclasses.fields(method.Config)}
    return {ours: given[theirs] for theirs, ours in names.items() if theirs in given and ours in known}


def _compare_optimizers(golden: dict[str, Any]) -> dict[str, float]:
    """Steps from given gradients, of the optimizers of the methods that are here; other methods' are left out."""
    found = {}
    for name in OPTIMIZERS.keys() & golden["optimizers"].keys():
        given = golden["optimizers"][name]
        method = module_of(OPTIMIZERS[name])
        parameters = {
            key: nn.Parameter(FILL[kind](generate(f"{golden['tag']}/{key}", shape)).double())
            for key, (shape, kind) in golden["parameters"].items()
        }
        model = nn.ParameterDict({key.replace(".", "/"): parameter for key, parameter in parameters.items()})
        config = dataclasses.replace(method.PRESETS["paper"], **_optimizer_settings(given, method))
        optimizer = make_optimizer(model, config)
        worst_step = 0.0
        for number, (rate, after) in enumerate(zip(given["lr"], given["after"], strict=True), 1):
            set_rate(optimizer, rate)
            for key, parameter in parameters.items():
                gradient = 0.01 * generate(f"{golden['tag']}/{key}/grad{number}", list(parameter.shape))
                parameter.grad = (0 * gradient if key == "still.weight" else gradient).double()
            optimizer.step()
            samples = {key: value | {"index": list(range(len(value["value"])))} for key, value in after.items()}
            worst_step = max(worst_step, worst(dict(parameters), samples))
        found[name] = worst_step
    return dict(sorted(found.items()))


def _compare_schedules(golden: dict[str, Any]) -> dict[str, float]:
    """Learning rates and momenta at chosen steps, of the methods that are here; other methods' are left out."""
    found: dict[str, float] = {}
    for name, given in golden["schedules"].items():
        method = next((method for method in METHODS if name.startswith(method)), None)
        if method is None:
            continue
        settings = given["settings"]
        names = {
            "lr": "base_lr",
            "learning_rate": "base_lr",
            "batch": "batch_size",
            "moco_m": "momentum",
            "base_ema": "momentum",
        }
        names |= {"final_lr": "min_lr", "start_warmup": "warmup_lr", "scaling": "lr_scaling"} | {
            same: same for same in ("base_lr", "batch_size", "epochs")
        }
        values = {ours: settings[theirs] for theirs, ours in names.items() if theirs in settings}
        steps = settings.get("steps_per_epoch", 1)
        warmup = settings.get("warmup_epochs", 0)
        if "total_steps" in settings:  # no whole number of them is an epoch: an epoch of ours is one of them
            values["epochs"] = settings["total_steps"]
            if "warmup" in settings:  # CLIP's, in steps; the first of them has a share of the rate already
                warmup, values["warmup_lr"] = settings["warmup"], settings["base_lr"] / settings["warmup"]
            else:
                steps_of_warmup = warmup * golden["images"] // values["batch_size"]
                warmup = settings.get("warmup_steps", steps_of_warmup)
        demo = module_of(method).PRESETS["demo"]
        config = dataclasses.replace(demo, **values, warmup_epochs=warmup)
        model = module_of(method).build(config)
        optimizer = make_optimizer(model, config, model.constant_rate())
        momenta: list[float] = []
        model.update_target = momenta.append  # type: ignore[assignment]  # told instead of moved
        ours: dict[str, list[float]] = {"lr": [], "lr_predictor": [], "momentum": momenta}
        for row in given["rows"]:
            step = row.get("step", row.get("epoch"))
            set_rate(optimizer, learning_rate(step / steps, config, 1 / steps))
            ours["lr"].append(optimizer.param_groups[0]["lr"])
            ours["lr_predictor"].append(optimizer.param_groups[-1]["lr"])
            # MoCo-v3's row has the momentum of before its step, BYOL's that of after it
            model.after_step(step + ("base_ema" in settings), config.epochs * steps)
        for kind in given["rows"][0].keys() - {"step", "epoch"}:
            expected = [row[kind] for row in given["rows"]]
            gap = max(abs(mine - theirs) for mine, theirs in zip(ours[kind], expected, strict=True))
            found[f"{name}: {kind}"] = gap / max(map(abs, expected))
    return dict(sorted(found.items()))


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
        golden = json.loads(path.read_text())
        found = compare(golden, device)
    except (OSError, ValueError, KeyError) as error:
        print(f"pretrain.parity: {path} cannot be compared: {error}", file=sys.stderr)
        return EXIT_USER
    bounds = {name: bound_of(golden, name) if device == "cpu" else GPU_BOUND for name in found}
    for name, value in found.items():
        print(f"{name:<30} {value:.2e} {'ok' if value <= bounds[name] else 'TOO LARGE'}")
    return EXIT_FAILED if any(value > bounds[name] for name, value in found.items()) else 0


if __name__ == "__main__":
    leave(main)
