"""The forward pass of a source checkpoint in plain functional torch, from its own tensors under its own names.

It shares nothing with timm's modules, with the name tables or with the encoder file: a format says what each of its
tensors is (its *roles*, templates with ``{i}`` for the block and ``{p}`` for weight or bias), and the arithmetic is
written out below.
Axes: B batch, N tokens, D width, H heads.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Semantics:
    """What the tensors do not say."""

    num_heads: int = 0
    layer_norm_eps: float = 1e-6
    activation: str = "gelu"
    batch_norm_eps: float = 1e-5


class SourceViT:
    """A source's ViT by roles; reads tensors in float32 when asked for them."""

    def __init__(self, source: Mapping[str, Tensor], roles: Mapping[str, str], semantics: Semantics):
        self.source, self.roles, self.semantics = source, roles, semantics
        self.depth = 0
        while self.get("norm1", "weight", self.depth) is not None:
            self.depth += 1

    def get(self, role: str, part: str = "", block: int = 0) -> Tensor | None:
        """The tensor of a role, None where the source has none."""
        template = self.roles.get(role)
        tensor = None if template is None else self.source.get(template.replace("{i}", str(block)).replace("{p}", part))
        return None if tensor is None else tensor.float()

    def need(self, role: str, part: str = "", block: int = 0) -> Tensor:
        """The tensor of a role that no source lacks."""
        tensor = self.get(role, part, block)
        assert tensor is not None, f"the source has no {role} {part}"
        return tensor

    def embed(self, image: Tensor, class_token: bool = True) -> Tensor:
        """Image (B, 3, H, W) to the first block's input (B, N, D); without the class token if asked."""
        weight = self.need("patch", "weight")
        width, size = weight.shape[0], weight.shape[-1]
        patches = F.unfold(image, size, stride=size).transpose(1, 2) @ weight.reshape(width, -1).T
        bias = self.get("patch", "bias")
        x = patches if bias is None else patches + bias
        tokens = [
            t.reshape(1, -1, width).expand(len(x), -1, -1)
            for t in (self.get("cls"), self.get("registers"))
            if t is not None
        ]
        positions = self.get("pos")
        count = x.shape[1]
        if positions is not None:
            positions = positions.reshape(1, -1, width)
            x = x + positions[:, -count:]
            if positions.shape[1] > count:
                leading, rows = torch.cat(tokens, 1), positions.shape[1] - count
                if rows > leading.shape[1]:
                    raise ValueError(f"{rows} position rows before the patches, {leading.shape[1]} tokens")
                tokens = [leading[:, :rows] + positions[:, :rows], leading[:, rows:]]  # registers may have none
        if class_token:
            x = torch.cat([*tokens, x], 1)
        return self._norm(x, "pre", 0) if self.get("pre", "weight") is not None else x

    def blocks(self, x: Tensor) -> Tensor:
        """All blocks on tokens (B, N, D)."""
        activation = {"gelu": F.gelu, "quick_gelu": lambda y: y * torch.sigmoid(1.702 * y)}[self.semantics.activation]
        for i in range(self.depth):
            y = self._linear(self._attend(self._norm(x, "norm1", i), i), "proj", i)
            scale = self.get("scale1", block=i)
            x = x + (y if scale is None else scale * y)
            y = self._linear(activation(self._linear(self._norm(x, "norm2", i), "fc1", i)), "fc2", i)
            scale = self.get("scale2", block=i)
            x = x + (y if scale is None else scale * y)
        return x

    def _norm(self, x: Tensor, role: str, block: int) -> Tensor:
        centered = x - x.mean(-1, keepdim=True)
        variance = centered.square().mean(-1, keepdim=True)
        scaled = centered / torch.sqrt(variance + self.semantics.layer_norm_eps)
        return scaled * self.need(role, "weight", block) + self.need(role, "bias", block)

    def _linear(self, x: Tensor, role: str, block: int) -> Tensor:
        return F.linear(x, self.need(role, "weight", block), self.get(role, "bias", block))

    def _attend(self, x: Tensor, block: int) -> Tensor:
        """softmax(q k^T / sqrt(D / H) + relative bias) v."""
        if "qkv" in self.roles:
            q, k, v = F.linear(x, self.need("qkv", "weight", block), self.get("qkv", "bias", block)).chunk(3, -1)
        else:
            q, k, v = (self._linear(x, role, block) for role in ("q", "k", "v"))
        q_bias, v_bias = self.get("q_bias", block=block), self.get("v_bias", block=block)
        q, v = (q if q_bias is None else q + q_bias), (v if v_bias is None else v + v_bias)
        q, k, v = (part.unflatten(-1, (self.semantics.num_heads, -1)).transpose(1, 2) for part in (q, k, v))
        scores = q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5
        table = self.get("bias_table", block=block)
        if table is not None:
            side = math.isqrt(x.shape[1])
            bias = relative_bias(table, side)
            scores = scores + (
                bias[:, 1:, 1:] if side * side == x.shape[1] else bias
            )  # without class token in the dense backbone's case
        return (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)


