"""Certificates of encoders that are whole models.

A timm model is compared with what ``timm.create_model`` builds without any help of ours, its pyramid with timm's own
``features_only``. A user's class has no reference: it is certified to keep what it promises and to repeat itself.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import timm
import torch
from torch import Tensor, nn

from evaluate.checkpoints.certificate import _check, fixed_image
from evaluate.encoder import own, timm_models
from evaluate.encoder.model import Encoder
from evaluate.encoder.spec import MAX_SIDE, MAX_WIDTH, is_number
from evaluate.mm.backbones.pyramid import PyramidBackbone
from evaluate.runtime.errors import UserError

UNCERTIFIED = "user's encoder, not certified against a reference"
Checks = dict[str, dict[str, Any]]


@torch.inference_mode()
def of_timm(encoder: Encoder) -> Checks:
    """The encoder's pooled features, last map and pyramid beside those of timm."""
    spec, state = encoder.spec, encoder.model.state_dict()
    image = fixed_image(spec.img_size)
    plain: Any = timm.create_model(spec.model, pretrained=False, num_classes=0).eval()
    plain.load_state_dict(state, strict=True)
    found = plain.forward_features(image)
    expected = {"pooled": plain.forward_head(found, pre_logits=True), "map": timm_models.as_map(plain, found)}
    mine = {"pooled": encoder.pooled(image), "map": encoder.forward_tokens(image).map}  # type: ignore[union-attr]
    checks = {"timm": _check(expected, mine)}
    if spec.maps:
        backbone = PyramidBackbone(spec.to_json())
        backbone.load(spec, state)
        image = fixed_image(math.ceil(spec.img_size / backbone.multiple) * backbone.multiple)
        indices = timm_models.levels(plain)
        alone = timm.create_model(spec.model, pretrained=False, features_only=True, out_indices=indices).eval()
        alone.load_state_dict(renamed(state, alone), strict=True)
        wanted = {f"stride {stride}": level for stride, level in zip(timm_models.STRIDES, alone(image), strict=True)}
        levels = {name: as_nchw(level, width) for (name, level), width in zip(wanted.items(), spec.maps, strict=True)}
        checks["mmdet and mmseg, pyramid"] = _check(levels, dict(zip(levels, backbone.eval()(image), strict=True)))
    return checks


def as_nchw(level: Tensor, width: int) -> Tensor:
    """A map of ``features_only``, which has channels last where its model has."""
    return level if level.shape[1] == width else level.permute(0, 3, 1, 2)


def renamed(state: Mapping[str, Tensor], module: nn.Module) -> dict[str, Tensor]:
    """A model's tensors under the names of its ``features_only``, which has ``stages_0.x`` or ``model.stages.0.x`` for
    ``stages.0.x``."""
    by_name = {name.replace(".", "_"): tensor for name, tensor in state.items()}
    return {name: by_name[name.removeprefix("model.").replace(".", "_")] for name in module.state_dict()}


@dataclass(frozen=True)
class Promised:
    """What a user's class says of itself."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    side: int
    """Of the images that it is made for, in pixels."""
    step: int
    """Of which the sides of other images are multiples."""
    width: int
    """Of its pooled features."""
    maps: tuple[int, ...]
    """Channels of its maps at strides 4, 8, 16 and 32; () where it gives others, or tokens."""


@torch.no_grad()
def promised(model: Any, label: str) -> Promised:
    """Asks a user's model what it is. Raises UserError for an answer that docs/own_encoder.md does not allow."""
    said = model.normalization()
    triples = isinstance(said, tuple | list) and len(said) == 2
    if not triples or any(len(part) != 3 or not all(map(is_number, part)) for part in said) or min(said[1]) <= 0:
        raise UserError(
            f"{label}: normalization() gave {said!r}; (mean, std) of three numbers each is expected, std above 0"
        )
    side, step = getattr(model, "image_size", 224), getattr(model, "multiple", 32)
    for name, value in (("image_size", side), ("multiple", step)):
        if type(value) is not int or not 0 < value <= MAX_SIDE:
            raise UserError(f"{label}: {name} is {value!r}; a number of pixels is expected")
    if side % step:
        raise UserError(f"{label}: image_size {side} is no multiple of multiple {step}")
    widths = {}
    for one in (side, side + step):
        images = fixed_image(one).expand(2, -1, -1, -1)
        pooled = _vectors(model.pooled(images), label, one)
        widths[one] = pooled.shape[1], _maps(model.features(images), label, one)
    (width, maps), (other_width, other_maps) = widths.values()
    if width != other_width:
        raise UserError(
            f"{label}: pooled() has {width} values at {side} px and {other_width} at {side + step}; it must not change"
        )
    if maps != other_maps:
        raise UserError(f"{label}: features() is of other channels or strides at {side + step} px than at {side}")
    mean, std = (tuple(float(value) for value in part) for part in said)
    return Promised(mean, std, side, step, width, maps)


