"""The region heads do what detectron2's do: matching, cascade; and every kind of detector trains and is tested."""

import logging
import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from evaluate.mm import benchmark, detector, recipes, runner
from evaluate.mm.backbones.resnet import LastStage, ResNetBackbone
from evaluate.runtime.env import Env
from tests.factories import shrink, tiny_encoder, tiny_resnet


def boxes(count: int, generator: np.random.Generator) -> torch.Tensor:
    corners = generator.uniform(0, 40, (count, 2))
    return torch.tensor(
        np.concatenate([corners, corners + generator.uniform(4, 30, (count, 2))], 1), dtype=torch.float32
    )


def iou(a: list[float], b: list[float]) -> float:
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    shared = max(width, 0) * max(height, 0)
    return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)


@pytest.mark.parametrize("low_quality", [False, True])
def test_matching_equals_a_loop(low_quality: bool) -> None:
    from mmengine.structures import InstanceData

    from evaluate.mm.heads import Matcher

    generator = np.random.default_rng(0)
    regions, truth = boxes(200, generator), torch.cat([boxes(4, generator), torch.tensor([[20.0, 20.0, 21.0, 21.0]])])
    expected = []
    table = [[iou(t, r) for t in truth.tolist()] for r in regions.tolist()]
    highest = [max(row[k] for row in table) for k in range(len(truth))]
    for row in table:
        owner = int(np.argmax(row))
        best_of_some = low_quality and any(abs(row[k] - highest[k]) < 1e-6 for k in range(len(truth)))
        expected.append(owner + 1 if row[owner] >= 0.5 or best_of_some else 0 if row[owner] < 0.3 else -1)
    found = Matcher(0.5, 0.3, low_quality).assign(
        InstanceData(priors=regions), InstanceData(bboxes=truth, labels=torch.tensor([3, 1, 4, 1, 5]))
    )
    assert found.gt_inds.tolist() == expected and set(expected) >= {0, -1, 1}
    assert found.labels.tolist() == [[3, 1, 4, 1, 5][k - 1] if k > 0 else -1 for k in expected]
    nothing = Matcher(0.5, 0.3, low_quality).assign(
        InstanceData(priors=regions), InstanceData(bboxes=truth[:0], labels=torch.zeros(0, dtype=torch.long))
    )
    assert nothing.gt_inds.abs().sum() == 0


def test_an_object_smaller_than_all_anchors_is_learnt() -> None:
    """mmdet's own matcher asks for 0.3 of the best anchor too, which no anchor of 32 pixels has with 8 pixels."""
    from mmdet.models.task_modules.assigners import BboxOverlaps2D, MaxIoUAssigner
    from mmengine.structures import InstanceData

    from evaluate.mm.heads import Matcher

    anchors = InstanceData(priors=torch.tensor([[0.0, 0.0, 32.0, 32.0], [16.0, 0.0, 48.0, 32.0]]))
    truth = InstanceData(bboxes=torch.tensor([[4.0, 4.0, 12.0, 12.0]]), labels=torch.tensor([0]))
    assert Matcher(0.7, 0.3, True).assign(anchors, truth).gt_inds.tolist() == [1, 0]
    assert MaxIoUAssigner(0.7, 0.3, min_pos_iou=0.3, iou_calculator={"type": BboxOverlaps2D}).assign(
        anchors, truth
    ).gt_inds.tolist() == [0, 0]


