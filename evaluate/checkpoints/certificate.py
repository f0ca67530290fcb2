"""The certificate of a conversion: the same input through the source's own forward pass and through every framework's
backbone.

Reference: ``evaluate.checkpoints.reference``, from the source's tensors under the source's semantics. Two inputs:
one fixed image, and *small tokens* (standard deviation 1e-3) given straight to the blocks, where a wrong LayerNorm eps
cannot hide.
Axes: B batch, N patches, D width, C channels.
"""

import dataclasses
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from evaluate.checkpoints.reference import Semantics, SourceResNet, SourceViT
from evaluate.encoder.model import Encoder, Tokens
from evaluate.encoder.spec import describe_assumption
from evaluate.mm.backbones.resnet import ResNetBackbone
from evaluate.mm.backbones.segmentation import SegmentationBackbone
from evaluate.mm.backbones.vitdet import ViTDetBackbone
from results.atomic import atomic_write

TOLERANCE = 1e-4  # of the largest absolute feature, or of 1 where that is smaller; a right conversion gives about 1e-6
SMALL_STD, SMALL_TOKENS = 1e-3, 33


@dataclass(frozen=True)
class Certificate:
    """What was compared and what came of it; stored as JSON beside the encoder and bound to it by ``fingerprint``."""

    passed: bool
    """Whether every comparison that was made stayed within the tolerance."""
    fingerprint: str
    """Of the encoder, as ``evaluate.encoder.model.fingerprint``."""
    source_format: str
    """A name of ``evaluate.checkpoints.formats.FORMATS``."""
    branch: str
    """Which encoder of the file it is."""
    source_sha256: str
    """Of the weights, as ``evaluate.checkpoints.files.digests``."""
    source_json_sha256: str
    """Of the JSON files beside them, likewise."""
    recognized: str
    """The format in words, and where in the file the state dict lies."""
    checks: dict[str, dict[str, Any]]
    """By framework ``difference`` (largest absolute), ``largest`` (absolute feature) and ``passed``, or ``skipped``."""
    used: list[str]
    """Keys whose tensors are in the encoder."""
    dropped: list[str]
    """Keys that a row of the format's name table leaves out."""
    other_entries: list[str]
    """What else the file holds."""
    assumed: dict[str, dict[str, Any]] = field(default_factory=dict)
    """What nothing in the file or beside it says: name to ``value``, ``option`` (that says otherwise) and ``why``."""
    notes: list[str] = field(default_factory=list)
    """What a reader of the numbers must know."""
    tolerance: float = TOLERANCE
    """Largest difference that passes, relative to the largest feature where that is above 1."""

    @classmethod
    def read(cls, path: Path) -> "Certificate":
        """The certificate that ``write`` wrote."""
        return cls(**json.loads(path.read_text()))

    def to_dict(self) -> dict[str, Any]:
        """Plain data, as it is stored."""
        return dataclasses.asdict(self)

    def write(self, path: Path) -> None:
        """Writes it as JSON, whole or not at all."""
        with atomic_write(path) as written:
            written.write_text(json.dumps(self.to_dict(), indent=1))

    def assumptions(self) -> list[str]:
        """A line for each thing that was assumed."""
        return [f"assumed: {describe_assumption(name, entry)}" for name, entry in self.assumed.items()]

    def __str__(self) -> str:
        compared = sum("skipped" not in check for check in self.checks.values())
        verdict = f"{'passed' if self.passed else 'FAILED'}, {compared} of {len(self.checks)} comparisons made"
        lines = [f"certificate: {verdict} ({self.recognized}; branch {self.branch})"]
        for name, check in self.checks.items():
            if "skipped" in check:
                lines.append(f"  {name}: not compared: {check['skipped']}")
            else:
                verdict = "ok" if check["passed"] else "FAILED"
                lines.append(
                    f"  {name}: largest difference {check['difference']:.1e} of {check['largest']:.3g} {verdict}"
                )
        lines.append(f"  tensors: {len(self.used)} used, {len(self.dropped)} dropped" + _families(self.dropped))
        lines += [f"  {line}" for line in self.assumptions()]
        lines += [f"  note: {note}" for note in self.notes]
        return "\n".join(lines)


def _families(keys: list[str], most: int = 6) -> str:
    """The first parts of the dropped names, each once."""
    heads = list(dict.fromkeys(".".join(key.split(".")[:2]) if key.count(".") > 1 else key for key in keys))
    return f" ({', '.join(heads[:most])}{', …' if len(heads) > most else ''})" if heads else ""


def fixed_image(size: int) -> Tensor:
    """(1, 3, size, size), values about -1.5 to 1.5, different in every channel, row and column."""
    rows = torch.arange(size, dtype=torch.float64)[:, None]
    columns = torch.arange(size, dtype=torch.float64)[None, :]
    planes = [
        torch.sin(0.13 * (c + 1) * rows + 0.05 * columns + c) + 0.5 * torch.cos(0.0011 * (c + 2) * rows * columns)
        for c in range(3)
    ]
    return torch.stack(planes)[None].float()