def relative_bias(table: Tensor, side: int) -> Tensor:
    """BEiT's bias (H, 1 + N, 1 + N) from its table ((2 side - 1)^2 + 3, H); the last three rows concern the class
    token."""
    span = 2 * side - 1
    rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    rows, columns = rows.flatten(), columns.flatten()
    index = torch.full((side * side + 1,) * 2, span * span)  # the class token looks at a patch
    index[1:, 0] = span * span + 1  # a patch looks at the class token
    index[0, 0] = span * span + 2
    index[1:, 1:] = (rows[:, None] - rows + side - 1) * span + (columns[:, None] - columns + side - 1)
    return table[index].permute(2, 0, 1)


class SourceResNet:
    """A source's ResNet by roles (conv1, bn1, layer1 … layer4: the names they have in the source)."""

    def __init__(self, source: Mapping[str, Tensor], roles: Mapping[str, str], semantics: Semantics):
        self.source, self.roles, self.eps = source, roles, semantics.batch_norm_eps

    def pyramid(self, image: Tensor) -> list[Tensor]:
        """Image (B, 3, H, W) to the maps of the four stages."""
        x = self._norm(self._convolve(image, self.roles["conv1"], 2), self.roles["bn1"]).relu()
        x = F.max_pool2d(x, 3, 2, 1)
        maps = []
        for stage in range(1, 5):
            index = 0
            while f"{self.roles[f'layer{stage}']}.{index}.conv1.weight" in self.source:
                x = self._block(x, f"{self.roles[f'layer{stage}']}.{index}", 2 if stage > 1 and index == 0 else 1)
                index += 1
            maps.append(x)
        return maps

    def _block(self, x: Tensor, name: str, stride: int) -> Tensor:
        convolutions = 3 if f"{name}.conv3.weight" in self.source else 2
        strided = 2 if convolutions == 3 else 1  # the 3x3 convolution of a bottleneck carries the stride
        y = x
        for number in range(1, convolutions + 1):
            y = self._norm(
                self._convolve(y, f"{name}.conv{number}", stride if number == strided else 1), f"{name}.bn{number}"
            )
            y = y.relu() if number < convolutions else y
        if f"{name}.downsample.0.weight" in self.source:
            x = self._norm(self._convolve(x, f"{name}.downsample.0", stride), f"{name}.downsample.1")
        return (x + y).relu()

    def _convolve(self, x: Tensor, name: str, stride: int) -> Tensor:
        weight = self.source[f"{name}.weight"].float()
        return F.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2, groups=x.shape[1] // weight.shape[1])

    def _norm(self, x: Tensor, name: str) -> Tensor:
        mean, variance, weight, bias = (
            self.source[f"{name}.{p}"].float() for p in ("running_mean", "running_var", "weight", "bias")
        )
        scale = weight / torch.sqrt(variance + self.eps)
        return x * scale[:, None, None] + (bias - mean * scale)[:, None, None]