@pytest.mark.parametrize(
    "recipe",
    [
        "cascade_mask_rcnn_vitdet_100ep_coco",
        "cascade_mask_rcnn_vitdet_100ep_lvis",
        "mask_rcnn_resnet_c4_1x_coco",
        "faster_rcnn_resnet_c4_24k_voc",
    ],
)
def test_a_detector_trains_and_is_tested(recipe: str, world: Path, tmp_path: Path) -> None:
    dataset = recipe.rpartition("_")[2]
    encoder = tiny_resnet() if "resnet" in recipe else tiny_encoder()
    env = Env(world, tmp_path, limit=4)
    cfg = recipes.read_recipe(recipe)
    detector.fill_encoder(cfg, encoder)
    recipes.shorten(cfg, 2, 2, None)
    asked = detector.fill_data(cfg, dataset, env)
    shrink(cfg)
    metrics = runner.train_and_test(cfg, dataset, encoder, env)
    assert metrics.pop("images") == asked == 4
    assert all(0 <= value <= 100 for value in metrics.values()) and ("mask_ap" in metrics) == (dataset != "voc")
    log = (tmp_path / f"{dataset}.log").read_text()
    if "cascade" in recipe:
        assert all(f"s{stage}.loss_cls" in log for stage in range(3)) and "s1.loss_mask" not in log
    if "c4" in recipe:
        assert "norms anew" in log


@pytest.fixture
def cascade():
    """A cascade's head over one map of 4 channels, whose class scores are given."""
    import mmdet.models  # noqa: F401
    from mmengine.registry import MODELS, DefaultScope

    head = recipes.read_recipe("cascade_mask_rcnn_vitdet_100ep_coco").model.roi_head
    settings = recipes.read_recipe("cascade_mask_rcnn_vitdet_100ep_coco").model
    head.bbox_roi_extractor.update(out_channels=4, featmap_strides=[4])
    head.mask_roi_extractor.update(out_channels=4, featmap_strides=[4])
    head.bbox_head.update(num_classes=3, in_channels=4, conv_out_channels=4, fc_out_channels=8)
    head.mask_head.update(num_classes=3, in_channels=4, conv_out_channels=4)
    with DefaultScope.overwrite_default_scope("mmdet"):
        torch.manual_seed(0)
        return MODELS.build({**head, "train_cfg": settings.train_cfg.rcnn, "test_cfg": settings.test_cfg.rcnn})


def test_the_cascade_averages_probabilities_and_takes_the_last_boxes(cascade) -> None:
    from mmengine.structures import InstanceData

    logits = torch.tensor([[[9.0, 0.0, 0.0, 0.0]], [[0.0, 3.0, 0.0, 0.0]], [[0.0, 3.0, 0.0, 0.0]]])
    calls = iter(logits)
    # each stage moves the box by a tenth of its width to the right, in its own unit
    moves = iter([0.1 / cascade.bbox_head[stage].bbox_coder.stds[0] for stage in range(3)])
    cascade.stage = lambda head, x, rois: (next(calls), torch.tensor([[next(moves), 0.0, 0.0, 0.0]]))
    cascade.test_cfg.update(score_thr=0.0)
    meta = {"img_shape": (64, 64), "scale_factor": (2.0, 2.0)}
    found = cascade.predict_bbox(
        (), [meta], [InstanceData(bboxes=torch.tensor([[10.0, 10.0, 20.0, 20.0]]))], cascade.test_cfg, True
    )[0]
    mean = logits.softmax(-1).mean(0)[0, :3]
    assert found.scores.tolist() == pytest.approx(sorted(mean.tolist(), reverse=True))
    assert found.labels[0] == mean.argmax() == 1, "the logits' mean would be the first class"
    assert found.bboxes[0].tolist() == pytest.approx([6.5, 5.0, 11.5, 10.0], abs=1e-4)


def test_the_cascade_shares_its_gradient_among_the_stages(cascade) -> None:
    features = torch.randn(1, 4, 16, 16, requires_grad=True)
    rois = torch.tensor([[0.0, 4.0, 4.0, 40.0, 40.0]])
    scores, _ = cascade.stage(cascade.bbox_head[0], (features,), rois)
    (shared,) = torch.autograd.grad(scores.sum(), features)
    plain, _ = cascade.bbox_head[0](cascade.bbox_roi_extractor((features,), rois))
    (whole,) = torch.autograd.grad(plain.sum(), features)
    assert torch.equal(scores, plain) and torch.allclose(3 * shared, whole, atol=1e-6) and whole.abs().sum() > 0


