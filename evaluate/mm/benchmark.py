"""Seconds an image of a detector's training and testing on this machine, by part, beside detectron2's recorded ones.

    python -m evaluate.mm.benchmark                                        ViTDet-B at 1024 pixels
    python -m evaluate.mm.benchmark --size vit_large --recipe cascade_mask_rcnn_vitdet_100ep_coco
    python -m evaluate.mm.benchmark --size tiny --recipe mask_rcnn_vitdet_demo_coco --device cpu

Weights and images are noise, with as many objects as COCO's images have: the time does not depend on the contents.
detectron2's seconds were recorded on an A100. They are scaled to this machine: multiplied by the A100's peak rate (312
TFLOP/s in half precision) and divided by the rate of a matrix product measured here in the same run. An A100 itself
reaches about three quarters of its peak, so the scaled time is a slightly too strict goal for another GPU. The times do
not include reading and augmenting images, which the loading processes do. Scoring and the attention alone are in
``scoring_benchmark`` and ``attention_benchmark``.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.optim import OptimWrapper, build_optim_wrapper
from mmengine.registry import MODELS, DefaultScope
from mmengine.structures import InstanceData

from evaluate.encoder.model import Encoder
from evaluate.encoder.model import build as build_vit
from evaluate.encoder.spec import EncoderSpec
from evaluate.mm import detector, mixed_precision, recipe_names, recipes, runner
from evaluate.runtime import devices
from evaluate.runtime.errors import UserError
from evaluate.runtime.precision import DTYPES, resolve
from results.ending import leave

SIZES = {  # width, blocks, heads, patch, image of the encoder
    "tiny": (48, 3, 3, 8, 32),
    "vit_small": (384, 12, 6, 16, 224),
    "vit_base": (768, 12, 12, 16, 224),
    "vit_large": (1024, 24, 16, 16, 224),
}
A100_FLOPS = 312e12
DETECTRON2 = {  # recipe and size: training and testing seconds an image (ViTDet's README)
    ("mask_rcnn_vitdet_100ep_coco", "vit_base"): (0.314, 0.079),
    ("mask_rcnn_vitdet_100ep_coco", "vit_large"): (0.603, 0.125),
    ("cascade_mask_rcnn_vitdet_100ep_coco", "vit_base"): (0.362, 0.089),
    ("cascade_mask_rcnn_vitdet_100ep_coco", "vit_large"): (0.643, 0.142),
}
OBJECTS, CLASSES = 7, 80  # of COCO: in a picture, in all
TESTED_SIZE = (480, 640)  # height, width of a picture of COCO


def random_encoder(size: str) -> Encoder:
    """A ViT of noise."""
    width, depth, heads, patch, side = SIZES[size]
    spec = EncoderSpec(
        family="vit",
        embed_dim=width,
        depth=depth,
        num_heads=heads,
        patch_size=patch,
        img_size=side,
        class_token=True,
        final_norm=True,
        mean=(0.5,) * 3,
        std=(0.25,) * 3,
    )
    generator = torch.Generator().manual_seed(0)
    return Encoder(
        spec,
        {
            name: 0.02 * torch.randn(value.shape, generator=generator)
            for name, value in build_vit(spec).state_dict().items()
        },
    )


def build(recipe: str, size: str, device: str, precision: str) -> tuple[Config, BaseModel, OptimWrapper]:
    """The config, the model and its optimizer wrapper."""
    cfg, encoder = recipes.read_recipe(recipe), random_encoder(size)
    recipe_names.recipe_of(recipe, recipe.rpartition("_")[2], "vit")
    detector.fill_encoder(cfg, encoder)
    detector.fill_classes(cfg, [1] * CLASSES)
    mixed_precision.use(cfg, precision, device)
    with DefaultScope.overwrite_default_scope("mmdet"):
        torch.manual_seed(0)
        model = MODELS.build(cfg.model)
        model.init_weights()
        runner.load_encoder(model, encoder)
        for name, parameter in model.roi_head.named_parameters():
            if name.endswith("fc_cls.bias"):
                parameter.data[:4] = 3.0  # some scores above the threshold, as a trained model has
        wrapper = build_optim_wrapper(model.to(device), cfg.optim_wrapper)
    return cfg, model, wrapper


def batch_of(height: int, width: int, count: int) -> dict[str, list[Any]]:
    """Pictures of noise with objects, as a data loader gives them."""
    from mmdet.structures import DetDataSample  # mmdet is imported after its operators are there
    from mmdet.structures.bbox import HorizontalBoxes
    from mmdet.structures.mask import PolygonMasks

    generator = np.random.default_rng(0)
    samples = []
    for _ in range(count):
        corners = generator.uniform(0, 0.6, (OBJECTS, 2))
        boxes = np.concatenate([corners, corners + generator.uniform(0.05, 0.35, (OBJECTS, 2))], 1) * np.array(
            [width, height] * 2
        )
        polygons = [[np.array([x1, y1, x2, y1, x2, y2, x1, y2])] for x1, y1, x2, y2 in boxes]
        factors = (width / TESTED_SIZE[1], height / TESTED_SIZE[0])
        sample = DetDataSample(
            metainfo={"img_shape": (height, width), "ori_shape": TESTED_SIZE, "scale_factor": factors, "img_id": 0}
        )
        sample.gt_instances = InstanceData(
            bboxes=HorizontalBoxes(boxes.astype(np.float32)),
            labels=torch.arange(OBJECTS),
            masks=PolygonMasks(polygons, height, width),
        )
        samples.append(sample)
    pictures = [torch.from_numpy(generator.integers(0, 256, (3, height, width), dtype=np.uint8)) for _ in range(count)]
    return {"inputs": pictures, "data_samples": samples}


def synchronize(device: str) -> None:
    """Waits for a GPU."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def seconds(step: Callable[[], Any], device: str, steps: int) -> float:
    """Median of ``steps`` after one that warms up."""
    times = []
    for _ in range(steps + 1):
        synchronize(device)
        begun = time.perf_counter()
        step()
        synchronize(device)
        times.append(time.perf_counter() - begun)
    return statistics.median(times[1:])


