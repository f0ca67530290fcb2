"""What the methods with heads of linear layers share: the ResNet, the heads, and a float type that loses nothing.

Axes: B batch, D width.
"""

import itertools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from pretrain.config import ResNetConfig
from pretrain.norm import BatchNorm


class Backbone(ResNet):
    """torchvision's ResNet, which may be asked for the vector before ``fc``.

    ``fc`` is the identity until a method puts its projector there. ``zero_init_residual``: whether the last norm of
    each residual branch starts at 0. ``norm_layer`` makes a norm of so many channels.
    """

    fc: nn.Module

    def __init__(
        self,
        config: ResNetConfig,
        zero_init_residual: bool = True,
        norm_layer: Callable[[int], nn.Module] = BatchNorm,
    ):
        block = {"basic": BasicBlock, "bottleneck": Bottleneck}[config.block]
        self.width = 512 * block.expansion
        super().__init__(
            block,
            list(config.layers),
            zero_init_residual=zero_init_residual,
            width_per_group=config.width_per_group,
            norm_layer=norm_layer,
        )
        self.fc = nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) to what ``fc`` makes of their features."""
        return self.fc(self.features(images))

    def features(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) to the mean (B, D) of the last map."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.avgpool(x).flatten(1)


def hidden(widths: Sequence[int], bias: bool = False) -> list[nn.Module]:
    """Linear layers from each width to the next, each with BatchNorm and ReLU after it."""
    pairs = itertools.pairwise(widths)
    return [part for a, b in pairs for part in (nn.Linear(a, b, bias), BatchNorm(b), nn.ReLU(inplace=True))]


def mlp(widths: Sequence[int], *last: nn.Module, bias: bool = False) -> nn.Sequential:
    """Hidden layers (``bias``: of these) and a linear one without bias, between the ``widths``; ``last`` follows."""
    return nn.Sequential(*hidden(widths[:-1], bias), nn.Linear(widths[-2], widths[-1], bias=False), *last)


def at_least_float32(tensor: Tensor) -> Tensor:
    """A tensor in float32, or as it is in float64."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
