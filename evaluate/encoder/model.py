"""The canonical encoder: weights under timm names, and the one way to compute features.

Axes: B batch, N patches, D width, C channels, h w patch grid or map.
"""

import copy
import dataclasses
import hashlib
import json
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from timm.layers import QuickGELU
from timm.models.beit import Beit, gen_relative_position_index
from timm.models.resnet import BasicBlock, Bottleneck, ResNet
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from evaluate.encoder import own, timm_models
from evaluate.encoder.interpolation import resample_pos_embed
from evaluate.encoder.spec import LATER, PROVENANCE, EncoderSpec, describe_assumption
from evaluate.runtime.errors import UserError

ACTIVATIONS = {"gelu": nn.GELU, "quick_gelu": QuickGELU}


@dataclass(frozen=True)
class Tokens:
    """Output of one block, no norm applied: class token (B, D) or None, patch tokens (B, N, D), row by row."""

    cls: Tensor | None
    patches: Tensor

    def pooled(self, kind: str) -> Tensor:
        """(B, D): the class token ("cls") or the mean patch token ("mean")."""
        if kind == "mean":
            return self.patches.mean(dim=1)
        if kind != "cls":
            raise ValueError(f"pooling is 'cls' or 'mean', not {kind!r}")
        if self.cls is None:
            raise ValueError("this encoder has no class token; use pooling 'mean'")
        return self.cls


@dataclass(frozen=True)
class Maps:
    """Output of one stage of a ResNet, or the last map of another model: (B, C, h, w)."""

    map: Tensor

    def pooled(self, kind: str = "mean") -> Tensor:
        """(B, C): the mean over the map, the only pooling of a ResNet."""
        return self.map.mean(dim=(2, 3))


