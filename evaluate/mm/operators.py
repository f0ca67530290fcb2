"""mmcv's two operators that our recipes need, from torchvision, so that nothing has to be compiled.

onedl-mmcv is installed as pure Python. Its ``mmcv.ops`` asks a module ``mmcv._ext`` for every operator that it may ever
call. The module made here gives non-maximum suppression and RoIAlign of torchvision, whose wheel has both for CPUs and
GPUs. detectron2, where the published detection numbers come from, takes the same two from there. In float32 RoIAlign
equals mmcv's compiled one to the last bit. The order of boxes of equal score may differ. Any other operator is refused
when it is called. A compiled ``mmcv._ext`` is not used even where there is one, so that the numbers are the same
everywhere.
"""

import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import torch
import torchvision  # its import registers torch.ops.torchvision
from torch import Tensor

from evaluate.runtime.errors import UserError

NAME = "mmcv._ext"


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int = 0) -> Tensor:
    """Indices (K,) of the boxes (N, 4) that stay, from the best of the scores (N,) down.

    Raises UserError for an ``offset`` of 1, which counts the pixels of both edges.
    """
    if offset != 0:
        raise UserError(
            f"the recipe asks for nms with offset {offset}, but torchvision's nms supports only offset 0; set offset=0 "
            f"in the recipe's nms"
        )
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
    """Fills ``output`` (K, C, h, w) from maps (B, C, H, W) and regions (K, 5): index of the image, then x1, y1, x2, y2.

    Raises UserError for a ``pool_mode`` of 0 (the maximum), for which mmcv needs ``argmax_y`` and ``argmax_x``.
    """
    _require_average(pool_mode)
    size = (aligned_height, aligned_width)
    output.copy_(
        torch.ops.torchvision.roi_align(_wide(images), _wide(regions), spatial_scale, *size, sampling_ratio, aligned)
    )


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
    """Adds the gradient of ``roi_align_forward`` to ``grad_input`` (B, C, H, W), from ``grad_output`` (K, C, h, w)."""
    _require_average(pool_mode)
    size = (aligned_height, aligned_width)
    backward = torch.ops.torchvision._roi_align_backward
    grad_input.add_(
        backward(_wide(grad_output), _wide(regions), spatial_scale, *size, *grad_input.shape, sampling_ratio, aligned)
    )


def _require_average(pool_mode: int) -> None:
    if pool_mode != 1:
        raise UserError(
            "torchvision's RoIAlign supports only average pooling; set pool_mode='avg' in the recipe's RoIAlign"
        )


def _wide(tensor: Tensor) -> Tensor:
    """float16 and bfloat16 as float32, wider types as they are.

    detectron2 computes RoIAlign so under autocast, gradient included.
    """
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


PROVIDED: tuple[Callable[..., Any], ...] = (nms, roi_align_forward, roi_align_backward)


class Operators(ModuleType):
    """``mmcv._ext``: the operators of PROVIDED; a call of any other raises one sentence with its name."""

    def __init__(self) -> None:
        super().__init__(NAME, __doc__)
        self.__spec__ = ModuleSpec(NAME, None)  # mmengine asks by find_spec whether mmcv has operators
        for operator in PROVIDED:
            setattr(self, operator.__name__, operator)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # what import machinery and inspection ask any module for
            raise AttributeError(f"module {NAME!r} has no attribute {name!r}")

        def refuse(*_arguments: Any, **_named: Any) -> None:
            raise UserError(
                f"mmcv's operator {name} is not available: only nms and roi_align are, from torchvision "
                "(evaluate/mm/operators.py), and nothing is compiled; choose a recipe that needs no other operator"
            )

        return refuse


def provide() -> None:
    """Puts the operators where ``mmcv.ops`` looks for them, before the first import of mmcv.ops, mmdet or mmseg.

    Raises UserError where mmcv.ops has been imported already, with a compiled module.
    """
    if isinstance(sys.modules.get(NAME), Operators):
        return
    if sys.modules.get("mmcv.ops") is not None:
        problem = "mmcv.ops was imported with compiled operators, which are not ours"
        raise UserError(f"{problem}; call evaluate.mm.operators.provide() before it")
    sys.modules[NAME] = Operators()


def try_on(device: str) -> str:
    """Calls both operators on a device, gradient included; returns whose they are, for the record.

    On a GPU for which torchvision's wheel has no kernels this fails in a second, not when the first detections are
    compared.

    Raises UserError where they fail or give something wrong.
    """
    boxes = torch.tensor([[0.0, 0, 4, 4], [0, 0, 4, 4], [4, 4, 8, 8]], device=device)
    images = torch.ones(1, 1, 8, 8, device=device, requires_grad=True)
    try:
        kept = torchvision.ops.nms(boxes, torch.tensor([0.5, 0.9, 0.1], device=device), 0.5)
        pooled = torchvision.ops.roi_align(images, [boxes], 2, aligned=True)
        pooled.sum().backward()
        found = (kept.tolist(), pooled.mean().item(), images.grad.sum().item())  # type: ignore[union-attr]
    except (RuntimeError, NotImplementedError) as error:
        raise UserError(_unusable(device, str(error).splitlines()[0])) from error
    if found != ([1, 2], 1.0, 12.0):
        raise UserError(_unusable(device, f"they gave {found}"))
    return f"torchvision {torchvision.__version__}"


def _unusable(device: str, reason: str) -> str:
    return (
        f"torchvision's nms and roi_align do not work on {device} ({reason}); install a torchvision that belongs to "
        f"torch {torch.__version__} and to this GPU, or choose --device cpu"
    )
