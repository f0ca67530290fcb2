"""Nothing is compiled: the two operators that the recipes need are torchvision's and right; there are no others."""

import contextlib
import importlib
import importlib.util
import inspect
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import mmcv
import numpy as np
import pytest
import torch
import torchvision
from torch import Tensor

from evaluate.mm import benchmark, detector, frozen, operators, recipes, runner, segmenter
from evaluate.mm.parity.__main__ import compare
from evaluate.runtime.errors import UserError
from tests.factories import encoder_for, shrink

ROOT = Path(__file__).parents[2]
RECIPES = sorted(path.stem for path in recipes.RECIPES.glob("[!_]*.py"))
TWO = {"nms", "roi_align_forward", "roi_align_backward"}  # RoIAlign has two directions


@pytest.fixture
def touched(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The names of the operators that are called from here on, also of those that are not there and raise."""
    names: set[str] = set()
    module = sys.modules[operators.NAME]

    def noted(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def noting(*arguments: Any, **named: Any) -> Any:
            names.add(name)
            return call(*arguments, **named)

        return noting

    refused = operators.Operators.__getattr__
    monkeypatch.setattr(operators.Operators, "__getattr__", lambda self, name: noted(name, refused(self, name)))
    for operator in operators.PROVIDED:
        monkeypatch.setattr(module, operator.__name__, noted(operator.__name__, operator))
    return names


def trained_and_tested(name: str) -> None:
    """One step of training and one of testing of a recipe's model, on noise of 96 pixels."""
    from mmengine.optim import build_optim_wrapper
    from mmengine.registry import MODELS, DefaultScope
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample

    cfg, encoder = recipes.read_recipe(name), encoder_for(name)
    if cfg.default_scope == "mmdet":
        detector.fill_encoder(cfg, encoder)
        if "mask_head" in cfg.model.roi_head:
            detector.fill_classes(cfg, [1] * 8)
        shrink(cfg)
        data = benchmark.batch_of(96, 96, 2)
    else:
        (frozen if name.startswith("linear") else segmenter).fill_encoder(cfg, encoder)
        cfg.model.decode_head.num_classes = 8
        if name.startswith("upernet"):
            cfg.model.decode_head.channels = 16
            cfg.model.auxiliary_head.update(num_classes=8, channels=16)
        cfg.model.data_preprocessor.size = (96, 96)
        if "img_size" in cfg.model.backbone:
            cfg.model.backbone.img_size = (96, 96)
        cfg.model.test_cfg.update(crop_size=(96, 96), stride=(96, 96))
        labels = PixelData(data=torch.randint(0, 8, (1, 96, 96)))
        samples = [
            SegDataSample(gt_sem_seg=labels, metainfo={"img_shape": (96, 96), "ori_shape": (96, 96)}) for _ in range(2)
        ]
        data = {"inputs": [torch.randint(0, 256, (3, 96, 96), dtype=torch.uint8)] * 2, "data_samples": samples}
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        torch.manual_seed(0)
        model = MODELS.build(cfg.model)
        model.init_weights()
        runner.load_encoder(model, encoder)
        model.train()
        model.train_step(data, build_optim_wrapper(model, cfg.optim_wrapper))
        model.eval()
        with torch.no_grad():
            assert len(model.test_step(data)) == 2


@pytest.mark.parametrize("name", RECIPES)
def test_the_operators_that_a_recipe_touches(name: str, touched: set[str]) -> None:
    trained_and_tested(name)
    assert touched == (set() if name.endswith("ade20k") else TWO)


def test_another_operator_is_one_sentence_with_its_name(touched: set[str]) -> None:
    from mmcv.ops import DeformConv2d, batched_nms

    message = r"mmcv's operator softnms is not available: only nms and roi_align are, from torchvision "
    message += r"[^.]*\.py\), [^.\n]*$"
    with pytest.raises(UserError, match=message):
        batched_nms(
            torch.tensor([[0.0, 0.0, 4.0, 4.0]]),
            torch.ones(1),
            torch.zeros(1),
            {"type": "soft_nms", "iou_threshold": 0.5},
        )
    with pytest.raises(UserError, match="deform_conv_forward"):
        DeformConv2d(2, 2, 3)(torch.ones(1, 2, 8, 8), torch.zeros(1, 18, 6, 6))
    assert touched == {"softnms", "deform_conv_forward"}, "the lists of the recipes' operators would miss some"


def test_what_torchvision_does_not_do_is_refused() -> None:
    from mmcv.ops import nms, roi_align

    with pytest.raises(UserError, match="offset 1, but torchvision's nms supports only offset 0; set offset=0"):
        nms(torch.tensor([[0.0, 0.0, 4.0, 4.0]]), torch.ones(1), 0.5, offset=1)
    with pytest.raises(UserError, match="supports only average pooling; set pool_mode='avg'"):
        roi_align(torch.ones(1, 1, 4, 4), torch.tensor([[0.0, 0.0, 0.0, 4.0, 4.0]]), (2, 2), 1.0, 0, "max", True)


def test_mmcv_carries_no_compiled_extension() -> None:
    folder = Path(mmcv.__file__).parent
    assert [
        str(path) for pattern in ("_ext*", "**/*.so", "**/*.pyd", "**/*.dylib") for path in folder.glob(pattern)
    ] == []
    importlib.import_module("mmcv.ops")
    assert (
        sys.modules["mmcv.ops.nms"].ext_module
        is sys.modules["mmcv.ops.roi_align"].ext_module
        is sys.modules[operators.NAME]
    )


def test_the_module_answers_like_any_other() -> None:
    """hasattr is true of every operator, and of nothing that Python itself asks of a module."""
    module = sys.modules[operators.NAME]
    operators.provide()
    assert sys.modules[operators.NAME] is module, "modules of mmcv.ops hold the first"
    assert hasattr(module, "carafe_forward") and not any(
        hasattr(module, name) for name in ("__file__", "__path__", "__wrapped__", "_private")
    )
    assert inspect.getmodule(operators.nms) is operators and "_ext" in repr(module)
    assert importlib.util.find_spec(operators.NAME).name == operators.NAME
    with pytest.raises(TypeError, match="pickle"):
        module.__reduce_ex__(4)


def test_ours_replace_compiled_operators_or_say_that_it_is_too_late(monkeypatch: pytest.MonkeyPatch) -> None:
    importlib.import_module("mmcv.ops")
    compiled = ModuleType(operators.NAME)
    monkeypatch.setitem(sys.modules, operators.NAME, compiled)
    with pytest.raises(UserError, match=r"call evaluate\.mm\.operators\.provide\(\) before"):
        operators.provide()
    monkeypatch.delitem(sys.modules, "mmcv.ops")
    operators.provide()
    assert isinstance(sys.modules[operators.NAME], operators.Operators)


ENTRIES = {  # all else that imports mmcv.ops comes by one of these
    "packages": lambda folder: recipes.require_packages(),
    "recipe": lambda folder: recipes.read_recipe("none"),
    "parity": lambda folder: compare(folder / "none.json"),
}


@pytest.mark.parametrize("entry", ENTRIES.values(), ids=ENTRIES)
def test_every_entry_provides_the_operators(
    entry: Callable[[Path], Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delitem(sys.modules, operators.NAME)
    monkeypatch.delitem(sys.modules, "mmcv.ops", raising=False)
    with contextlib.suppress(UserError):
        entry(tmp_path)
    assert isinstance(sys.modules.get(operators.NAME), operators.Operators)


def test_a_recipe_is_read_in_a_fresh_process() -> None:
    code = "import sys; from evaluate.mm import recipes; assert 'mmcv' not in sys.modules; "
    code += "cfg = recipes.read_recipe('mask_rcnn_vitdet_demo_coco'); "
    code += "cfg.model.roi_head.bbox_roi_extractor.roi_layer.type; print(sys.modules['mmcv.ops.nms'].ext_module.nms)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "function nms" in done.stdout, done.stderr


def test_help_leaves_operators_and_mm_alone() -> None:
    code = (
        "import sys; from evaluate.harness import task\n"
        "for name in ('detection', 'segmentation'):\n"
        "    try: task.main(name, ['--help'])\n"
        "    except SystemExit: pass\n"
        "absent = ('torchvision', 'mmengine', 'mmcv', 'mmdet', 'mmseg')\n"
        "print([m for m in sys.modules if m.split('.')[0] in absent or m == 'evaluate.mm.operators'])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.count("usage") == 2 and done.stdout.splitlines()[-1] == "[]"


def bilinear(image: Tensor, y: float, x: float) -> Tensor:
    """The value (C,) of a map (C, H, W) between its pixels; none further than one pixel outside."""
    height, width = image.shape[1:]
    if not (-1 <= y <= height and -1 <= x <= width):
        return torch.zeros_like(image[:, 0, 0])
    y, x = min(max(y, 0.0), height - 1.0), min(max(x, 0.0), width - 1.0)
    top, left = int(y), int(x)
    bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
    upper = image[:, top, left] * (1 - (x - left)) + image[:, top, right] * (x - left)
    lower = image[:, bottom, left] * (1 - (x - left)) + image[:, bottom, right] * (x - left)
    return upper * (1 - (y - top)) + lower * (y - top)


def roi_align_by_loops(
    images: Tensor, regions: Tensor, size: tuple[int, int], scale: float, ratio: int, aligned: bool
) -> Tensor:
    """Mask R-CNN's RoIAlign (arXiv 1703.06870), a sample at a time: (K, C, h, w)."""
    output = []
    for index, *box in regions.tolist():
        x1, y1, x2, y2 = (edge * scale - (0.5 if aligned else 0.0) for edge in box)
        width, height = (x2 - x1, y2 - y1) if aligned else (max(x2 - x1, 1.0), max(y2 - y1, 1.0))
        bin_height, bin_width = height / size[0], width / size[1]
        rows, columns = (ratio, ratio) if ratio else (math.ceil(bin_height), math.ceil(bin_width))
        for i in range(size[0]):
            for j in range(size[1]):
                total = torch.zeros_like(images[0, :, 0, 0])
                for row in range(rows):
                    for column in range(columns):
                        y, x = (
                            y1 + (i + (row + 0.5) / rows) * bin_height,
                            x1 + (j + (column + 0.5) / columns) * bin_width,
                        )
                        total = total + bilinear(images[int(index)], y, x)
                output.append(total / max(rows * columns, 1))
    return torch.stack(output).reshape(len(regions), *size, -1).permute(0, 3, 1, 2)


REGIONS = torch.tensor(
    [  # index of the image, corners; maps are 9 by 7 at half of the pixels
        [0, 1.0, 2.0, 11.3, 9.7],
        [1, 0.2, 0.4, 2.9, 17.1],
        [1, -6.0, -7.5, 5.0, 4.0],
        [0, 8.0, 9.0, 30.0, 41.0],
        [1, 6.0, 6.0, 6.0, 6.0],
        [0, 3, 3, 3.4, 3.2],
    ],
    dtype=torch.float64,
)


@pytest.mark.parametrize("ratio", [0, 2])
@pytest.mark.parametrize("aligned", [False, True])
def test_roi_align_equals_a_loop(aligned: bool, ratio: int) -> None:
    from mmcv.ops import roi_align

    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, 3, 9, 7, generator=generator, dtype=torch.float64, requires_grad=True)
    expected = roi_align_by_loops(images, REGIONS, (3, 2), 0.5, ratio, aligned)
    found = roi_align(images, REGIONS, (3, 2), 0.5, ratio, "avg", aligned)
    weights = torch.randn(expected.shape, generator=generator, dtype=torch.float64)
    slopes = [torch.autograd.grad((values * weights).sum(), images)[0] for values in (expected, found)]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(slopes[1], slopes[0], rtol=0, atol=1e-12)
    assert expected[:2].abs().min() > 1e-6 and (slopes[0] == 0).any() and slopes[0].abs().sum((1, 2, 3)).min() > 1
    single = roi_align(images.float(), REGIONS.float(), (3, 2), 0.5, ratio, "avg", aligned)
    assert single.dtype == torch.float32 and (single - expected).abs().max() < 1e-5


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("autocast", [False, True])
def test_roi_align_of_short_types_computes_in_float32(dtype: torch.dtype, autocast: bool) -> None:
    """A training in mixed precision calls it forwards under autocast and backwards outside."""
    from mmcv.ops import roi_align

    images = torch.randn(1, 2, 9, 7, generator=torch.Generator().manual_seed(0)).to(dtype)
    regions = torch.tensor([[0, 1.0, 1.0, 6.0, 7.0]] * 50, dtype=dtype)  # the gradients of many regions meet in a pixel
    results = []
    for kind in (dtype, torch.float32):
        leaf = images.to(kind).requires_grad_()
        with torch.autocast("cpu", dtype, enabled=autocast and kind is dtype):
            values = roi_align(leaf, regions.to(kind), (3, 2), 1.0, 0, "avg", True)
        (slope,) = torch.autograd.grad(values.float().square().sum(), leaf, retain_graph=False)
        results.append((values, slope))
    (short, short_slope), (full, full_slope) = results
    assert short.dtype == short_slope.dtype == dtype and torch.equal(short, full.to(dtype))
    # the gradient comes in rounded, and is rounded once more
    assert (short_slope.float() - full_slope).abs().max() <= 2 * torch.finfo(dtype).eps * full_slope.abs().max()


def nms_by_loops(boxes: Tensor, scores: Tensor, threshold: float) -> list[int]:
    """Greedy suppression, a box at a time; of equal scores the earlier box comes first."""
    kept: list[int] = []
    for index in sorted(range(len(boxes)), key=lambda k: -float(scores[k])):
        for other in kept:
            a, b = boxes[index].tolist(), boxes[other].tolist()
            shared = max(min(a[2], b[2]) - max(a[0], b[0]), 0) * max(min(a[3], b[3]) - max(a[1], b[1]), 0)
            if shared > threshold * ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared):
                break
        else:
            kept.append(index)
    return kept


def drawn(seed: int, ties: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes (80, 4), scores (80,), many of them equal if ``ties``, classes (80,)."""
    generator = np.random.default_rng(seed)
    corners = generator.uniform(0, 10, (80, 2))
    boxes = torch.tensor(np.concatenate([corners, corners + generator.uniform(4, 25, (80, 2))], 1), dtype=torch.float32)
    scores = torch.tensor(generator.permutation(80) // (20 if ties else 1) / 80, dtype=torch.float32)
    return boxes, scores, torch.tensor(generator.integers(0, 3, 80))


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.7])
def test_nms_equals_a_loop(threshold: float, ties: bool) -> None:
    from mmcv.ops import nms

    for seed in range(5):
        boxes, scores, _ = drawn(seed, ties)
        expected = nms_by_loops(boxes, scores, threshold)
        found, kept = nms(boxes, scores, iou_threshold=threshold)
        assert kept.tolist() == expected and 3 < len(expected) < 75
        assert torch.equal(found, torch.cat([boxes, scores[:, None]], 1)[expected])
    _, kept = nms(boxes, scores, iou_threshold=threshold, score_threshold=0.2, max_num=3)
    assert kept.tolist() == [k for k in expected if scores[k] > 0.2][:3]


def test_nms_keeps_an_overlap_of_exactly_the_threshold_and_the_earlier_of_equals() -> None:
    from mmcv.ops import nms

    half = torch.tensor([[0.0, 0.0, 4.0, 4.0], [0.0, 0.0, 4.0, 2.0]])
    assert nms(half, torch.tensor([0.1, 0.9]), 0.5)[1].tolist() == [1, 0] and nms(half, torch.tensor([0.1, 0.9]), 0.49)[
        1
    ].tolist() == [1]
    same = torch.tensor([[0.0, 0.0, 4.0, 4.0]]).expand(50, 4) + torch.arange(50)[:, None] // 10 * 100
    assert nms(same, torch.full((50,), 0.5), 0.5)[1].tolist() == [0, 10, 20, 30, 40]
    assert nms(same[:0], torch.zeros(0), 0.5)[1].tolist() == []


@pytest.mark.parametrize("ties", [False, True])
def test_nms_of_classes_equals_a_loop(ties: bool) -> None:
    """As mmdet calls it: classes are set far apart, or above ``split_thr`` boxes taken one by one."""
    from mmcv.ops import batched_nms

    for seed in range(5):
        boxes, scores, classes = drawn(seed, ties)
        members = [torch.nonzero(classes == k).flatten() for k in range(3)]
        kept = [int(part[index]) for part in members for index in nms_by_loops(boxes[part], scores[part], 0.5)]
        expected = sorted(kept, key=lambda k: (-float(scores[k]), k))
        for settings in ({}, {"split_thr": 10}):
            found, indices = batched_nms(boxes, scores, classes, {"type": "nms", "iou_threshold": 0.5, **settings})
            if ties and settings:  # mmcv sorts the classes' boxes together by a sort that may swap equals
                assert (
                    sorted(indices.tolist()) == sorted(expected) and found[:, 4].tolist() == scores[expected].tolist()
                )
            else:
                assert indices.tolist() == expected
            assert torch.equal(found[:, :4], boxes[indices])
        assert len(expected) > len(nms_by_loops(boxes, scores, 0.5)), "classes make no difference"


def test_both_operators_are_tried_on_the_device_before_a_training() -> None:
    assert operators.try_on("cpu") == f"torchvision {torchvision.__version__}"


def test_operators_that_fail_or_are_wrong_are_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_kernel(*_: object) -> None:
        raise RuntimeError("CUDA error: no kernel image is available for execution on the device\nmore")

    monkeypatch.setattr(torchvision.ops, "nms", no_kernel)
    with pytest.raises(UserError, match=r"do not work on cpu \(CUDA error: no kernel image[^\n]*\); install a torchv"):
        operators.try_on("cpu")
    monkeypatch.setattr(torchvision.ops, "nms", lambda *_: torch.tensor([0, 1, 2]))
    with pytest.raises(UserError, match=r"they gave \(\[0, 1, 2\]"):
        operators.try_on("cpu")