@torch.inference_mode()
def compare(
    source: Mapping[str, Tensor], roles: Mapping[str, str], semantics: Semantics, encoder: Encoder
) -> dict[str, dict[str, Any]]:
    """Differences between the source's forward pass and each framework's, for ``Certificate.checks``."""
    image = fixed_image(encoder.spec.img_size)
    if encoder.spec.family == "resnet":
        return _compare_resnet(SourceResNet(source, roles, semantics), encoder, image)
    reference = SourceViT(source, roles, semantics)
    embedded = reference.embed(image)
    expected = reference.blocks(embedded)
    tokens = encoder.forward_tokens(image)
    assert isinstance(tokens, Tokens)  # as every ViT gives
    # without a class token of its own the encoder's output is shorter than the source's, which is a failure below
    count = tokens.patches.shape[1]
    checks = {
        "timm": _check(
            {
                "cls": expected[:, 0] if "cls" in roles and reference.get("cls") is not None else None,
                "patches": expected[:, -count:],
            },
            {"cls": tokens.cls, "patches": tokens.patches},
        )
    }
    spread = embedded.std()
    small = embedded / spread * SMALL_STD if spread > 0 else embedded
    if not encoder.spec.rel_pos_bias:
        small = small[:, :SMALL_TOKENS]  # any tokens will do; BEiT's bias needs the whole grid
    mine = small
    for block in encoder.model.blocks:
        mine = block(mine)
    checks["timm, small tokens (std 1e-3)"] = _check({"tokens": reference.blocks(small)}, {"tokens": mine})
    if encoder.spec.final_norm and reference.get("norm", "weight") is not None:
        checks["timm, final norm"] = _check(
            {"tokens": reference._norm(small, "norm", 0)}, {"tokens": encoder.model.norm(small)}
        )
    return checks | {name: build(reference, encoder, image, expected) for name, build in FRAMEWORKS}


def _vitdet(reference: SourceViT, encoder: Encoder, image: Tensor, expected: Tensor) -> dict[str, Any]:
    """The detection backbone with one window over the whole image; without registers it takes no class token, so the
    reference leaves it out."""
    size = encoder.spec.img_size
    backbone = ViTDetBackbone.from_spec(
        encoder.spec, encoder.model.state_dict(), img_size=size, window=size // encoder.spec.patch_size
    ).eval()
    if encoder.spec.class_token and not encoder.spec.registers:
        expected = reference.blocks(reference.embed(image, class_token=False))
    patches = backbone(image)[-1].flatten(2).transpose(1, 2)
    return _check({"patches": expected[:, -patches.shape[1] :]}, {"patches": patches})


def _segmentation(reference: SourceViT, encoder: Encoder, image: Tensor, expected: Tensor) -> dict[str, Any]:
    size, last = encoder.spec.img_size, encoder.spec.depth - 1
    backbone = SegmentationBackbone.from_spec(
        encoder.spec, encoder.model.state_dict(), img_size=(size, size), out_indices=(last,)
    ).eval()
    patches = backbone(image)[-1].flatten(2).transpose(1, 2)
    return _check({"patches": expected[:, -patches.shape[1] :]}, {"patches": patches})


# every framework a ViT encoder is built in besides timm; ResNets: _compare_resnet
FRAMEWORKS: tuple[tuple[str, Callable[[SourceViT, Encoder, Tensor, Tensor], dict[str, Any]]], ...] = (
    ("mmdet, ViTDet backbone", _vitdet),
    ("mmseg, segmentation backbone", _segmentation),
)


def _compare_resnet(reference: SourceResNet, encoder: Encoder, image: Tensor) -> dict[str, dict[str, Any]]:
    """The four stages' maps, through timm and through the backbone that detection and segmentation build.

    mmdet's own ResNet class is none of them: the dense tasks do not use it, and importing mmdet takes longer than all
    the rest.
    """
    expected = reference.pyramid(image)
    stages = encoder.forward_blocks(image, 4)
    names = [f"layer{stage}" for stage in range(1, 5)]
    wanted = dict(zip(names, expected, strict=True))
    backbone = ResNetBackbone(encoder.spec.to_json())
    backbone.load(encoder.spec, encoder.model.state_dict())
    return {
        "timm": _check(wanted, {name: stage.map for name, stage in zip(names, stages, strict=True)}),
        "mmdet and mmseg, ResNet backbone": _check(wanted, dict(zip(names, backbone.eval()(image), strict=True))),
    }


def _check(expected: Mapping[str, Tensor | None], found: Mapping[str, Tensor | None]) -> dict[str, Any]:
    """Largest absolute difference over all outputs; one that is there on one side only, or of another shape, fails.

    Outputs that are zero everywhere tell nothing apart: they are not compared. What is not finite fails.
    """
    worst = {"difference": 0.0, "largest": 0.0, "passed": True}
    for name, tensor in expected.items():
        other = found[name]
        if tensor is None and other is None:
            continue
        if tensor is None or other is None or tensor.shape != other.shape:
            reason = f"{name} is missing or of another shape"
            return {"difference": float("inf"), "largest": 0.0, "passed": False, "reason": reason}
        largest = float(tensor.abs().max())
        difference = float((tensor - other).abs().max())
        if not math.isfinite(largest) or not math.isfinite(difference):
            reason = f"{name} is not finite: the weights overflow"
            return {"difference": float("inf"), "largest": largest, "passed": False, "reason": reason}
        passed = difference < TOLERANCE * max(1.0, largest) and worst["passed"]
        if difference > worst["difference"] or worst["largest"] == 0.0:
            worst |= {"difference": difference, "largest": largest}
        worst["passed"] = passed
    if worst["largest"] == 0.0 and worst["passed"]:
        return {"skipped": "every output is zero, which tells nothing apart"}
    return worst
