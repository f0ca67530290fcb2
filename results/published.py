"""The published numbers that may stand beside measured ones, and which of them do.

``published.csv`` has one line a number: whose, of which architecture and pretraining, in which protocol group, and its
source. ``standing`` says whether that group is the protocol that is measured here (same), near it (close), or printed
beside it elsewhere though it is another (other). ``status`` says whether the number was read in the source itself
(read) or in another text that quotes it (quoted). IN-C is 100 - mCE throughout; plain mean errors are not in the file.
Nearly every number that is published as "1 %" comes from fine-tuning, and the column here is a frozen protocol: those
are not in the file either.
"""

import csv
import functools
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from results.escape import plain

FILE = Path(__file__).with_name("published.csv")
PAPERS = "ViT-B/16"  # the architecture of the SiameseIM table
DEFAULTS = {  # rows by architecture, each NAME@EPOCHS; another architecture shows all that it has
    PAPERS: ("MoCo-v3@300", "MAE@1600", "SiameseIM@1600"),
    "ViT-S/16": ("DINO@800", "iBOT@800", "MAE@1600", "supervised (DeiT)@300"),
    "ViT-L/16": ("MoCo-v3@300", "iBOT@250", "MAE@1600", "supervised (DeiT III)@800"),
    "ResNet-50": (
        "supervised (torchvision)@90",
        "SimCLR@200",
        "MoCo v2@200",
        "MoCo v2@800",
        "BYOL@200",
        "SwAV@200",
        "SimSiam@200",
    ),
}
WITHOUT_NUMBERS = ("Masked Siamese ConvNets",)  # looked for, and no number could be found in any source
PROTOCOLS = {  # what a group of published numbers has in common; of one column, the nearest to ours first
    "ft_mae": "end-to-end fine-tuning by BEiT's and MAE's recipe at 224 px (ViT-B 100 epochs, ViT-L 50)",
    "ft_mae_data": "the same fine-tuning of an encoder that saw other data than IN-1K, or had a CLIP teacher",
    "ft_deit": "fine-tuning by the DeiT recipe (MoCo-v3: 150 epochs)",
    "ft_mae_var": "fine-tuning like MAE's, of another length (ViT-S 200 to 300 epochs) or crop",
    "sup": "supervised training from scratch",
    "ft_timm": "the authors' fine-tuned weights, tested by timm with its crop",
    "ft_other_arch": "fine-tuning like MAE's of a hierarchical encoder",
    "lin_lars_bn": "linear probe, LARS, batch 16384, 90 epochs (ViT-L 50), batch norm before the head",
    "lin_sgd_mocov3": "linear probe, SGD, batch 1024, 90 epochs (MoCo-v3)",
    "lin_r50_simsiam": "linear probe, LARS or LARC, batch 4096, 90 epochs (SimSiam)",
    "lin_r50_moco": "linear probe, SGD with learning rate 30, 100 epochs (MoCo)",
    "lin_dino": "linear probe of DINO: concatenated tokens, the learning rate chosen on val",
    "lin_dinov2": "linear probe of DINOv2: learning rate and blocks chosen on val",
    "lin_jepa": "linear probe of I-JEPA: LARS, batch 16384, 50 epochs",
    "lin_lars_other": "linear probe with LARS, the repository's own variant",
    "lin_other": "linear probe whose protocol the source does not state",
    "lin_r50_own": "linear probe by the method's own script",
    "lin_r50_vissl": "linear probe of VISSL's benchmark",
    "lin_r50_mm": "linear probe of MMSelfSup, MMPretrain or OpenSelfSup",
    "lin_r50_lightly": "linear probe of lightly's benchmark, 90 epochs",
    "lin_r50_solo": "linear probe of solo-learn",
    "one_logreg": "logistic regression on frozen features of the 1 % list (MSN's protocol)",
    "one_lin_other": "another linear solver on frozen features of the 1 % list",
    "coco_vitdet": "Mask R-CNN of ViTDet, 100 epochs of large-scale jitter at 1024 px, detectron2",
    "coco_vitdet_mm": "Mask R-CNN of ViTDet in MMDetection's port",
    "coco_suspect": "equal to Table 4 of the MAE paper, whose Mask R-CNN is not ViTDet: it does not compare with the "
    "other numbers of this column",
    "coco_fpn_1x": "Mask R-CNN with FPN, 1x, detectron2",
    "coco_fpn_2x": "Mask R-CNN with FPN, 2x, detectron2",
    "coco_c4_1x": "Mask R-CNN with C4, 1x, detectron2",
    "coco_c4_2x": "Mask R-CNN with C4, 2x, detectron2",
    "coco_fpn_mm": "Mask R-CNN with FPN, 1x, several scales in training, MMDetection",
    "coco_fpn_mm_2x": "Mask R-CNN with FPN, 2x, several scales in training, MMDetection",
    "lvis_vitdet": "LVIS v1, Mask R-CNN of ViTDet, 100 epochs, federated loss, detectron2",
    "lvis_fpn_1x": "LVIS, Mask R-CNN with FPN, 1x, detectron2",
    "ade_upernet": "UPerNet, 160,000 iterations, 512 px, single scale",
    "ade_upernet_var": "UPerNet with another crop, length, data set or framework",
    "ade_hier": "UPerNet, 160,000 iterations, of a hierarchical encoder or an adapter",
    "ade_linear_dinov2": "ADE20k by DINOv2's linear setup: one layer's patch tokens, 40,000 iterations at 512 px",
    "ade_linear_ms": "ADE20k by DINOv2's second setup (+ms): the last four layers, 640 px, several scales",
    "ade_linear": "a linear head on frozen patch tokens, by the source's own recipe",
    "voc_linear_dinov2": "VOC 2012 by DINOv2's linear setup, as ADE20k",
    "voc_linear_ms": "VOC 2012 by DINOv2's second setup, as ADE20k",
    "rob_ft": "the classifier fine-tuned on IN-1K at 224 px; IN-A and IN-R over their 200 classes",
    "rob_timm": "the authors' weights, tested by timm with its crop; IN-A and IN-R over their 200 classes",
    "knn_dino": "weighted k nearest neighbors of DINO, temperature 0.07",
    "knn_mm": "k nearest neighbors, k = 20, of MMSelfSup",
    "knn_other": "k nearest neighbors with settings that the source does not state",
    "voc_c4": "Faster R-CNN with C4, VOC 07+12, 24,000 iterations, detectron2",
    "voc_mm": "Faster R-CNN with C4, VOC 07+12, 24,000 iterations, MMDetection",
    "voc_other": "Faster R-CNN with C4, VOC 07+12, as its source captions it",
}
LINEAR = {"simsiam": "lin_r50_simsiam", "moco": "lin_r50_moco", "moco_v3": "lin_sgd_mocov3"}  # preset: group
OTHER = "published by another protocol"  # what the mark of such a number begins with
SWEEPS = ("lin_dino", "lin_dinov2")  # their learning rate is chosen among many, as in the column LIN sweep


