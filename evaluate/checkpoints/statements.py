"""Everything that a checkpoint and the files beside it say about its encoder, for every format, in one place.

``statement_readers.read`` finds it.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from evaluate.checkpoints.reader import Checkpoint
from evaluate.runtime.errors import UserError

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
UNIT = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
NORMALIZATIONS = {"imagenet": IMAGENET, "half": HALF, "clip": CLIP, "none": UNIT}

MOCO_V3_NAMES = ("vit_small", "vit_base")


@dataclass(frozen=True)
class Statement:
    """One value and where it stands."""

    value: Any
    """As the field of ``EncoderSpec`` takes it."""
    place: str
    """For example ``args.num_heads`` or ``config.json: hidden_act``."""


@dataclass
class Statements:
    """What a file and its folder say, by field of ``EncoderSpec``."""

    said: dict[str, list[Statement]] = field(default_factory=dict)
    """Every value that was found, the strongest place first."""
    implied: dict[str, Statement] = field(default_factory=dict)
    """What follows from a named architecture; anything said outright is stronger."""
    shape: dict[str, Statement] = field(default_factory=dict)
    """Sizes that the tensors must have."""
    notes: list[str] = field(default_factory=list)
    """What was found and not used, and why."""

    def add(self, name: str, value: Any, place: str) -> None:
        """Notes that a place says a value."""
        self.said.setdefault(name, []).append(Statement(value, place))

    def value(self, name: str, what: str, option: str) -> Statement | None:
        """What is said, or else implied, of a field; None where nothing is.

        Raises:
            UserError: two places contradict each other.
        """
        found = self.said.get(name, [])
        for other in found[1:]:
            if not same(other.value, found[0].value):
                raise UserError(
                    f"{what}: {found[0].place} says {name} {found[0].value!r}, {other.place} says {other.value!r}; "
                    f"say which is right with {option}"
                )
        return found[0] if found else self.implied.get(name)


def is_moco_v3(checkpoint: Checkpoint) -> bool:
    """Whether MoCo-v3's own scripts wrote it: its names of architectures beside the entries that its scripts save."""
    entries = checkpoint.top_level
    saved = "epoch" in entries and ("optimizer" in entries or "best_acc1" in entries)
    return saved and entries.get("arch") in MOCO_V3_NAMES


def is_timm_hub(checkpoint: Checkpoint) -> bool:
    """Whether timm's ``config.json`` lies beside the file."""
    return kind_of(checkpoint.config) == "timm"


def compare_shape(found: Statements, fields: Mapping[str, Any], what: str) -> None:
    """Raises UserError where a size that is said differs from the one that the tensors have."""
    for name, statement in found.shape.items():
        if name in fields and fields[name] != statement.value:
            raise UserError(
                f"{what}: {statement.place} says {name} {statement.value}, its tensors {fields[name]}; "
                f"the file is inconsistent with what lies beside it"
            )


def is_sine_cosine(positions: Tensor) -> bool:
    """Whether a position embedding (1, 1 + N, D) is the fixed one of MAE and MoCo-v3: sines and cosines, zeros for the
    class token."""
    if positions.dim() != 3 or positions.shape[2] % 4 or positions.shape[1] < 5 or positions[0, 0].abs().max() > 1e-4:
        return False
    quarters = positions[0, 1:].float().unflatten(1, (4, -1))
    return bool(
        ((quarters[:, 0] ** 2 + quarters[:, 1] ** 2 - 1).abs().max() < 1e-2)
        and ((quarters[:, 2] ** 2 + quarters[:, 3] ** 2 - 1).abs().max() < 1e-2)
    )


def same(left: Any, right: Any) -> bool:
    """Whether two statements agree; mean and std up to the rounding of published values."""
    if isinstance(left, tuple) and isinstance(right, tuple):
        return len(left) == len(right) and all(
            math.isclose(a, b, abs_tol=2e-4) for a, b in zip(left, right, strict=True)
        )
    return left == right


def kind_of(config: Mapping[str, Any]) -> str:
    """Whose a config.json is: "open_clip", "timm", "hf", "other" (a plain table of values) or "" (there is none)."""
    if not config or set(config) <= {"encoder_spec"}:
        return ""
    if "model_cfg" in config or "preprocess_cfg" in config:
        return "open_clip"
    if isinstance(config.get("architecture"), str) or "pretrained_cfg" in config:
        return "timm"
    return (
        "hf"
        if {"model_type", "architectures", "hidden_act", "vision_config", "num_attention_heads", "layer_norm_eps"}
        & set(config)
        else "other"
    )
