"""Layer-wise learning-rate decay with the libraries' rules for weight decay, as mmengine's optimizer constructor."""

import re
from typing import Any, Literal

from mmengine.optim import OptimWrapper
from mmengine.registry import OPTIM_WRAPPERS, OPTIMIZERS
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

Rule = Literal["detectron2", "mmseg"]
TORCH_NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.LocalResponseNorm)


def layer_id(name: str, num_layers: int, rule: Rule = "detectron2") -> int:
    """The layer of a parameter: 0 the embeddings, i + 1 block i, ``num_layers`` + 1 everything else.

    The two libraries differ in the class token, which detectron2's ViTDet does not have and would put in the last
    layer. CLIP's norm before the blocks and registers count as embeddings; neither library has such an encoder.
    """
    if not name.startswith("backbone"):
        return num_layers + 1
    embeddings = (".pos_embed", ".patch_embed", ".norm_pre", ".prefix_tokens", ".reg_token") + (
        (".cls_token",) if rule == "mmseg" else ()
    )
    if any(part in name for part in embeddings):
        return 0
    block = re.search(r"\.blocks\.(\d+)\.", name)
    if block and ".residual." not in name:
        return int(block[1]) + 1
    return num_layers + 1


def multiplier(name: str, decay: float, num_layers: int, rule: Rule = "detectron2") -> float:
    """Learning-rate factor of a parameter."""
    return decay ** (num_layers + 1 - layer_id(name, num_layers, rule))


def weight_decay_of(name: str, owner: nn.Module, parameter: nn.Parameter, weight_decay: float, rule: Rule) -> float:
    """The weight decay of one parameter.

    Args:
        rule: ``detectron2`` exempts torch's norm layers and ``pos_embed``, and decays biases, relative positions and
            the channels-first LayerNorm. ``mmseg`` exempts what has one axis, and biases; it decays ``pos_embed`` and
            ``cls_token``. Its code means to spare them, but compares names without their prefix; the published numbers
            come from the code, so we follow it.
    """
    own_name = name.rpartition(".")[2]
    if rule == "detectron2":
        exempt = isinstance(owner, TORCH_NORMS) or own_name == "pos_embed"
    elif rule == "mmseg":
        exempt = parameter.ndim <= 1 or own_name == "bias"
    else:
        raise ValueError(f"the rule is detectron2 or mmseg, not {rule!r}")
    return 0.0 if exempt else weight_decay


def parameter_groups(
    model: nn.Module, base_lr: float, weight_decay: float, decay: float, num_layers: int, rule: Rule
) -> list[dict[str, Any]]:
    """One optimizer group for each learning rate and weight decay; ``names`` and ``lr_scale`` tell what is in it."""
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    seen: set[int] = set()
    for prefix, module in model.named_modules():
        for own_name, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad or id(parameter) in seen:
                continue
            seen.add(id(parameter))
            name = f"{prefix}.{own_name}" if prefix else own_name
            scale = multiplier(name, decay, num_layers, rule)
            decayed = weight_decay_of(name, module, parameter, weight_decay, rule)
            group = groups.setdefault(
                (scale, decayed),
                {"params": [], "names": [], "lr_scale": scale, "lr": base_lr * scale, "weight_decay": decayed},
            )
            group["params"].append(parameter)
            group["names"].append(name)
    return list(groups.values())


class LayerDecayConstructor:
    """``optim_wrapper.constructor``; reads ``paramwise_cfg = dict(layer_decay, num_layers, rule)``."""

    def __init__(self, optim_wrapper_cfg: dict[str, Any], paramwise_cfg: dict[str, Any]) -> None:
        self.wrapper = dict(optim_wrapper_cfg)
        self.optimizer = dict(self.wrapper.pop("optimizer"))
        self.paramwise = dict(paramwise_cfg)

    def __call__(self, model: nn.Module) -> OptimWrapper:
        """mmengine's wrapper of an optimizer over the groups of ``model``."""
        model = getattr(model, "module", model)
        decay, layers, rule = (self.paramwise[name] for name in ("layer_decay", "num_layers", "rule"))
        groups = parameter_groups(model, self.optimizer["lr"], self.optimizer["weight_decay"], decay, layers, rule)
        optimizer = OPTIMIZERS.build({**self.optimizer, "params": groups})
        return OPTIM_WRAPPERS.build({**self.wrapper, "optimizer": optimizer})
