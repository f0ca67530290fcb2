"""The columns of the table: heading, node of ``evaluate.harness.plan`` that fills it, and metric of its record."""

from collections.abc import Iterable, Mapping
from typing import Any

Column = tuple[str, str, str]
COLUMNS = (  # heading, node, metric: the paper's order, then kNN
    ("FT", "finetune", "top1"),
    ("LIN", "linear_probe", "top1"),
    ("1%", "few_shot", "top1"),
    ("COCO box", "detection_coco", "box_ap"),
    ("COCO mask", "detection_coco", "mask_ap"),
    ("ADE20k mIoU", "segmentation", "miou"),
    ("LVIS box", "detection_lvis", "box_ap"),
    ("LVIS box rare", "detection_lvis", "box_ap_rare"),
    ("LVIS mask", "detection_lvis", "mask_ap"),
    ("LVIS mask rare", "detection_lvis", "mask_ap_rare"),
    ("IN-A", "robustness", "imagenet_a_top1"),
    ("IN-R", "robustness", "imagenet_r_top1"),
    ("IN-Sketch", "robustness", "imagenet_sketch_top1"),
    ("IN-C", "robustness", "imagenet_c"),
    ("kNN", "knn", "top1"),
)
EXTRA_COLUMNS = (  # shown where there is a record; protocols of their own, or metrics that the paper lacks
    ("LIN fast", "linear_fast", "top1"),
    ("LIN sweep", "sweep", "top1"),
    ("ADE20k linear", "linear_segmentation", "miou"),
    ("ADE20k linear ms", "linear_segmentation_ms", "miou_ms"),
    ("ADE20k kNN", "knn_segmentation", "miou"),
    ("VOC linear", "linear_segmentation_voc", "miou"),
    ("VOC linear ms", "linear_segmentation_ms_voc", "miou_ms"),
    ("VOC kNN", "knn_segmentation_voc", "miou"),
    ("VOC AP50", "detection_voc", "box_ap50"),
    ("VOC AP", "detection_voc", "box_ap"),
    ("VOC AP75", "detection_voc", "box_ap75"),
)
FURTHER_COLUMNS = (  # shown where a record has the metric: of sets that the paper lacks
    ("IN-V2", "robustness", "imagenet_v2_matched_top1"),
    ("IN-V2 threshold", "robustness", "imagenet_v2_threshold_top1"),
    ("IN-V2 top", "robustness", "imagenet_v2_top_top1"),
    ("ReaL", "robustness", "imagenet_real_top1"),
    ("ObjectNet", "robustness", "objectnet_top1"),
)
GROUPS = {  # what stands over neighboring columns of a node, without repeating it in each heading
    "detection_coco": "COCO",
    "segmentation": "ADE20k",
    "linear_segmentation": "ADE20k",
    "knn_segmentation": "ADE20k",
    "linear_segmentation_ms": "ADE20k",
    "linear_segmentation_voc": "VOC",
    "linear_segmentation_ms_voc": "VOC",
    "knn_segmentation_voc": "VOC",
    "detection_lvis": "LVIS",
    "detection_voc": "VOC",
    "robustness": "Robustness",
}
ALL_COLUMNS = (*COLUMNS, *EXTRA_COLUMNS, *FURTHER_COLUMNS)
ACCURACY_IMAGES = {  # columns that are an accuracy: the images of the whole set, over which a published one is binomial
    **dict.fromkeys(("FT", "LIN", "1%", "kNN", "LIN fast", "LIN sweep"), 50_000),
    "IN-A": 7_500,
    "IN-R": 30_000,
    "IN-Sketch": 50_889,
    **dict.fromkeys(("IN-V2", "IN-V2 threshold", "IN-V2 top"), 10_000),
    "ReaL": 46_837,
    "ObjectNet": 18_574,
}


def of_records(entries: Iterable[Mapping[str, Any]]) -> tuple[Column, ...]:
    """The columns that records of labelled sets bring along, those of a set side by side."""
    found = {}
    for entry in entries:
        own = entry.get("column")
        if own:
            found[entry["task"]] = (own["group"], (own["heading"], entry["task"], own["metric"]))
    groups = list(dict.fromkeys(group for group, _ in found.values()))
    return tuple(column for _, column in sorted(found.values(), key=lambda one: groups.index(one[0])))


def heading_of(node: str, metric: str, entries: Iterable[Mapping[str, Any]] = ()) -> str:
    """The heading of the column that shows a metric of a node, or "" where no column does."""
    columns = (*ALL_COLUMNS, *of_records(entries))
    return next((heading for heading, *place in columns if place == [node, metric]), "")


def group_of(node: str, heading: str) -> str:
    """What stands over a column: of a labelled set, whose nodes are called SET.TASK, its heading without the task."""
    return heading.rpartition(" ")[0] if "." in node else GROUPS.get(node, "ImageNet")
