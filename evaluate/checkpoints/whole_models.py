"""Encoders that are whole models: timm's by their names, and a user's class; their conversion.

Their weights stay under their own names. What is certified of them: ``evaluate.checkpoints.whole_certificates``.
"""

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from evaluate.checkpoints import named, whole_certificates, writing
from evaluate.checkpoints.certificate import Certificate
from evaluate.checkpoints.fields import Options
from evaluate.checkpoints.named import Named
from evaluate.checkpoints.reader import Checkpoint, read
from evaluate.encoder import own, timm_models
from evaluate.encoder.spec import EncoderSpec
from evaluate.runtime.errors import UserError

RECOMPUTED = ("relative_position_index", "attn_mask")  # buffers that timm computes itself and older files hold
GIGA = 1e9
RANDOM = "random weights"
State = dict[str, Tensor]


def with_name(options: Options, given: Named) -> Options:
    """The options of a conversion with what was named, which decides the encoder as they do."""
    if set(options.asked) - {"prefix"} or set(options.assume) - {"mean", "std"}:
        raise UserError(f"{given.label}: only --prefix, --normalize and --assume mean or std go with a named model")
    return dataclasses.replace(options, asked={**options.asked, "model": given.label})


def convert(given: Named, out: Path, options: Options) -> Certificate:
    """Writes the encoder of a named model and its certificate, both or neither; as ``conversion.convert``."""
    options = with_name(options, given)
    named.check(str(given))
    return _timm(given, out, options) if given.model else _own(given, out, options)


def as_published(given: Named, options: Options) -> Checkpoint:
    """A model of timm's with its weights, as a folder of timm's hub would give them."""
    named.check(str(given))
    model = _model_of_timm(given.model)
    _load(given, model, options, _classifier(model))
    cfg = {name: list(model.pretrained_cfg[name]) for name in ("mean", "std")}
    config = {"architecture": given.model, "pretrained_cfg": cfg}
    state = _state(model, str(given))
    return Checkpoint(Path(str(given)), *named.digests(str(given)), state_dicts={"": state}, config=config)


