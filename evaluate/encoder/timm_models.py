"""timm's own models as encoders: how one is built, and its features, maps and pyramid.

Axes: B images, N tokens, D width of the pooled features, C channels, h w map.
"""

from typing import Any

import timm
import torch
from torch import Tensor, nn

from evaluate.runtime.errors import UserError

STRIDES = (4, 8, 16, 32)  # of the pyramid that detection and segmentation take
ANY_SIZE: tuple[dict[str, Any], ...] = ({"dynamic_img_size": True}, {"strict_img_size": False}, {})


def create(name: str, **arguments: Any) -> Any:
    """timm's model without classifier and with random weights, in eval mode; where timm can, for images of any size.

    Raises whatever timm raises for arguments that the model does not take.
    """
    for any_size in ANY_SIZE[:-1]:
        if not timm.get_pretrained_cfg_value(name, "fixed_input_size"):
            break
        try:
            return timm.create_model(name, pretrained=False, num_classes=0, **any_size, **arguments).eval()
        except TypeError:  # this model has no such argument
            continue
    return timm.create_model(name, pretrained=False, num_classes=0, **arguments).eval()


def features(model: Any, images: Tensor) -> tuple[Tensor, Tensor]:
    """Of normalized images (B, 3, H, W): the last map (B, C, h, w), and the pooled features (B, D), which are timm's
    input of its classifier.
    """
    found = model.forward_features(images)
    return as_map(model, found), model.forward_head(found, pre_logits=True)


def as_map(model: Any, found: Tensor) -> Tensor:
    """(B, C, h, w) from what ``forward_features`` gives: maps, maps with channels last, or tokens of a square grid."""
    if found.ndim == 3:
        patches = found[:, getattr(model, "num_prefix_tokens", 0) :]
        side = round(patches.shape[1] ** 0.5)
        return patches.transpose(1, 2).unflatten(2, (side, side))
    return found.permute(0, 3, 1, 2) if getattr(model, "output_fmt", "NCHW") == "NHWC" else found


def levels(model: Any) -> list[int]:
    """The indices of the last features at each of ``STRIDES``; [] of a model that has no such pyramid."""
    listed = getattr(model, "feature_info", [])
    listed = listed if isinstance(listed, list) else listed.get_dicts()
    at = {entry["reduction"]: index for index, entry in enumerate(listed)}
    return (
        [at[stride] for stride in STRIDES] if hasattr(model, "forward_intermediates") and set(STRIDES) <= {*at} else []
    )


def pyramid(model: Any, images: Tensor) -> list[Tensor]:
    """The maps (B, C, h, w) at ``STRIDES`` as timm's ``features_only`` gives them, without a norm of their own."""
    return model.forward_intermediates(
        images, indices=levels(model), norm=False, output_fmt="NCHW", intermediates_only=True
    )


def with_drop_path(name: str, model: nn.Module, rate: float) -> Any:
    """A model again, with stochastic depth that grows to ``rate``. Raises UserError for one that has none."""
    try:
        deep = create(name, drop_path_rate=rate)
    except TypeError as error:
        raise UserError(f"timm's {name} has no drop_path_rate; --set finetune.drop_path_rate=0") from error
    deep.load_state_dict(model.state_dict(), strict=True)
    return deep


def layers(name: str) -> tuple[dict[str, int], set[str]]:
    """The layer of each parameter of a classifier for a rate that falls with depth, as timm's
    ``param_groups_layer_decay`` has them, and the names of those that timm never decays.
    """
    with torch.random.fork_rng(devices=[]):
        model: Any = timm.create_model(name, pretrained=False, num_classes=1)
    known = timm.models.group_parameters(model, model.group_matcher(coarse=False), reverse=True)
    return known, set(model.no_weight_decay()) if hasattr(model, "no_weight_decay") else set()


def side_step(model: Any, native: int) -> int:
    """Of which number of pixels an image's sides must be multiples: found by trying; 0 where only ``native`` runs."""
    for step, side in ((1, native + 32), (native, 2 * native)):
        try:
            with torch.inference_mode():
                features(model, torch.zeros(1, 3, side, side))
            return step
        except (AssertionError, RuntimeError, ValueError):  # what timm's models and torch raise for another size
            continue
    return 0