class NoSuchBaseline(ValueError):
    """A baseline that there is not; the sentence lists those that there are."""


@dataclass(frozen=True)
class Published:
    """One number of a published row."""

    value: float
    """In percent."""
    seed_std: float | None
    """Standard deviation over seeds, in points, where the source gives it."""
    group: str
    """A key of PROTOCOLS."""
    source: str
    marks: tuple[str, ...]
    """How it differs from what is measured here, a sentence each."""

    @property
    def is_of_this_protocol(self) -> bool:
        """Whether it was measured as its column is."""
        return not any(mark.startswith(OTHER) for mark in self.marks)


@functools.cache
def numbers() -> tuple[dict[str, str], ...]:
    """The lines of published.csv; ``pretrain_epochs`` and ``seed_std`` are empty where the source gives none."""
    with FILE.open(encoding="utf-8", newline="") as file:
        return tuple(csv.DictReader(file))


def group_measured(heading: str, architecture: str, entry: Mapping[str, Any] | None) -> str:
    """The protocol group of what a column measures: by its record's preset or recipe, else by the architecture."""
    entry = entry or {}
    resnet = architecture.startswith("ResNet")
    if heading == "LIN":
        preset = str(entry.get("preset", "")).removesuffix("_vit")
        return LINEAR.get(preset, LINEAR["simsiam"] if resnet and not entry else "lin_lars_bn")
    dataset = heading.partition(" ")[0].lower()
    if dataset in ("coco", "lvis"):
        recipe = str(entry.get("protocol", {}).get("recipe", ""))
        cut = re.search(r"_(c4|fpn)_([12]x)_", recipe)
        if cut:
            return f"{dataset}_{cut[1]}_{cut[2]}"
        if recipe.startswith("cascade"):
            return f"{dataset}_vitdet_cascade"
        return f"{dataset}_fpn_1x" if resnet else f"{dataset}_vitdet"
    fixed = {
        "FT": "ft_mae",
        "1%": "one_logreg",
        "ADE20k mIoU": "ade_upernet",
        "ADE20k linear": "ade_linear_dinov2",
        "ADE20k linear ms": "ade_linear_ms",
        "VOC linear": "voc_linear_dinov2",
        "VOC linear ms": "voc_linear_ms",
        "kNN": "knn_dino",
        "LIN sweep": SWEEPS[0],
    }
    return fixed.get(heading, "voc_c4" if dataset == "voc" else "rob_ft" if dataset.startswith("in-") else "")