def parts(model: BaseModel, wrapper: OptimWrapper, step: Callable[[], Any], device: str) -> dict[str, float]:
    """Seconds of the parts of one training step, in their order."""
    spent: dict[str, float] = {}
    places = (
        (model.backbone, "forward"),
        (model.neck, "forward"),
        (model.rpn_head, "loss_and_predict"),
        (model.roi_head, "loss"),
    )
    names = ("backbone", "pyramid", "RPN", "heads")

    def timed(call: Callable[..., Any], name: str) -> Callable[..., Any]:
        def measured(*arguments: Any, **named: Any) -> Any:
            synchronize(device)
            begun = time.perf_counter()
            result = call(*arguments, **named)
            synchronize(device)
            spent[name] = time.perf_counter() - begun
            return result

        return measured

    for (owner, attribute), name in zip(places, names, strict=True):
        setattr(owner, attribute, timed(getattr(owner, attribute), name))
    wrapper.update_params = timed(wrapper.update_params, "backward and step")
    step()
    for owner, attribute in (*places, (wrapper, "update_params")):
        delattr(owner, attribute)  # the class's own shows again
    return spent


def matmul_rate(device: str, precision: str) -> float:
    """FLOP/s of a large matrix product."""
    side = 8192 if device.startswith("cuda") else 1024
    matrix = torch.randn(side, side, device=device, dtype=getattr(torch, DTYPES.get(precision, "float32")))
    return 2 * side**3 / seconds(lambda: matrix @ matrix, device, 5)


def main(argv: list[str] | None = None) -> int:
    """The command; returns the exit status (0, or 2 on bad input)."""
    parser = argparse.ArgumentParser(
        prog="python -m evaluate.mm.benchmark",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--recipe", default="mask_rcnn_vitdet_100ep_coco", help="a detector of mm_configs/ for ViTs (default: ViTDet's)"
    )
    parser.add_argument("--size", choices=SIZES, default="vit_base", help="default: vit_base")
    parser.add_argument(
        "--batch", type=int, default=1, help="images a step (default: 1, as detectron2 on each of its GPUs)"
    )
    parser.add_argument("--steps", type=int, default=5, help="timed steps, of which the median is taken (default: 5)")
    devices.add_option(parser)
    arguments = parser.parse_args(argv)
    try:
        device = devices.resolve_device(arguments.device)
        report(arguments.recipe, arguments.size, arguments.batch, arguments.steps, device)
    except (UserError, ValueError) as error:
        print(f"evaluate.mm.benchmark: {error}", file=sys.stderr)
        return 2
    return 0


def report(recipe: str, size: str, batch: int, steps: int, device: str) -> None:
    """Prints the seconds of a training step and of its parts, of a test, and detectron2's beside them."""
    precision = resolve("auto", device)
    cfg, model, wrapper = build(recipe, size, device, precision)
    side = cfg.image_size
    data, tested = batch_of(side, side, batch), batch_of(side * TESTED_SIZE[0] // TESTED_SIZE[1], side, batch)
    model.train()
    training = seconds(lambda: model.train_step(data, wrapper), device, steps) / batch
    spent = parts(model, wrapper, lambda: model.train_step(data, wrapper), device)
    model.eval()
    with torch.no_grad():
        testing = seconds(lambda: model.test_step(tested), device, steps) / batch
        detections = len(model.test_step(tested)[0].pred_instances)
    rate = matmul_rate(device, precision)
    print(
        f"{recipe}, {size}, {cfg.image_size} pixels, {batch} images a step, {device}, {precision}, "
        f"matrix product {rate / 1e12:.3g} TFLOP/s"
    )
    recorded = DETECTRON2.get((recipe, size))
    for name, value, index in (("training", training, 0), ("testing", testing, 1)):
        line = f"{name}: {value:.3g} s an image"
        if recorded:
            line += (
                f"; detectron2 on an A100 {recorded[index]}, scaled to here {recorded[index] * A100_FLOPS / rate:.3g}"
            )
        print(line)
    print("a training step: " + ", ".join(f"{name} {value / batch:.3g} s" for name, value in spent.items()))
    print(f"detections of a tested image: {detections}")
    if device.startswith("cuda"):
        print(f"peak memory {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB")


if __name__ == "__main__":
    leave(main)