def _vectors(found: Any, label: str, side: int) -> Tensor:
    if not isinstance(found, Tensor) or found.ndim != 2 or len(found) != 2 or not found.is_floating_point():
        raise UserError(
            f"{label}: pooled() of 2 images of {side} px gave {described(found)}; a tensor (2, D) is expected"
        )
    if not 0 < found.shape[1] <= MAX_WIDTH:
        raise UserError(f"{label}: pooled() has {found.shape[1]} values; 1 to {MAX_WIDTH} are supported")
    return found


def _maps(found: Any, label: str, side: int) -> tuple[int, ...]:
    """The channels of maps at strides 4, 8, 16 and 32; () of other maps and of tokens."""
    if isinstance(found, Tensor):
        if (
            found.ndim != 3
            or len(found) != 2
            or math.isqrt(found.shape[1]) ** 2 != found.shape[1]
            or not found.shape[1]
        ):
            raise UserError(
                f"{label}: features() of 2 images of {side} px gave {described(found)}; patch tokens (2, N, D) of a "
                f"square grid, or a list of maps (2, C, h, w), are expected"
            )
        return ()
    maps = isinstance(found, list | tuple) and found and all(isinstance(one, Tensor) for one in found)
    if not maps or any(one.ndim != 4 or len(one) != 2 or one.shape[2] != one.shape[3] for one in found):
        raise UserError(
            f"{label}: features() of 2 images of {side} px gave {described(found)}; patch tokens (2, N, D), or a list "
            f"of square maps (2, C, h, w), are expected"
        )
    sides = [one.shape[2] for one in found]
    pyramid = sides == [math.ceil(side / stride) for stride in timm_models.STRIDES]
    if len(found) == len(timm_models.STRIDES) and not pyramid:
        raise UserError(
            f"{label}: features() gave four maps of sides {', '.join(map(str, sides))} for an image of {side} px; "
            f"those of strides 4, 8, 16 and 32 are expected, or only the last map"
        )
    return tuple(one.shape[1] for one in found) if pyramid else ()


def described(found: Any) -> str:
    """What something is, with its shape if it has one."""
    if isinstance(found, Tensor):
        return f"a tensor of shape {tuple(found.shape)}"
    if isinstance(found, list | tuple) and found:
        return f"a {type(found).__name__} of {', '.join(map(described, found[:4]))}"
    return f"a {type(found).__name__}"


@torch.no_grad()
def of_own(encoder: Encoder) -> Checks:
    """That a user's class repeats itself: for the same images, in another batch, after training mode, at another size,
    and read from the encoder file.

    Raises:
        UserError: what it does not keep.
    """
    spec = encoder.spec
    known, checks = own.of(spec), Checks()
    before = {name: value.clone() for name, value in encoder.model.state_dict().items()}
    with own.blamed(known.label, known.file), own.silent(known.label):
        for side in (spec.img_size, spec.img_size + spec.side_step):
            checks |= {f"{name}, {side} px": check for name, check in _repeats(encoder, side).items()}
    for name, check in checks.items():
        if "not finite" in check.get("reason", ""):
            raise UserError(
                f"{known.label}: its features are not finite ({name}); give other weights or correct the class"
            )
        if not check.get("passed", True):
            raise UserError(
                f"{known.label}: {REFUSED[name.partition(',')[0]]} (by {check['difference']:.1e} at {side} px)"
            )
    after = encoder.model.state_dict()
    changed = [name for name, value in before.items() if not torch.equal(value, after[name])]
    if changed:
        raise UserError(f"{known.label}: its tensor {changed[0]} changes when features are computed in eval mode")
    return checks


REFUSED = {
    "repeated": "its features of the same images differ from call to call; it must draw nothing in eval mode",
    "alone": "its features of an image depend on the other images of the batch",
    "after training mode": "its features change after train() and eval()",
}


def _repeats(encoder: Encoder, side: int) -> Checks:
    """The comparisons at one size, in which everything is compared with the first answer."""
    images = torch.cat([fixed_image(side), fixed_image(side).flip(3), 0.3 * fixed_image(side).flip(2)])
    scale = {name: 1 / max(float(value.abs().max()), 1e-30) for name, value in _answer(encoder, images).items()}

    def scaled(images: Tensor) -> dict[str, Tensor]:  # so that small features hide nothing
        return {name: scale[name] * value for name, value in _answer(encoder, images).items()}

    first = scaled(images)
    checks = {"repeated": _check(first, scaled(images))}
    alone = [scaled(image[None]) for image in images]
    checks["alone"] = _check(first, {name: torch.cat([one[name] for one in alone]) for name in first})
    encoder.model.train()
    encoder.model.eval()
    return {**checks, "after training mode": _check(first, scaled(images))}


def _answer(encoder: Encoder, images: Tensor) -> dict[str, Tensor]:
    found = encoder.model.features(images)
    maps = [found] if isinstance(found, Tensor) else list(found)
    return {"pooled": encoder.model.pooled(images), **{f"features {number}": one for number, one in enumerate(maps)}}