def rows(
    architecture: str, baselines: Sequence[str], measured: Mapping[str, Mapping[str, Any] | None]
) -> tuple[dict[str, dict[str, Published]], list[str]]:
    """The published rows of an architecture by label, each its numbers by heading; and what could not be shown.

    Of several numbers of a column, the one nearest to the measured protocol is taken. A ResNet's numbers move by
    several points with the protocol alone, so of those only the measured protocol is shown.

    Args:
        baselines: NAME or NAME@EPOCHS each, whatever the case and the spaces; none: the default rows.
        measured: by heading of each column, the record that is shown there, or None.

    Raises NoSuchBaseline.
    """
    known = [line for line in numbers() if line["architecture"] == architecture]
    asked = list(baselines or DEFAULTS.get(architecture, ()))
    found, notes = [], []
    for text in asked:
        if _plain(text) in map(_plain, WITHOUT_NUMBERS):
            notes.append(f"{plain(text)}: no published number could be found in any source")
            continue
        variants = _variants(known, text)
        if variants:
            found.append(variants[-1])
        elif not _variants(numbers(), text):
            names = ", ".join(sorted({line["row"] for line in known})) or "none"
            raise NoSuchBaseline(f"there is no baseline {plain(text)!r}; of {architecture} there are: {names}")
        else:
            notes.append(f"{plain(text)}: no published number of {architecture} in these protocols")
    if not asked:
        found = [_variants(known, name)[-1] for name in dict.fromkeys(line["row"] for line in known)]
    result = {}
    for variant in dict.fromkeys(found):
        name, _, epochs = variant
        of_row = [line for line in known if _variant(line) == variant]
        cells = {heading: _number(of_row, heading, architecture, measured) for heading in measured}
        several = sum(other[0] == name for other in dict.fromkeys(found)) > 1
        label = f"{name}, {epochs} epochs" if several and epochs else name
        if any(cells.values()):
            result[label] = {heading: cell for heading, cell in cells.items() if cell}
        elif baselines:
            notes.append(f"{label}: no published number of {architecture} in the protocols of these columns")
    return result, notes


def _variant(line: Mapping[str, str]) -> tuple[str, str, str]:
    """Whose number it is: row, pretraining data and epochs."""
    return line["row"], line["pretrain_data"], line["pretrain_epochs"]


def _variants(known: Iterable[Mapping[str, str]], text: str) -> list[tuple[str, str, str]]:
    """The pretrainings that a baseline names; the one to show is the last."""
    name, separator, epochs = text.rpartition("@")
    wanted = _plain(name if separator else text)
    counts = Counter(_variant(line) for line in known if _plain(line["row"]) == wanted)
    own = [variant for variant in counts if not separator or variant[2] == epochs]
    # ImageNet-1K before other data, then the most numbers, then the longest
    return sorted(own, key=lambda variant: (variant[1].startswith("IN-1K"), counts[variant], float(variant[2] or 0)))


def _number(
    of_row: Sequence[Mapping[str, str]], heading: str, architecture: str, measured: Mapping[str, Any]
) -> Published | None:
    """The number of a row to show in a column, or None."""
    own = group_measured(heading, architecture, measured[heading])
    column = "LIN" if heading == "LIN sweep" else heading
    candidates = [line for line in of_row if line["column"] == column]
    if heading == "LIN sweep":
        candidates = [line for line in candidates if line["group"] in SWEEPS]
    elif heading == "LIN" and "LIN sweep" in measured:
        candidates = [line for line in candidates if line["group"] not in SWEEPS]
    if architecture.startswith("ResNet") or own not in PROTOCOLS:
        candidates = [line for line in candidates if line["group"] == own]
    if not candidates:
        return None
    line = min(candidates, key=lambda line: [own, *PROTOCOLS].index(line["group"]))
    marks = [] if line["group"] == own else [f"{OTHER}: {PROTOCOLS[line['group']]}"]
    if line["pretrain_data"] not in ("IN-1K", "IN-1K labels", "none", ""):
        marks.append(f"pretrained with {line['pretrain_data']}")
    if line["status"] == "quoted":
        marks.append(f"not read in its paper, but quoted: {line['source']}")
    spread = float(line["seed_std"]) if line["seed_std"] else None
    return Published(float(line["value"]), spread, line["group"], line["source"], tuple(marks))


def _plain(name: str) -> str:
    """A name without case, spaces and punctuation: ``mocov2`` for "MoCo v2"."""
    return re.sub(r"[^a-z0-9*]", "", name.lower())