class Encoder(nn.Module):
    """An encoder with its spec. Takes images (B, 3, H, W) normalized with ``spec.mean`` and ``spec.std``."""

    def __init__(self, spec: EncoderSpec, state: dict[str, Tensor]):
        super().__init__()
        self.spec = spec
        self.model: Any = build(spec)  # timm's; torch takes every attribute of a module for a tensor or a module
        # tensors of a whole model may be tied, and some are no part of its state: it keeps its own
        self.model.load_state_dict(state, strict=True, assign=spec.family in ("vit", "resnet"))
        if spec.rel_pos_bias:
            _restore_buffers(self.model)
        self.fingerprint = fingerprint(spec, state)
        self.source = {
            "format": spec.source_format,
            "branch": spec.branch,
            "epoch": spec.epoch,
            "sha256": spec.source_sha256,
            "assumed": [describe_assumption(name, entry) for name, entry in spec.assumed.items()],
        } | ({"remark": spec.remark} if spec.remark else {})
        self._other_sizes: dict[tuple[int, int], nn.Module] = {}

    def forward(self, images: Tensor) -> Tokens | Maps:
        return self.forward_blocks(images, 1)[-1]

    def forward_tokens(self, images: Tensor) -> Tokens | Maps:
        """Straight from the last block with no norm: ``Tokens`` of a ViT, ``Maps`` of a ResNet."""
        return self.forward_blocks(images, 1)[-1]

    def forward_blocks(self, images: Tensor, n: int = 4) -> list[Any]:
        """The last n blocks of a ViT (list of ``Tokens``), the last n stages of a ResNet (list of ``Maps``); the final
        one last.

        Other image sizes than ``spec.img_size`` work; the position embedding is interpolated as ``spec.interpolation``
        says.
        """
        if not self.spec.is_vit:
            return self._stages(images)[-n:] if self.spec.family == "resnet" else [Maps(self._last_map(images))]
        x = self.embed(images)
        prefix = int(self.spec.class_token) + self.spec.registers
        blocks = self._blocks_for(images)
        outputs = []
        for index, block in enumerate(blocks):
            x = block(x)
            if index >= len(blocks) - n:
                outputs.append(Tokens(x[:, 0] if self.spec.class_token else None, x[:, prefix:]))
        return outputs

    def embed(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) to what the first block takes, (B, prefix + N, D)."""
        spec, model = self.spec, self.model
        if images.shape[-2] % spec.patch_size or images.shape[-1] % spec.patch_size:
            raise ValueError(
                f"images of {tuple(images.shape[-2:])} px are no multiple of the patch size {spec.patch_size}"
            )
        grid = (images.shape[-2] // spec.patch_size, images.shape[-1] // spec.patch_size)
        x = model.patch_embed.proj(images).flatten(2).transpose(1, 2)
        extra = [
            token.expand(len(x), -1, -1)
            for token in (model.cls_token, getattr(model, "reg_token", None))
            if token is not None
        ]
        prefix = int(spec.class_token) + spec.registers
        if not spec.pos_embed:
            x = torch.cat([*extra, x], dim=1)
        elif spec.pos_embed_prefix:
            x = torch.cat([*extra, x], dim=1) + resample_pos_embed(model.pos_embed, grid, prefix, spec.interpolation)
        else:
            x = torch.cat([*extra, x + resample_pos_embed(model.pos_embed, grid, 0, spec.interpolation)], dim=1)
        return model.norm_pre(x) if spec.pre_norm else x

    def _blocks_for(self, images: Tensor) -> Any:
        """The blocks; with relative position bias and another size, those of a copy whose bias tables are
        interpolated."""
        size = (images.shape[-2], images.shape[-1])
        if not self.spec.rel_pos_bias or size == (self.spec.img_size, self.spec.img_size):
            return self.model.blocks
        if (
            torch.is_grad_enabled()
            and any(parameter.requires_grad for parameter in self.model.parameters())
            and self.training
        ):
            raise ValueError(
                f"an encoder with relative position bias trains at its own size, {self.spec.img_size} px, not at {size}"
            )
        if size not in self._other_sizes:
            resized = copy.deepcopy(self.model)
            resized.set_input_size(size)
            self._other_sizes = {size: resized.to(images.device)}
        return self._other_sizes[size].blocks

    def pooled(self, images: Tensor) -> Tensor:
        """(B, D): what an encoder that is no ViT pools of images."""
        if self.spec.family == "resnet":
            return self._stages(images)[-1].pooled()
        check_sides(self.spec, *images.shape[-2:])
        if self.spec.family == "own":
            found = own.call(self.spec, self.model.pooled, images)
            if not isinstance(found, Tensor) or found.shape != (len(images), self.spec.embed_dim):
                raise UserError(
                    f"{self.spec.model}: pooled() of {len(images)} images of {images.shape[-1]} px gave not "
                    f"({len(images)}, {self.spec.embed_dim}), which its certificate promises"
                )
            return found
        return timm_models.features(self.model, images)[1]

    def _last_map(self, images: Tensor) -> Tensor:
        check_sides(self.spec, *images.shape[-2:])
        if self.spec.family == "own":
            return own.last_map(own.call(self.spec, self.model.features, images))
        return timm_models.features(self.model, images)[0]

    def _stages(self, images: Tensor) -> list[Maps]:
        model = self.model
        x = model.maxpool(model.act1(model.bn1(model.conv1(images))))
        outputs = []
        for stage in (model.layer1, model.layer2, model.layer3, model.layer4):
            x = stage(x)
            outputs.append(Maps(x))
        return outputs


def check_sides(spec: EncoderSpec, *sides: int) -> None:
    """Raises UserError for images of a size that a whole model does not take."""
    for side in sides if spec.family in ("timm", "own") else ():
        if spec.side_step and side % spec.side_step or not spec.side_step and side != spec.img_size:
            wanted = f"multiples of {spec.side_step}" if spec.side_step else f"{spec.img_size}"
            raise UserError(f"{spec.model} takes images of {wanted} px, not of {side}; choose with --set img_size=N")


def build(spec: EncoderSpec) -> nn.Module:
    """timm's model in eval mode without weights (on the meta device, or with random ones); ``num_classes`` 0."""
    if spec.family in ("timm", "own"):
        return timm_models.create(spec.model) if spec.family == "timm" else own.create(spec)
    norm = partial(nn.LayerNorm, eps=spec.layer_norm_eps)
    common: dict[str, Any] = {
        "img_size": spec.img_size,
        "patch_size": spec.patch_size,
        "embed_dim": spec.embed_dim,
        "depth": spec.depth,
        "num_heads": spec.num_heads,
        "mlp_ratio": spec.mlp_ratio,
        "qkv_bias": spec.qkv_bias,
        "norm_layer": norm,
        "init_values": 1.0 if spec.layer_scale else None,
        "num_classes": 0,
    }
    model: nn.Module
    with torch.device("meta"):
        if spec.family == "resnet":
            block: Any = {"basic": BasicBlock, "bottleneck": Bottleneck}[spec.block]
            norm_layer = partial(nn.BatchNorm2d, eps=spec.batch_norm_eps)
            model = ResNet(
                block, spec.layers, 0, cardinality=spec.cardinality, base_width=spec.base_width, norm_layer=norm_layer
            )
        elif spec.rel_pos_bias:
            model = Beit(**common, use_abs_pos_emb=spec.pos_embed, use_rel_pos_bias=True, use_fc_norm=spec.fc_norm)
            if not (spec.final_norm or spec.fc_norm):
                model.norm = nn.Identity()
        else:
            model = VisionTransformer(
                **common,
                global_pool="token" if spec.class_token else "avg",
                class_token=spec.class_token,
                reg_tokens=spec.registers,
                pos_embed="learn" if spec.pos_embed else "none",
                no_embed_class=not spec.pos_embed_prefix,
                pre_norm=spec.pre_norm,
                final_norm=spec.final_norm or spec.fc_norm,
                fc_norm=spec.fc_norm,
                act_layer=ACTIVATIONS[spec.activation],
                weight_init="skip",
            )
    return model.eval()


def _restore_buffers(model: Any) -> None:
    """BEiT's buffers that no state dict holds: the zero key bias and the index into the table of relative positions."""
    for block in model.blocks:
        attention = block.attn
        if attention.k_bias is not None:
            attention.register_buffer("k_bias", torch.zeros_like(attention.q_bias), persistent=False)
        attention.register_buffer(
            "relative_position_index", gen_relative_position_index(attention.window_size), persistent=False
        )


def fingerprint(spec: EncoderSpec, state: dict[str, Tensor]) -> str:
    """Hexadecimal digest of the tensors and of every field of the spec that can change a feature."""
    digest = hashlib.sha256()
    values = {
        item.name: getattr(spec, item.name)
        for item in dataclasses.fields(spec)
        if item.name not in PROVENANCE and not (item.name in LATER and getattr(spec, item.name) == item.default)
    }
    digest.update(json.dumps(values, sort_keys=True).encode())
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