def _model_of_timm(name: str) -> Any:
    """With random weights, always the same. Raises UserError for a name that timm does not know."""
    if not timm.is_model(name):
        near = ", ".join(timm.list_models(f"*{name.partition('_')[0]}*")[:3])
        raise UserError(f"timm {timm.__version__} has no model {name!r}{f'; it has {near}, …' if near else ''}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return timm_models.create(name)


def _timm(given: Named, out: Path, options: Options) -> Certificate:
    name, what = given.model, str(given)
    model = _model_of_timm(name)
    used, dropped, other, where = _load(given, model, options, _classifier(model))
    state = _state(model, what)
    cfg = model.pretrained_cfg
    native = cfg["input_size"][1]
    step = timm_models.side_step(model, native)
    with torch.inference_mode():
        image = torch.zeros(1, 3, native, native)
        width = timm_models.features(model, image)[1].shape[1]
        maps = (
            [level.shape[1] for level in timm_models.pyramid(model, image)]
            if step and timm_models.levels(model)
            else []
        )
    spec = EncoderSpec(
        family="timm",
        model=name,
        mean=tuple(options.assume.get("mean", cfg["mean"])),
        std=tuple(options.assume.get("std", cfg["std"])),
        side_step=step,
        counts=_counts(model, native, lambda images: timm_models.features(model, images)[1]),
        remark="" if given.weights else RANDOM,
        **_common(given, options, width, native, maps),
    )
    facts = _facts(f"timm's {name}, {where}", used, dropped, other)
    return writing.write(out, state, spec, whole_certificates.of_timm, facts, what)


def _own(given: Named, out: Path, options: Options) -> Certificate:
    known, what = own.allow(given.code), str(given)
    with own.blamed(known.label, known.file), own.silent(known.label), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = known.made()
    used, dropped, other, where = _load(given, model, options)
    model.eval()
    with own.blamed(known.label, known.file), own.silent(known.label):
        said = whole_certificates.promised(model, known.label)
    state = _state(model, what)
    assume = {"mean": said.mean, "std": said.std, **options.assume}
    with own.blamed(known.label, known.file), own.silent(known.label):
        counts = _counts(model, said.side, model.pooled)
    spec = EncoderSpec(
        family="own",
        model=known.label,
        code_sha256=known.sha256,
        mean=tuple(assume["mean"]),
        std=tuple(assume["std"]),
        side_step=said.step,
        counts=counts,
        remark=f"{whole_certificates.UNCERTIFIED} ({known.label}, SHA-256 {known.sha256[:12]})"
        + ("" if given.weights else "; weights as the class makes them"),
        **_common(given, options, said.width, said.side, said.maps),
    )
    facts = _facts(f"a user's class, {known.label}, {where}", used, dropped, other)
    facts["notes"] = [spec.remark]
    return writing.write(out, state, spec, whole_certificates.of_own, facts, what)


def _common(given: Named, options: Options, width: int, side: int, maps: Iterable[int]) -> dict[str, Any]:
    digests = named.digests(str(given))
    return {
        "embed_dim": width,
        "depth": 1,
        "img_size": side,
        "patch_size": 1,
        "maps": tuple(maps),
        "pooling": "mean",
        "source_format": "timm model" if given.model else "own class",
        "source_sha256": digests[0],
        "source_json_sha256": digests[1],
        "options": dataclasses.replace(options, branch="").to_dict(),
    }


def _facts(recognized: str, used: list[str], dropped: list[str], other: list[str]) -> dict[str, Any]:
    return {"recognized": recognized, "used": used, "dropped": dropped, "other_entries": other}


def _classifier(model: Any) -> tuple[str, ...]:
    """The names that a classifier's tensors begin with."""
    said = model.pretrained_cfg.get("classifier") or ()
    return tuple(f"{name}." for name in ((said,) if isinstance(said, str) else said))


def _load(
    given: Named, model: nn.Module, options: Options, classifier: tuple[str, ...] = ()
) -> tuple[list[str], list[str], list[str], str]:
    """Loads the weights that were named; returns the keys used, those left out, other entries of the file, and where
    the weights are from, in words.

    Raises:
        UserError: a file whose tensors are not those of the model.
    """
    if given.weights is None:
        return list(model.state_dict()), [], [], "random weights" if given.model else "weights as it makes them"
    checkpoint = read(given.weights)
    if prefix := options.asked.get("prefix"):
        checkpoint = checkpoint.without_prefix(prefix)
    if hasattr(model, "load_weights"):
        code = given.code.rpartition(":")[0]
        with own.blamed(given.label, code), own.silent(given.label):
            model.load_weights(max(checkpoint.state_dicts.values(), key=len))  # type: ignore[operator]
        return list(model.state_dict()), [], [], "loaded by its own load_weights"
    path, state = _fitting(checkpoint, model, str(given))
    left = [key for key in state if key.startswith(classifier) or key.endswith(RECOMPUTED)] if classifier else []
    left = [key for key in left if key not in model.state_dict()]
    kept = {key: value for key, value in state.items() if key not in left}
    _require_equal_names(kept, model, str(given))
    model.load_state_dict(kept, strict=True)
    others = sorted({*checkpoint.top_level, *checkpoint.state_dicts} - {path, ""})
    return list(kept), left, others, f"state dict at {path!r}" if path else "state dict at the top level"


def _fitting(checkpoint: Checkpoint, model: nn.Module, what: str) -> tuple[str, State]:
    """The state dict that shares most names with a model, a prefix that all of its keys have in common removed."""
    wanted = set(model.state_dict())
    views: dict[str, State] = {}
    for path, state in checkpoint.state_dicts.items():
        for prefix in ("", "model.", "backbone.", "encoder."):
            inside = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
            if inside:
                views["/".join(filter(None, (path, prefix)))] = inside
    if not views:
        raise UserError(f"{what}: the file holds no weights there; leave out --prefix")
    shared = {path: len(wanted & set(state)) for path, state in views.items()}
    best = max(shared, key=lambda path: (shared[path], -len(path)))
    whole = [path for path, count in shared.items() if count == len(wanted)]
    if len(whole) > 1:
        raise UserError(f"{what}: {' and '.join(map(repr, whole[:3]))} both fit; choose with --prefix")
    return best, views[best]


def _require_equal_names(state: State, model: nn.Module, what: str) -> None:
    own_state = model.state_dict()
    missing = [key for key in own_state if key not in state]
    extra = [key for key in state if key not in own_state]
    shapes = [key for key in state if key in own_state and state[key].shape != own_state[key].shape]
    problems = [("lacks", missing), ("has besides", extra), ("has another shape of", shapes)]
    said = [
        f"{word} {keys[0]}{f' and {len(keys) - 1} more' if len(keys) > 1 else ''}" for word, keys in problems if keys
    ]
    if said:
        raise UserError(f"{what}: the file {'; '.join(said)}; give weights of this very model, under its own names")


def _state(model: nn.Module, what: str) -> State:
    """A model's tensors as they are written: apart from each other, numbers in float32. Raises UserError for NaN."""
    state = {}
    for name, tensor in model.state_dict().items():
        number = tensor.is_floating_point()
        if number and not torch.isfinite(tensor).all():
            raise UserError(
                f"{what}: {name} holds NaN or infinite values; take a checkpoint from before the run diverged"
            )
        state[name] = (tensor.float() if number else tensor).detach().clone().contiguous()
    return state


def _counts(model: nn.Module, side: int, forward: Any) -> dict[str, float]:
    """As ``EncoderSpec.counts``."""
    values: list[int] = []

    def note(_: nn.Module, __: Any, output: Any) -> None:
        values.extend(part.numel() for part in [output] if isinstance(part, Tensor))

    leaves = [module for module in model.modules() if not any(module.children())]
    hooks = [module.register_forward_hook(note) for module in leaves]
    try:
        with FlopCounterMode(display=False) as counted:  # with gradients, which its hooks expect
            forward(torch.zeros(1, 3, side, side))
    finally:
        for hook in hooks:
            hook.remove()
    return {
        "gflop": counted.get_total_flops() / GIGA,
        "weights": sum(parameter.numel() for parameter in model.parameters()),
        "values": sum(values),
        "largest": max(values, default=0),
    }
