"""The region heads where detectron2 and mmdet differ: matching, the start of the mask predictor, and the cascade.

Axes: N regions of all images of a batch, K classes. Boxes are x1, y1, x2, y2 in pixels of the network's input.
"""

from typing import Any

import torch
from mmdet.models.layers import multiclass_nms
from mmdet.models.roi_heads import StandardRoIHead
from mmdet.models.roi_heads.bbox_heads import BBoxHead
from mmdet.models.roi_heads.mask_heads import FCNMaskHead
from mmdet.models.task_modules.assigners import AssignResult, BboxOverlaps2D
from mmdet.models.task_modules.samplers import SamplingResult
from mmdet.models.utils import empty_instances, unpack_gt_instances
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import bbox2roi, scale_boxes
from mmengine.config import ConfigDict
from mmengine.model import ModuleList
from mmengine.structures import InstanceData
from torch import Tensor, nn


class Matcher:
    """Which true box a region belongs to, by detectron2's rule.

    Positive from ``positive`` IoU on, negative below ``negative``, ignored in between. With ``low_quality`` the best
    regions of each true box are positive too, however bad, and still belong to the box that they overlap most. mmdet's
    own assigner asks 0.3 of these (objects much smaller than the smallest anchor then have none) and gives them to the
    other box.
    """

    def __init__(self, positive: float, negative: float, low_quality: bool) -> None:
        self.positive, self.negative, self.low_quality = positive, negative, low_quality
        self.overlaps = BboxOverlaps2D()

    def assign(
        self, pred_instances: InstanceData, gt_instances: InstanceData, gt_instances_ignore: InstanceData | None = None
    ) -> AssignResult:
        """The regions' true boxes in mmdet's form: 0 negative, -1 ignored, i + 1 the true box i."""
        regions, boxes, labels = pred_instances.priors, gt_instances.bboxes, gt_instances.labels
        if len(boxes) == 0 or len(regions) == 0:
            none = torch.zeros(len(regions), dtype=torch.long, device=regions.device)
            return AssignResult(len(boxes), none, none.float(), none - 1)
        overlaps = self.overlaps(boxes, regions)
        best, owner = overlaps.max(0)
        positive = best >= self.positive
        if self.low_quality:
            highest = overlaps.max(1, keepdim=True).values
            positive |= ((overlaps == highest) & (highest > 0)).any(0)
        kept = torch.where(positive, owner + 1, torch.where(best < self.negative, 0, -1))
        return AssignResult(len(boxes), kept, best, torch.where(positive, labels[owner], -1))


class MaskHead(FCNMaskHead):
    """mmdet's mask head, but the last layer begins with a standard deviation of 0.001, as detectron2's does."""

    def init_weights(self) -> None:
        super().init_weights()
        nn.init.normal_(self.conv_logits.weight, std=0.001)


STAGE_STDS = (
    (0.1, 0.1, 0.2, 0.2),
    (0.05, 0.05, 0.1, 0.1),
    (1 / 30, 1 / 30, 1 / 15, 1 / 15),
)  # of the box deltas, stage by stage
LATER_IOUS = (0.6, 0.7)  # from which a region is positive in the second and third stage


