"""Traces a training step of detection (ViTDet) or segmentation (UPerNet) on a pretended GPU.

    python -m tests.gpu.pretended.dense detection [--encoder vit_large] [--batch 4]

Start it with the variables that ``build`` prints. The step is mmengine's own: the model of the paper's recipe, its data
preprocessor, and the optimizer with its layer decay. Pictures and labels are zeros.
"""

# ruff: noqa: E402  # what mmdet finds in place of mmcv's operators must be there before it is imported

import argparse
import os
import sys
from collections.abc import Callable
from typing import Any

from evaluate.mm import operators

operators.provide()

import mmdet.registry
import mmseg.registry
import numpy as np
import torch
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import HorizontalBoxes
from mmdet.structures.mask import PolygonMasks
from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.optim import build_optim_wrapper
from mmengine.structures import InstanceData, PixelData
from mmseg.structures import SegDataSample

from evaluate.mm import detector, mixed_precision, recipes, segmenter
from evaluate.mm.runner import copy_without_waiting
from evaluate.runtime.precision import resolve
from tests.gpu.pretended.audit import on_gpu, pretended_gpu
from tests.gpu.pretended.tasks import ENCODERS, pretended_encoder
from tests.gpu.pretended.trace import Trace, add_options, finish

OBJECTS = 7  # of a picture: COCO's mean
CLASSES = {"detection": 80, "segmentation": 150}


def make_detector(encoder: str) -> tuple[Config, BaseModel]:
    """ViTDet of COCO."""
    cfg = recipes.read_recipe("mask_rcnn_vitdet_100ep_coco")
    detector.fill_encoder(cfg, pretended_encoder(encoder))
    detector.fill_classes(cfg, [None] * CLASSES["detection"])
    return cfg, mmdet.registry.MODELS.build(cfg.model)


def make_segmenter(encoder: str) -> tuple[Config, BaseModel]:
    """UPerNet of ADE20k."""
    cfg = recipes.read_recipe("upernet_vit_160k_ade20k")
    segmenter.fill_encoder(cfg, pretended_encoder(encoder))
    cfg.model.decode_head.num_classes = cfg.model.auxiliary_head.num_classes = CLASSES["segmentation"]
    return cfg, mmseg.registry.MODELS.build(cfg.model)


def picture_with_objects(side: int) -> DetDataSample:
    """What detection's loader gives beside the pixels."""
    half = side / 2
    outlines = [[np.array([0.0, 0.0, half, 0.0, half, half])]] * OBJECTS
    sample = DetDataSample(metainfo=_metainfo(side))
    sample.gt_instances = InstanceData(
        bboxes=HorizontalBoxes(torch.tensor([[0.0, 0.0, half, half]] * OBJECTS)),
        labels=torch.zeros(OBJECTS, dtype=torch.int64),
        masks=PolygonMasks(outlines, side, side),
    )
    none = HorizontalBoxes(torch.zeros(0, 4))
    sample.ignored_instances = InstanceData(bboxes=none, labels=torch.zeros(0, dtype=torch.int64))
    return sample


def labelled_crop(side: int) -> SegDataSample:
    """What segmentation's loader gives beside the pixels."""
    sample = SegDataSample(metainfo=_metainfo(side))
    sample.gt_sem_seg = PixelData(data=torch.zeros(1, side, side, dtype=torch.int64))
    return sample


def _metainfo(side: int) -> dict[str, Any]:
    return {"img_shape": (side, side), "ori_shape": (side, side), "scale_factor": (1.0, 1.0)}


MAKE: dict[str, Callable[[str], tuple[Config, BaseModel]]] = {
    "detection": make_detector,
    "segmentation": make_segmenter,
}
SAMPLES: dict[str, Callable[[int], Any]] = {"detection": picture_with_objects, "segmentation": labelled_crop}


def trace_step(task: str, encoder: str, count: int, trace: Trace) -> None:
    """One training step of ``count`` pictures."""
    cfg, model = MAKE[task](encoder)
    side = cfg.get("image_size") or cfg.crop
    mixed_precision.use(cfg, resolve("auto", "cuda"), "cuda")
    copy_without_waiting(model)
    with pretended_gpu():
        on_gpu(model).train()
        model.data_preprocessor._device = torch.device("cuda")  # as Module.to would say
        optimizer = build_optim_wrapper(model, cfg.optim_wrapper)
        trace.hold(model)
        pixels = [torch.zeros(3, side, side, dtype=torch.uint8) for _ in range(count)]
        samples = [SAMPLES[task](side) for _ in range(count)]
        with trace.part(f"{task}: a step", count):
            model.train_step({"inputs": pixels, "data_samples": samples}, optimizer)


def main() -> int:
    """0 traced."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=MAKE)
    parser.add_argument("--encoder", choices=[name for name in ENCODERS if name.startswith("vit")], default="vit_base")
    parser.add_argument("--batch", type=int, default=1, help="pictures at once (default: 1)")
    add_options(parser)
    options = parser.parse_args()
    trace = Trace()
    trace_step(options.task, options.encoder, options.batch, trace)
    finish(trace, options)
    return 0


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    os._exit(status)  # mmcv's and torch's libraries clean up at the end what a pretended runtime never made