def test_new_layers_begin_as_detectron2s(cascade) -> None:
    cascade.init_weights()
    assert float(cascade.mask_head.conv_logits.weight.detach().std()) == pytest.approx(0.001, rel=0.6)
    fc = cascade.bbox_head[1].shared_fcs[0]
    limit = (3 / fc.in_features) ** 0.5
    assert float(fc.weight.detach().abs().max()) == pytest.approx(limit, rel=0.02) and not fc.bias.any()


def test_the_last_stage_is_the_encoders() -> None:
    encoder = tiny_resnet()
    state, images = encoder.model.state_dict(), torch.randn(2, 3, 64, 64)
    arguments = ResNetBackbone.arguments(encoder.spec, state)
    backbone, last = ResNetBackbone(**arguments, c4=True).eval(), LastStage(**arguments).eval()
    backbone.load(encoder.spec, state)
    last.load(encoder.spec, state)
    with torch.no_grad():
        expected = encoder.eval().forward_blocks(images, 1)[-1].map
        (before,) = backbone(images)
        assert before.shape == (2, 256, 4, 4)
        # a fresh BatchNorm in test mode divides by the root of 1 + eps
        assert torch.allclose(last(before), expected / (1 + last.norm.eps) ** 0.5, atol=1e-5)
    with pytest.raises(ValueError, match="layer4.0.strange|0.strange"):
        last.load(encoder.spec, {**state, "layer4.0.strange": torch.zeros(1)})


def test_the_benchmark_measures_every_part(capsys: pytest.CaptureFixture[str]) -> None:
    command = [
        "--size",
        "tiny",
        "--recipe",
        "mask_rcnn_vitdet_demo_coco",
        "--device",
        "cpu",
        "--steps",
        "1",
        "--batch",
        "2",
    ]
    assert benchmark.main(command) == 0
    text = capsys.readouterr().out
    assert all(f"{name}: " in text for name in ("training", "testing")) and "pixels, 2 images" in text
    spent = [float(value) for value in re.findall(r"(?:backbone|pyramid|RPN|heads|backward and step) (\S+) s", text)]
    assert len(spent) == 5 and 0 < sum(spent) and "detections of a tested image: 20" in text
    assert benchmark.main([*command[:3], "mask_rcnn_resnet_c4_1x_coco"]) == 2
    assert "not for a vit encoder" in capsys.readouterr().err


def test_precise_statistics_are_the_batches_average() -> None:
    from evaluate.mm.hooks import PreciseBN

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = torch.nn.BatchNorm2d(3, momentum=0.1)

        def data_preprocessor(self, batch: torch.Tensor, training: bool) -> dict:
            return {"inputs": batch}

        def forward(self, inputs: torch.Tensor, mode: str) -> torch.Tensor:
            assert mode == "loss" and not torch.is_grad_enabled()
            return self.norm(inputs)

    class Loader(list):
        skipped = None
        sampler = SimpleNamespace(skip=lambda count: setattr(Loader, "skipped", count))

        def __iter__(self) -> Iterator[torch.Tensor]:
            torch.rand(1)  # as a data loader's iterator does
            return super().__iter__()

    batches = Loader(scale * torch.randn(2, 3, 5, 5) + scale for scale in (1.0, 2.0, 3.0, 50.0))
    model, random = Model(), torch.get_rng_state()
    PreciseBN(3).after_train(
        SimpleNamespace(model=model, train_dataloader=batches, logger=logging.getLogger("precise"))
    )
    assert Loader.skipped == 0, "a resumed training would take other batches"
    assert torch.equal(torch.get_rng_state(), random), "proposals would follow from the kind of loader"
    means, variances = (
        [f(batch.transpose(0, 1).flatten(1), 1) for batch in batches[:3]] for f in (torch.mean, torch.var)
    )
    assert torch.allclose(model.norm.running_mean, torch.stack(means).mean(0), atol=1e-5)
    assert torch.allclose(model.norm.running_var, torch.stack(variances).mean(0), atol=1e-4)
    assert model.norm.momentum == 0.1 and torch.equal(model.norm.weight, torch.ones(3))