class CascadeRoIHead(StandardRoIHead):
    """Cascade R-CNN (arXiv 1712.00726) as detectron2 does it; mmdet's differs in every point named here.

    Regions are sampled once and later stages take all of them, matched anew. The losses of the stages count alike and
    their gradient reaches the features by one part in the number of stages. One mask head learns from the first stage's
    regions. In testing the stages' probabilities, not their logits, are averaged.

    Args:
        bbox_head: of a plain detector; each stage has one like it, class-agnostic and with deltas of its own scale.
    """

    def init_bbox_head(self, bbox_roi_extractor: dict[str, Any], bbox_head: dict[str, Any]) -> None:
        """Called by mmdet's constructor."""
        self.bbox_roi_extractor = MODELS.build(bbox_roi_extractor)
        coders = [{**bbox_head["bbox_coder"], "target_stds": stds} for stds in STAGE_STDS]
        stages = [{**bbox_head, "reg_class_agnostic": True, "bbox_coder": coder} for coder in coders]
        # mmengine's list: torch's would not pass on init_weights
        self.bbox_head = ModuleList(MODELS.build(stage) for stage in stages)

    def init_assigner_sampler(self) -> None:
        """Called by mmdet's constructor."""
        super().init_assigner_sampler()
        self.later_assigners = [Matcher(iou, iou, low_quality=False) for iou in LATER_IOUS]

    def loss(
        self, x: tuple[Tensor], rpn_results_list: list[InstanceData], batch_data_samples: list[DetDataSample]
    ) -> dict[str, Tensor]:
        """The losses by name, ``s0.``, ``s1.`` … before those of a stage."""
        truths, _, metas = unpack_gt_instances(batch_data_samples)
        proposals = [InstanceData(priors=result.bboxes) for result in rpn_results_list]
        samples = first = [
            self.bbox_sampler.sample(self.bbox_assigner.assign(regions, truth), regions, truth)
            for regions, truth in zip(proposals, truths, strict=True)
        ]
        losses: dict[str, Tensor] = {}
        refined: list[Tensor] = []
        for stage, head in enumerate(self.bbox_head):
            if stage:
                samples = [
                    match_all(boxes[_is_box(boxes)], truth, self.later_assigners[stage - 1])
                    for boxes, truth in zip(refined, truths, strict=True)
                ]
            rois = bbox2roi([sample.priors for sample in samples])
            scores, deltas = self.stage(head, x, rois)
            result = head.loss_and_target(scores, deltas, rois, samples, self.train_cfg)
            losses.update({f"s{stage}.{name}": value for name, value in result["loss_bbox"].items()})
            refined = self.refine(head, rois, deltas.detach(), metas)
        return {**losses, **self.mask_loss(x, first, None, truths)["loss_mask"]}

    def stage(self, head: BBoxHead, x: tuple[Tensor], rois: Tensor) -> tuple[Tensor, Tensor]:
        """Class scores (N, K + 1) and box deltas (N, 4) of one stage."""
        features = self.bbox_roi_extractor(x[: self.bbox_roi_extractor.num_inputs], rois)
        # the value of the features, and a part of their gradient
        features = torch.lerp(features.detach(), features, 1 / len(self.bbox_head))
        return head(features)

    def refine(self, head: BBoxHead, rois: Tensor, deltas: Tensor, metas: list[dict[str, Any]]) -> list[Tensor]:
        """Each image's boxes moved by the deltas and cut to the image."""
        parts = [rois[:, 0] == index for index in range(len(metas))]
        return [
            head.bbox_coder.decode(rois[part, 1:], deltas[part], max_shape=meta["img_shape"])
            for part, meta in zip(parts, metas, strict=True)
        ]

    def predict_bbox(
        self,
        x: tuple[Tensor],
        batch_img_metas: list[dict[str, Any]],
        rpn_results_list: list[InstanceData],
        rcnn_test_cfg: ConfigDict,
        rescale: bool = False,
    ) -> list[InstanceData]:
        """Each image's ``bboxes``, ``scores`` and ``labels``."""
        boxes = [result.bboxes for result in rpn_results_list]
        counts = [len(part) for part in boxes]
        if not sum(counts):
            return empty_instances(
                batch_img_metas, boxes[0].device, task_type="bbox", num_classes=self.bbox_head[0].num_classes
            )
        mean = torch.zeros((), device=boxes[0].device)
        for head in self.bbox_head:
            rois = bbox2roi(boxes)
            scores, deltas = self.stage(head, x, rois)
            mean = mean + (
                head.loss_cls.get_activation(scores) if head.custom_activation else scores.softmax(-1)
            ) / len(self.bbox_head)
            boxes = self.refine(head, rois, deltas, batch_img_metas)
        results = []
        for refined, scores, meta in zip(boxes, mean.split(counts), batch_img_metas, strict=True):
            if rescale:
                refined = scale_boxes(refined, [1 / factor for factor in meta["scale_factor"]])
            kept, labels = multiclass_nms(
                refined, scores, rcnn_test_cfg.score_thr, rcnn_test_cfg.nms, rcnn_test_cfg.max_per_img
            )
            results.append(InstanceData(bboxes=kept[:, :4], scores=kept[:, 4], labels=labels))
        return results


def _is_box(boxes: Tensor) -> Tensor:
    """Whether a box has an area, (N,)."""
    return (boxes[:, 2:] > boxes[:, :2]).all(1)


def match_all(boxes: Tensor, truth: InstanceData, matcher: Matcher) -> SamplingResult:
    """All boxes matched to the true ones, as a sampler that leaves none out would give them."""
    matched = matcher.assign(InstanceData(priors=boxes), truth)
    positive, negative = (torch.nonzero(part).flatten() for part in (matched.gt_inds > 0, matched.gt_inds == 0))
    return SamplingResult(
        positive, negative, boxes, truth.bboxes, matched, boxes.new_zeros(len(boxes), dtype=torch.uint8)
    )
