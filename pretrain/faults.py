"""What goes wrong in a run of weeks, and how all processes deal with it alike: images that cannot be read, steps that
are not finite."""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pretrain import distributed
from pretrain.data.images import DataError, Images

MAX_UNREADABLE_SHARE = 0.01  # share of the images that may be unreadable
MAX_SKIPPED_STEPS = 10  # steps in a row that may not be finite
NAMED = 3  # files in a sentence; faults.jsonl has all


@dataclass(frozen=True)
class Culprits:
    """Images (indices) that a process suspects of a step that is not finite; ``sure`` if their loss is not finite
    without the others."""

    rank: int
    images: list[int]
    sure: bool


class Faults:
    """Counts and names faults, on process 0 by ``say`` and in OUT/faults.jsonl, and stops the run where they are too
    many.

    Every decision is made from what all processes know, so that none goes on without the others.
    """

    def __init__(self, images: Images, out: Path, say: Callable[[str], None] = print):
        self.images, self.path, self.say = images, out / "faults.jsonl", say
        self.damaged: set[str] = set()  # names
        self.skipped = self.in_a_row = 0

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run must know to stop where an unbroken one would."""
        return {"damaged": sorted(self.damaged), "skipped": self.skipped, "in_a_row": self.in_a_row}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        names = self.images.names  # earlier versions kept indices
        damaged = {names[one] if isinstance(one, int) else one for one in state["damaged"]}
        self.damaged = damaged.intersection(names)
        self.skipped, self.in_a_row = state["skipped"], state["in_a_row"]

    def note_unreadable(self, step: int, damaged: dict[int, str]) -> None:
        """Names the images that could not be read for a step, once each. Raises DataError above
        MAX_UNREADABLE_SHARE."""
        names = self.images.names
        new = {index: why for index, why in damaged.items() if names[index] not in self.damaged}
        for found in distributed.gather_objects(new or None):
            for index, why in found.items():
                if names[index] not in self.damaged:
                    self.damaged.add(names[index])
                    self._note(f"{why}; another image is taken in its place", step, "damaged image", [index])
        if len(self.damaged) > MAX_UNREADABLE_SHARE * len(self.images):
            distributed.raise_together(
                DataError(
                    f"{len(self.damaged)} of {len(self.images)} images cannot be read so far, "
                    f"more than {MAX_UNREADABLE_SHARE:.0%}; "
                    f"replace or remove those that {self.path} names"
                )
            )

    def step_is_finite(
        self, step: int, loss: Tensor, norm: Tensor, scaler: Any, find_culprits: Callable[[bool], Culprits | None]
    ) -> bool:
        """Whether loss and gradient norm of a step are finite in every process; if not, no process may take the step.

        Float16 meets infinite gradients as long as its loss scale is too high: with a scale above 1 and a finite loss
        that is no fault.

        Raises:
            FloatingPointError: the MAX_SKIPPED_STEPS-th step in a row that is not.
        """
        finite = bool(torch.isfinite(torch.stack([loss, norm])).all())
        losses = distributed.gather_objects(None if finite else loss.item())
        if not losses:
            self.in_a_row = 0
            return True
        if scaler.is_enabled() and scaler.get_scale() > 1 and all(map(math.isfinite, losses)):
            return False
        self.skipped += 1
        self.in_a_row += 1
        found = distributed.gather_objects(find_culprits(bool(torch.isfinite(loss))))
        found = [one for one in found if one.sure] or found
        sentences = [f"process {one.rank} with {self._names(one.images)}" for one in found]
        where = f"the loss or its gradient is not finite in {' and '.join(sentences)}"
        self._note(
            f"step {step} is skipped: {where}", step, "not finite", [index for one in found for index in one.images]
        )
        if self.in_a_row == MAX_SKIPPED_STEPS:
            distributed.raise_together(
                FloatingPointError(
                    f"{MAX_SKIPPED_STEPS} steps in a row were not finite, up to step {step}, where {where}; "
                    "nothing of them is in the weights: "
                    "lower base_lr, or take another precision or clip_norm, with --set"
                )
            )
        return False

    def _names(self, images: list[int]) -> str:
        more = f" and {len(images) - NAMED} more in {self.path}" if len(images) > NAMED else ""
        return ", ".join(str(self.images.paths[index]) for index in images[:NAMED]) + more

    def _note(self, text: str, step: int, kind: str, images: list[int]) -> None:
        def write() -> None:
            with self.path.open("a") as file:
                paths = [str(self.images.paths[index]) for index in images]
                file.write(json.dumps({"step": step, "fault": kind, "images": paths}) + "\n")
            self.say(text)

        distributed.on_rank_zero(write)
