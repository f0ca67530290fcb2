"""mmcv's two operators that our recipes need, from torchvision, so that nothing has to be compiled.

onedl-mmcv is installed as pure Python. Its ``mmcv.ops`` asks a module ``mmcv._ext`` for every operator that it may ever call; the module
made here gives non-maximum suppression and RoIAlign of torchvision, which has both for CPUs and GPUs in its wheel. detectron2, where the
published detection numbers come from, takes the same two from there. RoIAlign equals mmcv's compiled one to the last bit; the order of
boxes of equal score may differ. Any other operator is refused when it is called.
"""

import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import torch
import torchvision  # its import registers torch.ops.torchvision
from torch import Tensor

NAME = "mmcv._ext"


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int = 0) -> Tensor:
    """Indices (K,) of the boxes (N, 4) that stay, from the best of the scores (N,) down; ``offset`` 1 counts both edges as pixels."""
    if offset != 0:
        raise NotImplementedError(f"torchvision's nms has no offset of {offset}, only 0; set offset=0 in the recipe's nms")
    return torchvision.ops.nms(boxes, scores, iou_threshold)


def roi_align_forward(
    images: Tensor,
    regions: Tensor,
    output: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    *,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Fills ``output`` (K, C, h, w) from maps (B, C, H, W) and regions (K, 5): index of the image, then x1, y1, x2, y2."""
    _require_average(pool_mode)
    size = (aligned_height, aligned_width)
    output.copy_(torch.ops.torchvision.roi_align(images, regions, spatial_scale, *size, sampling_ratio, aligned))


def roi_align_backward(
    grad_output: Tensor,
    regions: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    grad_input: Tensor,
    *,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Adds to ``grad_input`` (B, C, H, W) what ``grad_output`` (K, C, h, w) says; the other arguments as in ``roi_align_forward``."""
    _require_average(pool_mode)
    size = (aligned_height, aligned_width)
    backward = torch.ops.torchvision._roi_align_backward
    grad_input.add_(backward(grad_output, regions, spatial_scale, *size, *grad_input.shape, sampling_ratio, aligned))


def _require_average(pool_mode: int) -> None:
    if pool_mode != 1:
        raise NotImplementedError("torchvision's RoIAlign takes the average; set pool_mode='avg' in the recipe's RoIAlign")


PROVIDED: tuple[Callable[..., Any], ...] = (nms, roi_align_forward, roi_align_backward)


class Operators(ModuleType):
    """``mmcv._ext``: the operators of PROVIDED; a call of any other raises one sentence with its name."""

    def __init__(self) -> None:
        super().__init__(NAME, __doc__)
        self.__spec__ = ModuleSpec(NAME, None)  # mmcv asks by find_spec whether it has operators
        for operator in PROVIDED:
            setattr(self, operator.__name__, operator)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # what import machinery and inspection ask any module for
            raise AttributeError(f"module {NAME!r} has no attribute {name!r}")

        def refuse(*_arguments: Any, **_named: Any) -> None:
            given = ", ".join(operator.__name__ for operator in PROVIDED)
            raise NotImplementedError(f"mmcv's operator {name} is not there: without compiling there are {given} (evaluate/mm/operators.py)")

        return refuse


def provide() -> None:
    """Puts the operators where ``mmcv.ops`` looks for them; call it before the first import of mmcv.ops, mmdet or mmseg."""
    if not isinstance(sys.modules.get(NAME), Operators):
        sys.modules[NAME] = Operators()
